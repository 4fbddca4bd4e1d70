// The inside of the cache. See cache.h for what it is; flight.h for a run.
//
// Threads: methods under "core" run on core_ alone and own waiters and runs without a lock. Methods
// under "pool" run on the pool. Whatever crosses is posted.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/base/aligned_buffer.h"
#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "backend/cache/flight.h"
#include "backend/cache/policy.h"
#include "backend/cache/promotion_plan.h"

namespace nexus {

// An object whose file is to go to another zone: an object, or the entry of an earlier run.
struct MoveTarget {
  std::shared_ptr<Object> object;
  std::string key, name;
  std::shared_ptr<ObjectFile> file;
  ObjectMeta meta;
  int zone = -1;  // where to
};

struct Cache::Impl : std::enable_shared_from_this<Cache::Impl> {
  Impl(CacheOptions options, Store& store);
  // What goes on by itself. Not in the constructor: there is nothing to share from this before.
  void start();

  // any thread
  std::shared_ptr<Object> object(ObjectSpec spec);
  std::optional<Result<size_t>> try_read(Object& object, uint64_t offset, std::span<std::byte> into,
                                         bool waited);
  std::shared_ptr<ObjectFile> ready_file(Object& object);
  std::shared_ptr<ObjectFile> file_to_open(Object& object);
  std::shared_ptr<ObjectFile> local_file(Object& object, std::string* error);
  uint64_t submit(const std::shared_ptr<Object>& object, Waiter waiter);
  void touch(Object& object);
  void count_read(Object& object,
                  ByteRange range);  // of a reader: what was prefetched there is used
  std::vector<std::shared_ptr<Object>> all_objects() const;
  // What is over when nobody opens it within that time; nothing where a timer waits already.
  void let_go_after(const std::shared_ptr<Object>& object,
                    std::chrono::steady_clock::duration delay);
  bool strict() const { return options_.integrity == Integrity::kStrict; }
  // Whether bytes of the object may be shown to a reader as far as its digest goes.
  bool digest_satisfied(const Object& object) const;

  // core: waiters (flight.cc)
  void add_waiter(const std::shared_ptr<Object>& object, Waiter waiter);
  void remove_waiter(uint64_t ticket);
  void advance(
      const std::shared_ptr<Object>& object);  // answers whoever can be, starts what is missing
  bool satisfied(const Object& object, const Waiter& waiter) const;
  void fail_waiters(const std::shared_ptr<Object>& object, ByteRange range, const Error& error);
  void answer(const std::shared_ptr<Object>& object, std::list<Waiter> answered,
              const Result<void>& result);
  // Ends runs that nobody waits for: demand runs always, read-ahead only when asked to.
  void cancel_unwanted_runs(const std::shared_ptr<Object>& object, bool read_ahead_too);
  void set_fetching(Object& object);
  static int readers_waiting(const Object& object);

  // core: runs (run.cc)
  Result<std::shared_ptr<ObjectFile>> ensure_file(const std::shared_ptr<Object>& object);
  void start_missing(const std::shared_ptr<Object>& object, ByteRange range, int priority);
  LinkShape link_of(const Object& object) const;
  void start_run(const std::shared_ptr<Object>& object, const std::shared_ptr<ObjectFile>& file,
                 uint64_t first, uint64_t last, int priority);
  uint64_t part_bytes(uint64_t total, bool whole, const LinkShape& link) const;
  void start_part(const std::shared_ptr<Run>& run, Part part);
  // The transfer's thread. Bytes for [dest, ...) of the run's file; written kWriteBytes at a time.
  Result<void> land(const std::shared_ptr<Run>& run, Part& part, uint64_t dest,
                    std::span<const std::byte> bytes);
  std::shared_ptr<std::byte[]> take_buffer();
  Result<void> write_gathered(const std::shared_ptr<Run>& run, Part& part);
  Result<void> write_landed(const std::shared_ptr<Run>& run, uint64_t at, const std::shared_ptr<std::byte[]>& bytes,
                            uint64_t length);
  void chunk_sealed(const std::shared_ptr<Run>& run, uint64_t chunk);
  void end_run(const std::shared_ptr<Run>& run, Result<void> result);
  // Strict: the blobs that a layer is made from come first. True when they are here and verified.
  bool blobs_ready(const std::shared_ptr<Object>& object, int priority);
  void completed(const std::shared_ptr<Object>& object, const std::shared_ptr<ObjectFile>& file);
  void settle_prefetch(Run& run);  // of a run that does not come to its end

