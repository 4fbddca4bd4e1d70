// The table of nodeids: what the kernel calls the places of the tree.
//
// A nodeid is never reused, and the kernel refuses to mix reads through the page cache and
// passthrough on one of them. So when an object completes while handles are open, its next lookup
// gets a new nodeid with the same st_ino; old handles and mappings go on with theirs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/store/object_file.h"
#include "fs/tree.h"

namespace nexus::fs {

// How the kernel serves the open handles of a nodeid. kPages: through the daemon, with the page
// cache or FOPEN_DIRECT_IO (those two get along). Opens and this mode go together: no handle, no
// mode.
enum class IoMode { kUnset, kPages, kPassthrough };

struct InodeIo {
  IoMode mode = IoMode::kUnset;
  int opens = 0;
  bool retired = false;  // its backing file is no longer what the object is: new opens go elsewhere
  int backing_id = 0;    // of the kernel, while opens > 0 in kPassthrough
  std::shared_ptr<ObjectFile> backing;
};

class Inode {
 public:
  Inode(uint64_t nodeid_in, uint64_t parent_in, std::string name_in, NodePtr node)
      : nodeid(nodeid_in), parent(parent_in), name(std::move(name_in)), node_(std::move(node)) {}

  const uint64_t nodeid;
  const uint64_t parent;  // nodeid
  const std::string name;

  NodePtr node() const {
    std::lock_guard lock(node_mutex_);
    return node_;
  }

  std::mutex io_mutex;  // guards io; taken after the table's mutex, never before it
  InodeIo io;

 private:
  friend class Inodes;
  mutable std::mutex node_mutex_;  // guards node_
  NodePtr node_;
  uint64_t lookups_ = 0;  // guarded by the table's mutex
};
using InodePtr = std::shared_ptr<Inode>;

// Thread safety: every method may be called from any thread.
class Inodes {
 public:
  using Time = std::chrono::steady_clock::time_point;
  static constexpr uint64_t kRoot = 1;

  explicit Inodes(NodePtr root);

  // Null for a nodeid that was forgotten.
  InodePtr get(uint64_t nodeid) const;
  // The nodeid of `name` below `parent`, one lookup counted. A new one when the name has none, when
  // it stands for something else now, or when unfit(inode) says that it cannot be opened as is
  // needed now; unfit runs with inode.io_mutex held.
  InodePtr look_up(uint64_t parent, const std::string& name, NodePtr node,
                   const std::function<bool(const Inode&)>& unfit = {});
  void forget(uint64_t nodeid, uint64_t lookups);

  std::vector<InodePtr> of_object(const Object& object) const;
  std::vector<InodePtr> select(const std::function<bool(const Inode&, const Node&)>& wanted) const;
  size_t size() const;

  // An open that does not fit its nodeid is answered with ESTALE, which makes the kernel walk the
  // path again and find the new nodeid. A reopen of /proc/self/fd/N has no path to walk: the same
  // thread comes back for the same file at once. True once per thread and file within kStaleWindow:
  // answer ESTALE. Else serve what the nodeid can, so that no user ever sees the ESTALE.
  bool may_answer_stale(uint64_t inode, pid_t tid, Time now);
  static constexpr std::chrono::seconds kStaleWindow{5};

 private:
  struct Name {
    uint64_t parent;
    std::string name;
    bool operator==(const Name&) const = default;
  };
  struct NameHash {
    size_t operator()(const Name& key) const {
      return std::hash<std::string>()(key.name) ^ (key.parent * 0x9e3779b97f4a7c15u);
    }
  };
  void index_locked(const InodePtr& inode, const Node* old_node, const Node* new_node);

  mutable std::mutex mutex_;  // guards the maps
  uint64_t next_nodeid_ = kRoot + 1;
  std::unordered_map<uint64_t, InodePtr> by_nodeid_;
  std::unordered_map<Name, InodePtr, NameHash> by_name_;  // the current nodeid of each name
  std::unordered_multimap<const Object*, InodePtr> by_object_;

  std::mutex stale_mutex_;                    // guards stale_
  std::unordered_map<uint64_t, Time> stale_;  // (file, thread) mixed -> when ESTALE was answered
};

}  // namespace nexus::fs
