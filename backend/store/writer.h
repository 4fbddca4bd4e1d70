// The store's one writing thread: it makes checkpoints durable in batches and alone changes the
// catalog. It also is the register of the objects that exist, since a checkpoint of an object that
// was removed or replaced must not bring it back.
//
// A batch, in this order:
//   1. for each object: bitmap copied -> fdatasync(file) -> sidecar replaced (synced under a
//   temporary
//      name, renamed). The copy comes first, so every chunk it names was written before the sync.
//   2. the directories synced
//   3. sidecars of objects that were removed meanwhile unlinked again
//   4. one transaction: rows put, rows of removed objects deleted, wear, models, headers
// A crash between any two leaves a sidecar that is true; a row that is missing or behind is made up
// for by it at start (recovery.h). So a failed transaction is dropped, but for models and headers,
// which are kept and tried again.
//
// Thread safety: every method may be called from any thread; only flush() and stop() wait.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "backend/base/executor.h"
#include "backend/store/catalog.h"
#include "backend/store/hang_guard.h"
#include "backend/store/object_file.h"
#include "backend/store/store.h"
#include "backend/store/zones.h"

namespace nexus {

class StoreWriter {
 public:
  // `persist` false: objects are not written down, models and headers are (for this run).
  // `follow_wear`: the zones' wear is written down while it grows, not only with what caused it.
  // `disk`: guards the calls on the catalog's disk; while that hangs nothing is found in the
  // catalog, and what is to be written waits.
  StoreWriter(std::unique_ptr<Catalog> catalog, std::shared_ptr<HangGuard> disk,
              std::vector<std::shared_ptr<Zone>> zones, bool persist, bool follow_wear = false);
  ~StoreWriter();  // stop()

  // Registers an object; returns the one that had its key.
  std::shared_ptr<ObjectFile> add(std::shared_ptr<ObjectFile> file, uint64_t generation);
  // So many are going to be registered.
  void reserve(size_t objects);
  // Registers one that was found on disk. With `meta` its row, and its sidecar unless it is
  // current, are written again soon.
  void add_restored(std::shared_ptr<ObjectFile> file, uint64_t generation, bool sidecar_current,
                    const ObjectMeta* meta);
  std::shared_ptr<ObjectFile> find(const std::string& key);
  void checkpoint(const std::shared_ptr<ObjectFile>& file, const ObjectMeta& meta);
  // Its row is deleted soon. False: it was not registered (any more).
  bool forget(const std::shared_ptr<ObjectFile>& file);
  void forget_rows(std::vector<std::string> files);

  // The sidecar of a complete file that is registered under no key (relocation.h), whose bytes are
  // synced: durable on return, and gone again if the file was retired meanwhile.
  Result<void> save_copy(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta,
                         uint64_t generation);
  // `copy`, saved so, takes the place of `from`, whose row is deleted soon. False: `from` is not
  // registered (any more), nothing was changed.
  bool replace(const std::shared_ptr<ObjectFile>& from, const std::shared_ptr<ObjectFile>& copy,
               uint64_t generation, bool verified);

  // Loads see what was saved before, committed or not.
  void save_model(const StoredModel& model);
  std::optional<StoredModel> load_model(const std::string& repo, const std::string& revision);
  std::vector<StoredModel> list_models();
  void save_header(const std::string& id, const std::string& bytes);
  std::optional<std::string> load_header(const std::string& id);
  void save_day(CatalogDay day);

  // The files of all objects that are registered.
  std::unordered_set<std::string> paths();
  // What was saved and what is still to be.
  Result<void> forget_models();
  Result<void> compact();

  // Closes descriptors of idle objects when more than half of those that the process may have are
  // open.
  void trim_descriptors();

