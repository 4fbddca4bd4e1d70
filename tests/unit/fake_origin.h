// An origin in memory whose transfers finish when the test says so, and a cache over it in a
// temporary directory. No test sleeps: it waits for what it expects, and fails after kPatience.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "backend/format/tensor.h"
#include "backend/origin/origin.h"
#include "backend/store/store.h"
#include "tests/unit/until.h"

namespace nexus::test {

inline constexpr uint64_t kMiB = 1 << 20;
inline const std::string kCommit(40, 'c');

std::string random_bytes(size_t size, uint64_t seed);
std::string sha256_hex(const std::string& bytes);
std::string git_oid(const std::string& bytes);
// Returns once the wall clock has moved on, so that two accesses are not of the same millisecond.
void pass_a_millisecond();

struct FakeFile {
  std::string bytes;
  std::string etag, sha256, local_path;
};

// One read that the cache asked for. All methods act on the test's thread and return when the
// callbacks they cause have returned.
class FakeTransfer final : public Transfer, public std::enable_shared_from_this<FakeTransfer> {
 public:
  FakeTransfer(ReadRequest request, std::string bytes, ThreadPool& threads);
  // For the cache.
  void cancel() override;
  void set_priority(int priority) override { priority_ = priority; }

  // For the test. What was asked:
  const std::string& path() const { return path_; }
  ByteRange range() const { return range_; }
  int priority() const { return priority_; }
  bool cancelled() const { return cancelled_; }
  bool over();
  // The next `length` true bytes.
  void deliver(uint64_t length);
  // Whatever is left, then success.
  void finish();
  void fail(Code code, const std::string& what);
  // Bytes that are not the file's, or not where they should be.
  Result<void> deliver_bytes(uint64_t offset, const std::string& bytes);
  // Success, whatever was delivered.
  void claim_success();

 private:
  void end(Result<void> result);  // holds mutex_

  const std::string path_;
  const ByteRange range_;
  const std::string bytes_;  // of the range
  ThreadPool& threads_;
  std::atomic<int> priority_;
  std::atomic<bool> cancelled_{false};

  std::mutex mutex_;  // guards the rest
  ReadRequest request_;
  uint64_t delivered_ = 0;
  bool over_ = false;
};

// Answers at once from threads of its own unless held.
class FakeOrigin final : public Origin, public std::enable_shared_from_this<FakeOrigin> {
 public:
  explicit FakeOrigin(std::string repo = "org/m") : repo_(std::move(repo)) {}
  ~FakeOrigin() override { stop(); }

  // The model's files; a test that changes one after the snapshot lies to its reader.
  void put(const std::string& path, FakeFile file);
  void put(const std::string& path, std::string bytes, bool with_sha256 = false);
  FakeFile file(const std::string& path) const;
  Snapshot snapshot(const std::string& commit = kCommit) const;
  std::shared_ptr<const ModelSource> source(const std::string& commit = kCommit);

  // Reads and loads wait for the test from now on. release(): what waits is answered, and so are
  // later ones.
  void hold() { held_ = true; }
  void hold(const std::string& path);  // only reads of this file
  void release();
  void fail_reads_of(const std::string& path, std::optional<Error> error);
  void set_reachable(bool reachable) { reachable_ = reachable; }
  void fail_loads(std::optional<Error> error);
  void serve_commit(const std::string& commit);

  // Every read so far, in the order asked; waits until there are `count`.
  std::vector<std::shared_ptr<FakeTransfer>> reads(size_t count = 0);
  // How often each byte of a file was asked for, at most and in all.
  uint64_t bytes_asked(const std::string& path);
  uint64_t most_asked(const std::string& path);
  void forget_reads();
  size_t loads_waiting(size_t at_least);
  void answer_load(Result<Snapshot> snapshot);  // the oldest that waits
  size_t loads() const;
  // Joins the threads. Call before what the callbacks use goes away.
  void stop() { threads_.stop(); }

  std::string describe() const override { return "fake"; }
  void load(const std::string& repo, const std::string& revision,
            std::function<void(Result<Snapshot>)> done) override;
  std::shared_ptr<Transfer> read(const Snapshot& snapshot, ReadRequest request) override;
  bool reachable() const override { return reachable_; }

 private:
  Snapshot snapshot_locked(const std::string& commit) const;

