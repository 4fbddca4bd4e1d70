// The cache on disk: zone directories that hold object files with sidecars, and the catalog
// (SQLite, WAL) that says what is in them. Issue 4 deepens it behind this interface (wear, tiers,
// RAM, io_uring).
//
//   cache_dir/                 0700
//     lock                     flock: one daemon a cache_dir
//     pins                     what may not be evicted (pins.h)
//     catalog.db               SQLite, WAL; lost or damaged: rebuilt from the sidecars
//     zone_0/ .. zone_{n-1}/   (or elsewhere, StoreOptions::zones) objects/<2 hex>/<32 hex> and <32
//     hex>.meta beside it, all 0600
//
// Order for every object: bytes written -> fdatasync(file) -> sidecar written under a temporary
// name, synced and renamed -> fsync(directory) -> row committed. A file without row and sidecar is
// removed at start. Sparse objects are checkpointed in batches (64 MiB or 1 s), complete ones at
// once. Files are named at random: no name is used twice, so nobody ever opens another object's
// file.
//
// Thread safety: every method may be called from any thread. Writes to the catalog run on the
// store's own thread; nothing here waits for them but flush() and close().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "backend/store/pins.h"

namespace nexus {

// A zone that the configuration names. Its number is its place in the list, so a list grows at its
// end.
struct ZoneOptions {
  std::string path;              // its directory, made where it is missing
  uint64_t size_bytes = 0;       // 0: as the disk allows
  std::string tier;              // "nvme", "ssd", "hdd", "nfs"; "" is worked out from the device
  uint64_t endurance_bytes = 0;  // 0: not known
};

struct StoreOptions {
  std::string cache_dir;
  int num_zones = 4;
  std::vector<ZoneOptions> zones;  // instead of num_zones directories in cache_dir
  // Over it no object is placed until the next day, UTC; 0: no limit. Goes on after a restart.
  uint64_t daily_write_budget_bytes = 0;
  bool wear_leveling = true;  // false: objects go to the zone with most room, here simply zone 0
  bool persist = true;        // false: the cache starts empty (what was left is removed)
  // A zone whose file system has not answered a call for this long is left alone until it does.
  std::chrono::milliseconds hang_patience{10'000};
  // For tests: runs on the call's own thread before each call on a zone, or on what lies in
  // cache_dir itself (kCacheDirCall), and may hang like a disk.
  std::function<void(int zone)> before_zone_call = {};
};
inline constexpr int kCacheDirCall = -1;

// What is known of an object beside its bytes; kept in the sidecar and in the row.
struct ObjectMeta {
  std::string key;        // identity: derived from content (see cache/object.h), at most 1 KiB
  std::string model;      // "org/name", for listing and invalidation
  std::string name;       // for people: "org/name@commit/layer_0.pt"
  std::string sha256;     // what the hub says of a blob, or ""
  bool verified = false;  // the sha256 was checked against the bytes
  uint64_t size = 0;
  int64_t last_access_ms = 0;  // wall clock, for eviction across restarts
  uint64_t hits = 0;
};

struct StoredObject {
  ObjectMeta meta;
  std::shared_ptr<ObjectFile> file;
};

struct ZoneInfo {
  std::string path;
  std::string tier;              // "nvme", "ssd", "hdd", "nfs"; worked out from the device
  uint64_t bytes_written = 0;    // ever, persistent
  uint64_t size_bytes = 0;       // of its file system
  uint64_t used_bytes = 0;       // by this cache's objects (present chunks)
  std::string health;            // "ok", "unstable", "down"
  uint64_t endurance_bytes = 0;  // 0: not known
  uint64_t free_bytes = 0;       // for another object: above the reserve, within the zone's size
  uint64_t device = 0;           // of its file system: zones that share it share their room
  bool writable = true;
  // Its disk did not answer when the store was opened: what objects lie there is not known, and the
  // next start finds them.
  bool unread = false;
};

// A model's listing and headers as the origin gave them, so that a restart or a dead origin does
// not need it again. `snapshot` and `headers` are opaque to the store (serialised by model/).
struct StoredModel {
  std::string repo;      // key together with revision
  std::string revision;  // as asked
  std::string commit;
  std::string snapshot;
};

class Store {
 public:
  // kInvalid when cache_dir is not usable (names the reason and the path); kLimit when another
  // daemon holds it (names its pid).
  static Result<std::unique_ptr<Store>> open(StoreOptions options);
  ~Store();  // close()