  void flush();
  // Everything is written, then nothing more is accepted. Idempotent.
  void stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Live {
    std::shared_ptr<ObjectFile> file = {};
    uint64_t generation = 0;
    int64_t saved_chunks = -1;  // that the sidecar vouches for; -1: there is none
    bool saved_verified = false;
    std::chrono::milliseconds retry{0};  // 0: its last save went well
  };
  struct Dirty {
    ObjectMeta meta;
    Clock::time_point due;
  };
  struct Work {  // one object of a batch
    Live live;
    ObjectMeta meta;
    std::string record = {};
    int64_t present = 0;
    bool saved = false;
  };
  template <typename T>
  struct Unsaved {  // until the transaction that holds it has committed
    std::shared_ptr<const T> value;
    uint64_t sequence = 0;
  };
  struct Batch {
    std::vector<Work> work;
    std::set<std::string> directories;  // to be synced
    // Shared with a transaction that hangs.
    std::shared_ptr<CatalogBatch> rows = std::make_shared<CatalogBatch>();
    uint64_t up_to_sequence = 0;
  };

  // Runs a sync on the file system of the zone that `path` lies in; kDisk when that hangs.
  Result<void> guarded(const std::string& path, std::function<Result<void>()> call);
  // The same for the catalog's.
  Result<void> on_catalog(std::function<Result<void>(Catalog&)> call);
  // What the catalog has; an error when its disk hangs.
  template <typename T, typename... Names>
  Result<T> ask_catalog(Result<T> (Catalog::*load)(const Names&...), const Names&... names) {
    return disk_->get([=, catalog = catalog_] { return (catalog.get()->*load)(names...); })
        .value_or(hang_error("catalog"));
  }
  void remove_sidecar(const ObjectFile& file);
  static bool urgent(const Live& live, const ObjectMeta& meta);
  void wake(bool now);
  void arm(std::chrono::milliseconds delay);
  void run_batch(bool everything);
  Batch take_batch(bool everything);
  Result<void> save_objects(Batch& batch);
  std::set<std::string> sync_directories(const std::set<std::string>& directories,
                                         Result<void>& first);
  Result<void> save_object(Work& work, Batch& batch);
  void finish_batch(Batch& batch, const Result<void>& saved, const Result<void>& committed);
  // When the next batch is due; max(): none is.
  Clock::time_point next_due(Clock::time_point now) const;
  void report(const Result<void>& outcome, const char* what, bool& failing);

  std::shared_ptr<Catalog> catalog_;  // shared with calls that hang
  const std::shared_ptr<HangGuard> disk_;
  const std::vector<std::shared_ptr<Zone>> zones_;
  const bool persist_, follow_wear_;

  std::set<std::string> anchored_;  // directories whose own names are durable; for the thread alone

  std::mutex stop_mutex_;  // held by flush() and stop(), so that neither posts to a stopped thread

  const int descriptors_max_;
  std::atomic<int> trim_at_;  // when descriptors_max_ are in use anyway, do not look at each call

  std::mutex mutex_;                                   // guards everything below
  std::unordered_map<std::string_view, Live> live_;    // by key; the key is the file's
  std::unordered_map<std::string_view, Dirty> dirty_;  // keys of live_
  std::vector<std::string> removed_;                   // paths
  std::map<std::pair<std::string, std::string>, Unsaved<StoredModel>> models_;
  std::map<std::string, Unsaved<std::string>> headers_;
  std::optional<Unsaved<CatalogDay>> day_;
  std::map<int, uint64_t> saved_wear_;
  uint64_t unsaved_bytes_ = 0;  // of headers and snapshots
  uint64_t sequence_ = 0;
  std::chrono::milliseconds catalog_retry_{0};  // 0: the last transaction went well
  Clock::time_point catalog_retry_at_{};        // models and headers wait until then
  bool objects_failing_ = false, catalog_failing_ = false;
  bool woken_ = false, armed_ = false, stopped_ = false;

  LoopExecutor thread_;  // last: it ends before what it uses
};

}  // namespace nexus
