#include "backend/store/relocation.h"

namespace nexus {

Result<void> Relocations::begin(const std::shared_ptr<ObjectFile>& from,
                                const std::shared_ptr<ObjectFile>& copy) {
  std::lock_guard lock(mutex_);
  Result<void> begun;
  if (moves_.contains(from->key())) {
    begun = fail(Code::kLimit, from->path() + ": is being moved already");
  } else if (writer_.find(from->key()) != from) {
    begun = fail(Code::kCancelled, from->path() + ": was removed");
  } else {
    moves_.emplace(from->key(), Move{copy});
  }
  if (!begun) unlink_(*copy);
  return begun;
}

Result<void> Relocations::settle(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta,
                                 uint64_t generation) {
  if (auto synced = copy->sync(); !synced) return synced;
  if (auto saved = writer_.save_copy(copy, meta, generation); !saved) return saved;
  std::lock_guard lock(mutex_);
  auto it = moves_.find(copy->key());
  if (it == moves_.end() || it->second.copy != copy) {
    return fail(Code::kCancelled, copy->path() + ": its object was removed");
  }
  it->second.generation = generation;
  it->second.verified = meta.verified;
  return {};
}

bool Relocations::commit(const std::shared_ptr<ObjectFile>& from,
                         const std::shared_ptr<ObjectFile>& copy) {
  std::lock_guard lock(mutex_);
  auto it = moves_.find(copy->key());
  if (it == moves_.end() || it->second.copy != copy || it->second.generation == 0) return false;
  const Move move = it->second;
  moves_.erase(it);
  if (writer_.replace(from, copy, move.generation, move.verified)) return true;
  unlink_(*copy);
  return false;
}

void Relocations::discard(const std::shared_ptr<ObjectFile>& copy) {
  std::lock_guard lock(mutex_);
  auto it = moves_.find(copy->key());
  if (it == moves_.end() || it->second.copy != copy) return;
  moves_.erase(it);
  unlink_(*copy);
}

void Relocations::abandon(const std::string& key) {
  std::lock_guard lock(mutex_);
  auto it = moves_.find(key);
  if (it == moves_.end()) return;
  unlink_(*it->second.copy);
  moves_.erase(it);
}

void Relocations::add_paths(std::unordered_set<std::string>& paths) const {
  std::lock_guard lock(mutex_);
  for (const auto& [key, move] : moves_) paths.insert(move.copy->path());
}

}  // namespace nexus
