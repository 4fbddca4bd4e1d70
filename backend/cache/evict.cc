// Dropping objects: by request, because a source was wrong, and when the disk limit is reached.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <tuple>

#include "backend/cache/impl.h"

namespace nexus {

void Cache::Impl::add_charge(Object& object, uint64_t bytes) {
  object.charged_ += bytes;
  if (auto file = object.file(); file && file->zone() < 0) {
    ram_used_ += bytes;
  } else {
    disk_used_ += bytes;
  }
}

void Cache::Impl::drop(const std::shared_ptr<Object>& object, bool to_memory) {
  if (!object->spec().local_path.empty()) return;
  std::shared_ptr<ObjectFile> file;
  {
    std::lock_guard lock(object->mutex_);
    file = std::move(object->file_);
    object->file_.reset();
    object->content_hash_.reset();
  }
  if (!file) return;
  for (const auto& run : object->runs_) settle_prefetch(*run);
  prefetch_wasted_ += object->prefetched_.take({0, object->size()});
  object->trusted_ = false;
  object->digest_ok_ = false;
  (file->zone() < 0 ? ram_used_ : disk_used_) -= object->charged_;
  object->charged_ = 0;
  object->completed_ = false;
  object->in_memory_ = to_memory;
  if (file->zone() >= 0) store_.remove(file);
  // Runs write into the old file, which nobody will read: they end, and whoever waits begins anew.
  for (const auto& run : std::vector(object->runs_)) {
    end_run(run, fail(Code::kCancelled, "the object was dropped"));
  }
  if (listener_) listener_(object);
}

void Cache::Impl::drop_made_from(const std::shared_ptr<Object>& blob) {
  if (blob->spec().layout.extents.empty())
    return drop(blob);  // of no bytes: nothing is made from it
  const uint64_t id = blob->file_id(blob->spec().layout.extents.front().file);
  {
    // Views of an earlier run that nobody has named yet: what they are made of is not known.
    std::lock_guard lock(mutex_);
    std::erase_if(restored_, [&](const auto& entry) {
      const StoredObject& stored = entry.second;
      if (stored.meta.model != blob->spec().model || stored.meta.key.starts_with("blob:"))
        return false;
      disk_used_ -= stored.file->present_bytes();
      store_.remove(stored.file);
      return true;
    });
  }
  // Nobody begins anew before all of it is gone, else the bad bytes would be copied from a sibling.
  std::vector<std::shared_ptr<Object>> dropped;
  held_ = true;
  for (const auto& object : all_objects()) {
    if (object->spec().model != blob->spec().model) continue;
    const auto& extents = object->source_extents();
    const bool uses = std::any_of(extents.begin(), extents.end(),
                                  [id](const auto& extent) { return extent.file_id == id; });
    if (!uses || !object->file()) continue;
    spdlog::warn("{}: dropped, it was made from {}", object->spec().name, blob->spec().name);
    drop(object);
    dropped.push_back(object);
  }
  held_ = false;
  for (const auto& object : dropped) advance(object);
}

// Idle objects in memory go, the oldest first, until `bytes` more fit.
void Cache::Impl::evict_memory(uint64_t bytes) {
  // What was fetched ahead and is still to be read goes last.
  std::vector<std::tuple<bool, int64_t, std::shared_ptr<Object>>> victims;
  for (auto& object : all_objects()) {
    if (object->charged_ == 0 || !object->in_memory_ || object->opens_ > 0) continue;
    if (!object->runs_.empty() || !object->waiters_.empty()) continue;
    victims.emplace_back(object->prefetched_unread(), object->last_access_ms_, object);
  }
  std::sort(victims.begin(), victims.end());
  for (const auto& [unread, used, object] : victims) {
    if (ram_used_ + bytes <= options_.ram_bytes) return;
    ++evictions_;
    drop(object);
  }
}

void Cache::Impl::evict() {
  if (disk_used_ <= options_.disk_bytes) return;
  // Oldest first; what is open, on its way or waited for stays, even over the limit: a reader that
  // is served now matters more than the last megabyte of the bound. What was fetched ahead and is
  // still to be read goes last.
  struct Victim {
    bool unread;
    int64_t last_access_ms;
    std::shared_ptr<Object> object;  // or, of a model not mounted since the start:
    std::string restored;
  };
  std::vector<Victim> victims;
  for (auto& object : all_objects()) {
    if (object->charged_ == 0 || object->in_memory_ || object->opens_ > 0) continue;
    if (!object->runs_.empty() || !object->waiters_.empty()) continue;
    victims.push_back({object->prefetched_unread(), object->last_access_ms_, object, ""});
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, stored] : restored_) {
      victims.push_back({false, stored.meta.last_access_ms, nullptr, key});
    }
  }
  std::sort(victims.begin(), victims.end(), [](auto& a, auto& b) {
    return std::tie(a.unread, a.last_access_ms) < std::tie(b.unread, b.last_access_ms);
  });
  for (const Victim& victim : victims) {
    if (disk_used_ <= options_.disk_bytes) return;
    ++evictions_;
    if (victim.object) {
      spdlog::info("{}: evicted", victim.object->spec().name);
      drop(victim.object);
      continue;
    }
    std::lock_guard lock(mutex_);
    auto it = restored_.find(victim.restored);
    if (it == restored_.end()) continue;
    disk_used_ -= it->second.file->present_bytes();
    store_.remove(it->second.file);
    restored_.erase(it);
  }
}

}  // namespace nexus
