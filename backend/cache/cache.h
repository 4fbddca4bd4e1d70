// The one cache. Everything that serves or fetches model bytes goes through here: it owns the
// objects, their flights (one a chunk, any number of waiters), eviction and the counters.
//
// Threads: every public method may be called from any thread and returns without waiting for the
// network. Flights and waiters live on one core thread; bytes are hashed and copied on a small
// pool; `done` callbacks run on the core thread (or inline when the answer is known) and must not
// block.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/control.h"
#include "backend/cache/object.h"
#include "backend/cache/put.h"
#include "backend/ram/ram_tier.h"

namespace nexus {

enum class Integrity { kDefault, kStrict };

// How CacheOptions::bulk_read reads a file: requests of this size, and so much of them in flight.
struct BulkShape {
  uint64_t block_bytes = 1 << 20;
  uint64_t in_flight_bytes = 16 << 20;
};

// What the way to an origin wants (nexus-tune link).
struct LinkShape {
  int connections = 8;
  uint64_t part_bytes = 0;  // that one request asks for at most; 0: not known
};
// Bounds of it: smaller requests cut the writes of 2 MiB, larger ones end late.
inline constexpr uint64_t kPartBytesLeast = 8 << 20, kPartBytesMost = 64 << 20;

struct CacheOptions {
  uint64_t disk_bytes = 50'000'000'000;
  uint64_t ram_bytes = 2'000'000'000;
  Integrity integrity = Integrity::kDefault;
  int max_connections = 8;
  std::map<std::string, LinkShape> links;  // by Origin::describe(); else max_connections
  std::string eviction_policy = "lru";     // of the disk tier: a name that policy.h knows
  // How long read-ahead of an object goes on after its last handle was closed: loaders that open
  // the file anew for each tensor would otherwise have the same bytes cancelled and fetched each
  // time.
  std::chrono::milliseconds linger{2000};
  // How much one request should ask for so that the line is not idle for long between two of them
  // (host_traffic.h); 0 where that is not known. May be empty. Called on the core thread.
  std::function<uint64_t()> request_bytes = {};
  // Where copies of complete objects are served from; null: there is no RAM tier.
  std::shared_ptr<RamTier> ram;
  // How an object's file is read when it is copied there: blocks, any number of callers at once.
  // The memory starts on a page and so does every range. Null: ObjectFile::read.
  std::function<Result<void>(const ObjectFile& file, uint64_t offset, std::span<std::byte> into)>
      bulk_read;
  // The same for writing what nobody reads next: it may go past the page cache. Null:
  // ObjectFile::write.
  std::function<Result<void>(ObjectFile& file, uint64_t offset, std::span<const std::byte> from)>
      bulk_write;
  // What keeps bulk_read's disk busy for this file. Null: BulkShape's defaults.
  std::function<BulkShape(const ObjectFile& file)> bulk_shape;
  // How often objects are moved between the zones' tiers by what they are used; 0: only by
  // migrate().
  std::chrono::milliseconds migrate_interval{0};
  // How often everything complete is hashed again in the background; 0: never.
  std::chrono::milliseconds scrub_interval{0};
};

inline constexpr int kDemand = 0;      // a reader waits
inline constexpr int kReadAhead = 10;  // nobody waits yet
// Layers that nobody has asked for. This and beyond goes on the wire only while nothing else does,
// and gives way (net/http_client.h); a lower number goes first.
inline constexpr int kPrefetch = 20;
// What nobody is expected to want soon: behind every prefetch, not in its books, and the first to
// be evicted.
inline constexpr int kFill = 1 << 30;

// Counters since the mount; names of the stats JSON (shared/design.md 8).
struct CacheStats {
  uint64_t disk_cache_entries = 0, memory_cache_entries = 0;
  uint64_t disk_cache_bytes = 0, memory_cache_bytes = 0;
  uint64_t max_disk_cache_bytes = 0, max_memory_cache_bytes = 0;
  uint64_t total_hits = 0, total_misses = 0, total_evictions = 0, total_requests = 0;
  double avg_latency_ms = 0;  // of requests that waited
  uint64_t reads_waited = 0;  // requests of readers that waited for bytes and got them
  double read_wait_s = 0;     // how long they waited, together
  uint64_t bytes_downloaded = 0, bytes_served_from_cache = 0;
  uint64_t active_downloads = 0;  // objects being fetched
  // Of prefetch(): bytes asked of origins, bytes of pieces that were read since, and bytes that
  // were dropped unread.
  uint64_t prefetch_issued_bytes = 0, prefetch_used_bytes = 0, prefetch_wasted_bytes = 0;
  uint64_t migrated_objects = 0, migrated_bytes = 0;  // whose file went to another zone
  ScrubState scrub;
  std::vector<ZoneInfo> zones;
  bool cache_dir_hangs = false;  // the catalog's disk does not answer
};

// One object being fetched now, for progress displays.
struct Progress {
  std::string name;
  uint64_t bytes_done = 0, bytes_total = 0;  // of the object
  double bytes_per_s = 0;                    // over the last seconds
  int waiters = 0;
};

struct CachedObject {
  std::string model, name;
  ObjectInfo info;
};

class Cache {
 public:
  // `store` outlives the cache.
  Cache(CacheOptions options, Store& store);
  ~Cache();  // stop()

  // The object of spec.key, made if it is new. A key that is known keeps its first spec.
  std::shared_ptr<Object> object(ObjectSpec spec);

  // The hit path: copies [offset, offset + into.size()) when it is here (clipped at the end of the
  // object) and returns the count; nothing when a byte is missing. Runs inline on the caller's
  // thread. `waited`: the reader waited for a fetch of these bytes, so this is no hit.
  std::optional<Result<size_t>> try_read(Object& object, uint64_t offset, std::span<std::byte> into,
                                         bool waited = false);