  // core: dropping (evict.cc)
  // `to_memory`: the disk refused it, whoever waits has it fetched into memory.
  void drop(const std::shared_ptr<Object>& object, bool to_memory = false);
  void drop_made_from(const std::shared_ptr<Object>& blob);
  void drop_made_from(const std::string& model, uint64_t file_id, const std::string& name);
  void evict();
  void evict_memory(uint64_t bytes);
  // A file in memory of the object's size, where the disk refused it.
  Result<std::shared_ptr<ObjectFile>> memory_file(const Object& object);
  void add_charge(Object& object, uint64_t bytes);

  // core: copies in the RAM tier (promote.cc)
  // True: a copy is being made; its end calls advance(), and chunks_checked() if it was not
  // trusted.
  bool promote(const std::shared_ptr<Object>& object);
  struct Promotion;
  void fill_copy(const std::shared_ptr<Promotion>& promotion);            // promote_
  void read_steps(const std::shared_ptr<Promotion>& promotion);           // promote_
  void check_copied(Promotion& promotion, uint64_t begin, uint64_t end);  // pool
  void end_step(const std::shared_ptr<Promotion>& promotion);             // pool, promote_
  void end_promotion(const std::shared_ptr<Promotion>& promotion);
  // Idle ones, the oldest first.
  void drop_copies(uint64_t bytes);  // until `bytes` more fit
  void drop_copies_until(const std::function<bool()>& enough);
  void watch_memory();  // every few seconds
  // Closed after it was used again in this run: from now on it is read from memory, if there is
  // room without anything else going.
  void promote_if_hot(const std::shared_ptr<Object>& object);

  // tiers (migrate.cc); on the upkeep thread but for what says core
  struct Migration;
  void migrate_now_and_then();  // core
  // any thread; `rebalance`: also between disks of one tier
  void start_migration(std::shared_ptr<CacheJob> job, bool rebalance,
                       std::function<void(const VerifyProgress&)> progress,
                       std::function<void(Result<MigrationReport>)> done);
  void migrate_pass(const std::shared_ptr<Migration>& job);
  Result<void> migrate_one(Migration& job, const MoveTarget& target);
  Result<void> write_direct(const std::shared_ptr<ObjectFile>& file, uint64_t offset,
                            const std::shared_ptr<AlignedBuffer>& buffer, size_t length) const;
  Result<void> copy_chunks(Migration& job, const MoveTarget& target,
                           const std::shared_ptr<ObjectFile>& copy);
  static bool may_move(const Object& object);                                           // core
  bool commit_move(const MoveTarget& target, const std::shared_ptr<ObjectFile>& copy);  // core
  void note_use(Object& object);  // core: so that the next run knows how hot it is

  // scrub (scrub.cc); on the upkeep thread but for what says core
  void start_scrubbing();  // core, once
  void scrub_after(std::chrono::milliseconds delay);
  void scrub_next();
  void end_scrub_pass();
  // Reads the chunks that are here and compares them with their hashes; `each` after each one,
  // false ends it with kCancelled.
  // `from_disk`: past the page cache, where bulk_read does that.
  Result<void> check_file(const std::shared_ptr<ObjectFile>& file, bool from_disk,
                          const std::function<bool(uint64_t)>& each) const;
  // By bulk_read where there is one, past the page cache then. Into the beginning of `buffer`.
  Result<void> read_direct(const std::shared_ptr<ObjectFile>& file, uint64_t offset,
                           const std::shared_ptr<AlignedBuffer>& buffer, size_t length) const;
  std::vector<VerifyTarget> verify_targets(const ObjectFilter& filter) const;
  // Waits while anything is being fetched; false: `stop` said so meanwhile.
  bool wait_for_idle(const std::function<bool()>& stop) const;
  // Runs `task` on the core thread and waits; false: it did not run, the cache is stopping.
  bool on_core(const std::function<void()>& task);

  // put files (put.cc)
  void restore_puts();  // at start
  // core: `file` is complete, or null where the object is resident already
  Result<void> install_put(const PutFile& put, const std::shared_ptr<Object>& object,
                           const std::shared_ptr<ObjectFile>& file);