  // What survived the last run: every object whose row or sidecar and file agree. Called once, at
  // start. Objects whose file is missing or has the wrong size, as far as a start looks
  // (recovery.h), or whose sidecar does not parse are dropped and logged. Those in a zone whose
  // disk hangs are left as they are and not among them.
  std::vector<StoredObject> take_objects();

  // A new, empty object file (st_size is the final size at once). `whole` objects are fallocated.
  // kNoSpace, kDisk. An object of the same key that still exists is replaced (old readers keep
  // theirs).
  Result<std::shared_ptr<ObjectFile>> create(const ObjectMeta& meta, bool whole);
  // More chunks are present: persist soon, batched; at once when the file is complete. Cheap.
  void checkpoint(const std::shared_ptr<ObjectFile>& file, const ObjectMeta& meta);
  // The file is unlinked at once, then its sidecar; its row goes with the next batch. That order
  // means that no crash brings it back. Open descriptors and mappings stay valid. Once is enough:
  // an object that was removed or replaced already is left alone.
  void remove(const std::shared_ptr<ObjectFile>& file);

  // Moving a complete object's file to another zone (relocation.h). begin_move() makes the empty
  // copy: kNoSpace, kDisk, kLimit (the write budget, or it is being moved already), kCancelled (it
  // was removed). The caller writes and seals every chunk of it; settle_move() makes it durable and
  // waits for the disk; commit_move() makes it the object's file and removes the old one, false
  // when the object was removed meanwhile. Each move ends with commit_move() or discard_move().
  Result<std::shared_ptr<ObjectFile>> begin_move(const std::shared_ptr<ObjectFile>& from, int zone);
  Result<void> settle_move(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta);
  bool commit_move(const std::shared_ptr<ObjectFile>& from,
                   const std::shared_ptr<ObjectFile>& copy);
  void discard_move(const std::shared_ptr<ObjectFile>& copy);
  // What may still be written today; UINT64_MAX without a budget.
  uint64_t write_budget_left() const;

  // Where the next object of `size` bytes goes: the least worn zone with room.
  Result<int> get_write_zone(uint64_t size);
  std::vector<ZoneInfo> zones() const;
  // Runs a call on the zone's disk, of which HangGuard::run() says what it must own. False: it
  // hangs.
  bool run_on_zone(int zone, std::function<void()> call) const;
  // cache_dir's own disk does not answer: the catalog gives nothing and takes nothing.
  bool hangs() const;
  uint64_t free_bytes() const;  // of the cache's file system above the reserve of 5 %

  void save_model(const StoredModel& model);
  std::optional<StoredModel> load_model(const std::string& repo, const std::string& revision);
  std::vector<StoredModel> list_models();  // without the snapshot text
  // Header bytes by content identity ("<repo>/<etag-or-commit>/<path>"): what was read of a shard
  // or checkpoint to know its tensors.
  void save_header(const std::string& id, const std::string& bytes);
  std::optional<std::string> load_header(const std::string& id);

  // What was pinned (pins.h). Without `persist` nothing is, after a restart.
  Pins load_pins();
  Result<void> save_pins(const Pins& pins);  // durable on return

  // Upkeep; each may take seconds and waits for the disk.
  struct Orphans {
    uint64_t files = 0, bytes = 0;
  };
  // Removes files in the zones that belong to no object.
  Orphans remove_orphans();
  struct Compaction {
    uint64_t bytes_before = 0, bytes_after = 0;  // of the catalog with its journal
  };
  Result<Compaction> compact();
  // Forgets the models' listings and headers.
  Result<void> forget_models();

  void flush();  // everything checkpointed so far is durable on return
  void close();  // flush(), then release the lock; idempotent

 private:
  struct Impl;
  explicit Store(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nexus