  // Makes [range) present, then calls done once. Returns a ticket for cancel(). An object that is
  // `whole` is always fetched whole. Read-ahead passes kReadAhead and may pass an empty done.
  using Done = std::function<void(Result<void>)>;
  uint64_t fetch(const std::shared_ptr<Object>& object, ByteRange range, int priority, Done done);

  // The same for nobody yet: `priority` is kPrefetch or beyond, done follows as for a reader, and
  // cancel() ends what no reader has come to wait for. Whoever asks for the bytes meanwhile makes
  // it theirs.
  uint64_t prefetch(const std::shared_ptr<Object>& object, ByteRange range, int priority,
                    Done done);

  // Makes the object complete and trusted (each chunk's hash checked once in this process), then
  // gives its file: what passthrough and whole-file opens need. local_path objects give the file in
  // place.
  using FileDone = std::function<void(Result<std::shared_ptr<ObjectFile>>)>;
  uint64_t prepare(const std::shared_ptr<Object>& object, FileDone done);
  // The same when it is known at once, without waiting: complete and trusted. Else null.
  std::shared_ptr<ObjectFile> ready_file(Object& object);
  // The same for who is going to read the file past us, where nobody hears of the disk's errors:
  // what lies on a disk that gives nothing back is dropped, and null. Of a file that is not in the
  // page cache it reads a page at each end; as slow as the disk.
  std::shared_ptr<ObjectFile> file_to_open(Object& object);
  // Copies a complete object into the RAM tier, if that has or can make room; a hint.
  void promote(const std::shared_ptr<Object>& object);

  // done(kCancelled) follows at once unless it was called already; the last waiter's leaving
  // cancels the flight. Safe inside an interrupt callback: it only posts.
  void cancel(uint64_t ticket);
  // The last handle was closed: unless it is opened again within CacheOptions::linger, what is on
  // its way and nobody waits for ends.
  void abandon(const std::shared_ptr<Object>& object);

  // Counts a hit that the kernel serves without us (passthrough open).
  void count_passthrough_open(Object& object);
  // XXH3-64 of the whole content; absent unless resident. Computed on the pool once, then
  // remembered.
  void content_hash(const std::shared_ptr<Object>& object,
                    std::function<void(Result<uint64_t>)> done);

  // Drops the cached bytes of one object; open handles and mappings keep theirs.
  void drop(const std::shared_ptr<Object>& object);
  // Called, from the core thread, when an object became complete or was dropped: fs gives it a new
  // nodeid.
  void on_change(std::function<void(const std::shared_ptr<Object>&)> listener);

  // --- Files without an origin (put.h, put.cc) ---

  // Keeps `put.size` bytes as a file of the model, in the place of what was put there before.
  // `done` comes from one of the cache's threads: the object is readable then, and durable after
  // flush(). kLimit: larger than the cache; kNoSpace and kDisk: the disk takes it not, and then
  // nothing of it stays.
  void put(PutFile put, PutRead read, std::function<void(Result<void>)> done);
  // The object, resident, or null: nothing was put there, or it has been dropped since.
  std::shared_ptr<Object> find_put(const std::string& model, const std::string& file);
  std::vector<std::string> put_files(const std::string& model) const;
  std::vector<std::string> put_models() const;

  // --- Control (control.h, control.cc). Callbacks come from the cache's threads. ---

  // Drops the bytes of whatever matches, pinned or not; open handles and mappings keep theirs, what
  // is on its way begins anew for those who wait.
  void invalidate(ObjectFilter filter, std::function<void(Dropped)> done);
  // The cache as new: every byte, pin, listing and header goes.
  void clear(std::function<void(Result<Dropped>)> done);
  // Whatever the pin names is not evicted from now on, what is absent too once it is here. `done`
  // when it is written down; on an error the pin holds until the restart.
  void pin(const Pin& pin, std::function<void(Result<void>)> done);
  // kNotFound when nothing was pinned by that name. A pin of a whole model is not undone file by
  // file.
  void unpin(const Pin& pin, std::function<void(Result<void>)> done);
  Pins pins() const;
  bool is_pinned(const std::string& model, const std::string& file) const;
  // Hashes everything that matches again, at idle priority, and drops what is not as it was
  // written. `progress` at each chunk.
  std::shared_ptr<CacheJob> verify(VerifyOptions options,
                                   std::function<void(const VerifyProgress&)> progress,
                                   std::function<void(Result<VerifyReport>)> done);
  // Objects go where their use says they should be (tiering.h), one after the other, while nobody
  // waits for a fetch.
  std::shared_ptr<CacheJob> migrate(std::function<void(const VerifyProgress&)> progress,
                                    std::function<void(Result<MigrationReport>)> done);
  // verify(), then objects are moved where that evens out the zones, files of no object are removed
  // and the catalog is compacted.
  std::shared_ptr<CacheJob> optimize(std::function<void(const VerifyProgress&)> progress,
                                     std::function<void(Result<OptimizeReport>)> done);
  // Everything cached so far is durable when done is called.
  void flush(std::function<void()> done);

  CacheStats stats() const;
  std::vector<Progress> progress() const;
  std::vector<CachedObject> list() const;  // everything with a byte here or on its way

  // Ends every wait with kCancelled and every transfer, then joins. Idempotent.
  void stop();

 private:
  struct Impl;
  // Shared with transfers that may still deliver while the cache goes away.
  std::shared_ptr<Impl> impl_;
};

}  // namespace nexus