  // control (control.cc)
  struct Verification;
  Dropped drop_matching(const ObjectFilter& filter);  // core
  // any thread: entries of restored_; of a key, unless it has another file by now
  Dropped drop_restored(const std::function<bool(const ObjectMeta&, const ObjectFile&)>& wanted);
  bool drop_restored(const std::string& key, const ObjectFile* file);
  using Restored = std::unordered_map<std::string, StoredObject>;
  Restored::iterator drop_restored_locked(Restored::iterator entry, Dropped& dropped);
  bool is_pinned_locked(const Pin& pin) const;  // holds mutex_
  // `model`: whose pins change, "" for all.
  void change_pins(const std::string& model, std::function<Result<void>(Pins&)> change,
                   std::function<void(Result<void>)> done);
  void start_verification(std::shared_ptr<Verification> job);      // any thread
  void verify_next(const std::shared_ptr<Verification>& job);      // idle
  void verify_one(Verification& job, const VerifyTarget& target);  // idle
  // any thread: `by`, whoever found it, says so, and it is dropped; `made_from`: with all that was
  // made from it.
  void found_corrupt(const char* by, const VerifyTarget& target, const Error& error,
                     bool made_from = false);
  void drop_corrupt(const VerifyTarget& target, bool made_from);  // core

  // any thread: filling (fill.cc)
  std::vector<Copy> cover(const Object& object, uint32_t file, std::vector<Piece>& pieces) const;
  void copy_in(const std::shared_ptr<Run>& run, const Copy& copy);
  // `bytes`: what was written there, or null where it is not at hand.
  void arrived(const std::shared_ptr<Run>& run, uint64_t dest, uint64_t length,
               const std::shared_ptr<std::byte[]>& bytes = nullptr);
  // `bytes`: the chunk's, or {} to read them back.
  void seal(const std::shared_ptr<Run>& run, uint64_t chunk, std::span<const std::byte> bytes = {});
  void finish_archive(const std::shared_ptr<Run>& run);
  void run_failed(const std::shared_ptr<Run>& run, Error error);

  // integrity (integrity.cc)
  void be_idle();  // idle: lowers the calling thread's priority for good
  void check_chunks(const std::shared_ptr<Object>& object);  // core: all chunks, on the pool
  void check_chunks_on_disk(const std::shared_ptr<Object>& object);
  void chunks_checked(const std::shared_ptr<Object>& object,
                      const std::shared_ptr<ObjectFile>& file, const Result<void>& checked);
  void check_digest(
      const std::shared_ptr<Object>& object);  // core: whole content, at idle or at once
  Result<void> check_range(Object& object, const ObjectFile& file, ByteRange range);  // any thread

  const CacheOptions options_;
  Store& store_;
  std::function<void(const std::shared_ptr<Object>&)> listener_;  // set before the first request

  mutable std::mutex mutex_;                                          // guards objects_ to pins_
  std::unordered_map<std::string, std::shared_ptr<Object>> objects_;  // by key
  // Objects by model that may hold bytes, the places to copy from.
  std::unordered_map<std::string, std::vector<std::weak_ptr<Object>>> siblings_;
  // What the last run left, until its model is mounted again and names it.
  Restored restored_;
  std::map<std::string, std::map<std::string, PutFile>> puts_;  // by model and file
  Pins pins_;
  std::mutex pins_saving_;  // one write of the pins at a time; taken before mutex_

  std::mutex buffers_mutex_;                           // guards buffers_
  std::vector<std::unique_ptr<std::byte[]>> buffers_;  // of kWriteBytes, for the next parts
  std::atomic<int> writes_{0};                         // of gathered bytes, on their way

  // core
  std::unordered_map<uint64_t, std::weak_ptr<Object>> tickets_;
  const std::unique_ptr<EvictionPolicy> policy_;
  bool held_ = false;  // advance() waits: bad objects are being dropped

  std::atomic<uint64_t> next_ticket_{1};
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> disk_used_{0}, ram_used_{0};
  std::atomic<uint64_t> hits_{0}, misses_{0}, evictions_{0}, waited_us_{0}, waited_count_{0};
  std::atomic<uint64_t> downloaded_{0}, served_{0};
  std::atomic<uint64_t> prefetch_issued_{0}, prefetch_used_{0}, prefetch_wasted_{0};
  std::atomic<uint64_t> migrated_objects_{0}, migrated_bytes_{0};
  std::atomic<int> objects_fetching_{0};

  mutable std::mutex scrub_mutex_;  // guards the next one
  ScrubState scrub_state_;
  std::vector<VerifyTarget> scrub_targets_;  // the upkeep thread's; the next one is the last

  // Last, so that they are joined before what they use goes away.
  ThreadPool pool_{"nx-hash", 2};
  ThreadPool idle_{"nx-idle", 1};                      // whole-file digests at idle priority
  ThreadPool promote_{"nx-promote", kPromoteThreads};  // wait for the disk
  ThreadPool upkeep_{"nx-upkeep", 1};  // long work at idle priority: waits for idle moments
  LoopExecutor core_{"nx-core"};
};

int64_t wall_ms();

}  // namespace nexus
