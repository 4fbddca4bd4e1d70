#include "fs/inodes.h"

#include <algorithm>
#include <utility>

namespace nexus::fs {

namespace {
// Answers remembered; beyond it old ones are dropped, and then all: an ESTALE too many costs a
// lookup.
constexpr size_t kStaleMax = 4096;
}  // namespace

Inodes::Inodes(NodePtr root) {
  auto inode = std::make_shared<Inode>(kRoot, kRoot, "", std::move(root));
  inode->lookups_ = 1;  // the kernel never forgets it
  by_nodeid_.emplace(kRoot, inode);
}

InodePtr Inodes::get(uint64_t nodeid) const {
  std::lock_guard lock(mutex_);
  const auto it = by_nodeid_.find(nodeid);
  return it == by_nodeid_.end() ? nullptr : it->second;
}

InodePtr Inodes::look_up(uint64_t parent, const std::string& name, NodePtr node,
                         const std::function<bool(const Inode&)>& unfit) {
  std::lock_guard lock(mutex_);
  const auto it = by_name_.find(Name{parent, name});
  if (it != by_name_.end()) {
    InodePtr inode = it->second;
    const NodePtr old_node = inode->node();
    bool fits = old_node->same(*node);
    if (fits && unfit) {
      std::lock_guard io_lock(inode->io_mutex);
      fits = !unfit(*inode);
    }
    if (fits) {
      // Not only the same place: what is known of it may be newer (an error that went away).
      index_locked(inode, old_node.get(), node.get());
      {
        std::lock_guard node_lock(inode->node_mutex_);
        inode->node_ = std::move(node);
      }
      ++inode->lookups_;
      return inode;
    }
    by_name_.erase(it);
  }
  auto inode = std::make_shared<Inode>(next_nodeid_++, parent, name, node);
  inode->lookups_ = 1;
  by_nodeid_.emplace(inode->nodeid, inode);
  by_name_.emplace(Name{parent, name}, inode);
  index_locked(inode, nullptr, node.get());
  return inode;
}

void Inodes::forget(uint64_t nodeid, uint64_t lookups) {
  InodePtr gone;  // destroyed without the lock
  std::lock_guard lock(mutex_);
  const auto it = by_nodeid_.find(nodeid);
  if (it == by_nodeid_.end() || nodeid == kRoot) return;
  InodePtr inode = it->second;
  inode->lookups_ -= std::min(lookups, inode->lookups_);
  if (inode->lookups_ > 0) return;
  gone = inode;
  index_locked(inode, inode->node().get(), nullptr);
  by_nodeid_.erase(it);
  const auto named = by_name_.find(Name{inode->parent, inode->name});
  if (named != by_name_.end() && named->second == inode) by_name_.erase(named);
}

void Inodes::index_locked(const InodePtr& inode, const Node* old_node, const Node* new_node) {
  const Object* old_object = old_node ? old_node->entry.object.get() : nullptr;
  const Object* new_object = new_node ? new_node->entry.object.get() : nullptr;
  if (old_object == new_object) return;
  if (old_object) {
    const auto [begin, end] = by_object_.equal_range(old_object);
    for (auto it = begin; it != end; ++it) {
      if (it->second == inode) {
        by_object_.erase(it);
        break;
      }
    }
  }
  if (new_object) by_object_.emplace(new_object, inode);
}

std::vector<InodePtr> Inodes::of_object(const Object& object) const {
  std::vector<InodePtr> result;
  std::lock_guard lock(mutex_);
  const auto [begin, end] = by_object_.equal_range(&object);
  for (auto it = begin; it != end; ++it) result.push_back(it->second);
  return result;
}

std::vector<InodePtr> Inodes::select(
    const std::function<bool(const Inode&, const Node&)>& wanted) const {
  std::vector<InodePtr> all, result;
  {
    std::lock_guard lock(mutex_);
    all.reserve(by_nodeid_.size());
    for (const auto& [nodeid, inode] : by_nodeid_) all.push_back(inode);
  }
  for (auto& inode : all) {
    if (wanted(*inode, *inode->node())) result.push_back(std::move(inode));
  }
  return result;
}

size_t Inodes::size() const {
  std::lock_guard lock(mutex_);
  return by_nodeid_.size();
}

bool Inodes::may_answer_stale(uint64_t inode, pid_t tid, Time now) {
  const uint64_t key = inode ^ (static_cast<uint64_t>(tid) * 0x9e3779b97f4a7c15u);
  std::lock_guard lock(stale_mutex_);
  if (stale_.size() >= kStaleMax) {
    std::erase_if(stale_, [&](const auto& item) { return now - item.second > kStaleWindow; });
    if (stale_.size() >= kStaleMax) stale_.clear();
  }
  auto [it, fresh] = stale_.try_emplace(key, now);
  if (!fresh) {
    if (now - it->second <= kStaleWindow) return false;
    it->second = now;
  }
  return true;
}

}  // namespace nexus::fs