  const std::string repo_;
  std::atomic<bool> held_{false}, reachable_{true};
  mutable std::mutex mutex_;  // guards the rest but threads_
  std::condition_variable changed_;
  std::map<std::string, FakeFile> files_;
  std::map<std::string, Error> failing_;
  std::map<std::string, bool> held_paths_;
  std::optional<Error> load_error_;
  std::string commit_ = kCommit;
  std::vector<std::shared_ptr<FakeTransfer>> reads_;
  std::deque<std::function<void(Result<Snapshot>)>> loads_;
  size_t load_count_ = 0;
  ThreadPool threads_{"fake-origin", 2};
};

// What one asynchronous call answered; fails the test when it does not.
template <typename T>
class Answer {
 public:
  std::function<void(Result<T>)> callback() {
    return [promise = promise_](Result<T> result) { promise->set_value(std::move(result)); };
  }
  Result<T> get() {
    if (future_.wait_for(kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "no answer";
      return nexus::fail(Code::kInvalid, "no answer");
    }
    return future_.get();
  }
  bool here() const {
    return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  }

 private:
  std::shared_ptr<std::promise<Result<T>>> promise_ = std::make_shared<std::promise<Result<T>>>();
  std::shared_future<Result<T>> future_ = promise_->get_future().share();
};

// A cache directory, a store and a cache over it; restart() is what a new daemon would find.
class CacheUnderTest {
 public:
  // `zones`: their paths are below the test's directory; none: one zone in the cache's.
  // They are filled in turn, not by wear.
  explicit CacheUnderTest(CacheOptions options = {}, std::string dir = "",
                          std::vector<ZoneOptions> zones = {},
                          std::function<void(int zone)> before_zone_call = {});
  ~CacheUnderTest();
  CacheUnderTest(const CacheUnderTest&) = delete;
  CacheUnderTest& operator=(const CacheUnderTest&) = delete;

  Cache* operator->() { return cache_.get(); }
  Cache& cache() { return *cache_; }
  Store& store() { return *store_; }
  const std::string& dir() const { return dir_; }
  FakeOrigin& origin() { return *origin_; }
  std::shared_ptr<FakeOrigin> shared_origin() { return origin_; }
  // Everything is durable, then all of it goes and comes again.
  void restart(std::optional<CacheOptions> options = std::nullopt);

  std::shared_ptr<Object> blob(const std::string& path, const std::string& commit = kCommit);
  // An object over the origin's files.
  std::shared_ptr<Object> view(const std::string& name, ObjectLayout layout,
                               std::vector<HeaderDigest> headers = {});
  Answer<void> fetch(const std::shared_ptr<Object>& object, uint64_t offset, uint64_t length,
                     uint64_t* ticket = nullptr, int priority = kDemand);
  // Reads like fs does: hit or wait. The error's text when there is one.
  std::string read(const std::shared_ptr<Object>& object, uint64_t offset, uint64_t length);
  Result<std::string> try_to_read(const std::shared_ptr<Object>& object, uint64_t offset,
                                  uint64_t length);
  std::string read_all(const std::shared_ptr<Object>& object) {
    return read(object, 0, object->size());
  }
  Result<std::shared_ptr<ObjectFile>> prepare(const std::shared_ptr<Object>& object);
  // Returns when the core thread has done everything that was posted before.
  void settle();
  // Calls `condition` after each step of the core thread until it holds.
  bool until(const std::function<bool()>& condition);

 private:
  void start();
  CacheOptions options_;
  bool own_dir_;
  std::string dir_;
  std::vector<ZoneOptions> zones_;
  std::function<void(int)> before_zone_call_;  // see StoreOptions; with little patience
  std::shared_ptr<FakeOrigin> origin_ = std::make_shared<FakeOrigin>();
  std::unique_ptr<Store> store_;
  std::unique_ptr<Cache> cache_;
  std::shared_ptr<Object> clock_;  // a local file: its waiters are answered at once
};

// A safetensors file of these (name, bytes) tensors, all U8, in this order.
std::string safetensors_file(const std::vector<std::pair<std::string, std::string>>& tensors);
// A tensor of U8 at [begin, begin + size) of origin file number `file`.
TensorInfo tensor_at(const std::string& name, uint32_t file, uint64_t begin, uint64_t size);
// What the layout says the object's bytes are; the CRC fields stay as the literals have them.
std::string expected_bytes(const ObjectLayout& layout, const Snapshot& snapshot,
                           const FakeOrigin& origin);
// Walks the zip's directory and compares each record's CRC-32 in both headers with its bytes.
// Returns the number of records, -1 when anything is wrong.
int check_zip(const std::string& zip);

}  // namespace nexus::test
