// Moving an object's file to another zone, so that it is whole in exactly one at every moment:
//
//   1. the copy is made under a name of its own, belonging to no object; died here, it is garbage
//   2. its bytes, then its sidecar, then the directory are durable (settle); died here, both are
//      found and the copy is the newer
//   3. the copy is registered as the object's file (commit) and the old file goes as one that was
//      removed does: the file, then its sidecar, its row with the next batch
//
// Who has the old file open or mapped keeps it. An object that is removed before step 3 takes its
// copy along first, so that no crash brings it back.
//
// Thread safety: every method may be called from any thread; settle() waits for the disk.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "backend/store/writer.h"

namespace nexus {

class Relocations {
 public:
  // `unlink` removes a file and its sidecar.
  using Unlink = std::function<void(ObjectFile&)>;
  Relocations(StoreWriter& writer, Unlink unlink) : writer_(writer), unlink_(std::move(unlink)) {}

  // `copy` is on its way to replace `from`. kCancelled when `from` is no object's file (any more),
  // kLimit when it is being moved already; the copy is removed then.
  Result<void> begin(const std::shared_ptr<ObjectFile>& from,
                     const std::shared_ptr<ObjectFile>& copy);
  // Step 2. The copy is complete.
  Result<void> settle(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta,
                      uint64_t generation);
  // The registering of step 3. False: the object was removed meanwhile, and its copy with it. True:
  // the caller unlinks `from`.
  bool commit(const std::shared_ptr<ObjectFile>& from, const std::shared_ptr<ObjectFile>& copy);
  // It came to nothing.
  void discard(const std::shared_ptr<ObjectFile>& copy);
  // The object of this key is being removed.
  void abandon(const std::string& key);

  void add_paths(std::unordered_set<std::string>& paths) const;

 private:
  struct Move {
    std::shared_ptr<ObjectFile> copy;
    uint64_t generation = 0;
    bool verified = false;
  };
  StoreWriter& writer_;
  const Unlink unlink_;
  mutable std::mutex mutex_;                     // guards the map; taken before the writer's
  std::unordered_map<std::string, Move> moves_;  // by key
};

}  // namespace nexus
