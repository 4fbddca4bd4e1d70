// What the cache tells of itself: figures, what is on its way, what is here.
#include <algorithm>
#include <mutex>
#include <utility>

#include "backend/cache/cache.h"
#include "backend/cache/impl.h"

namespace nexus {

CacheStats Cache::stats() const {
  CacheStats stats;
  for (const auto& object : impl_->all_objects()) {
    const ObjectInfo info = object->info();
    if (object->fetching_) ++stats.active_downloads;
    if (info.bytes_cached == 0) continue;
    if (info.tier == "ram") ++stats.memory_cache_entries;
    if (info.zone >= 0) ++stats.disk_cache_entries;
  }
  {
    std::lock_guard lock(impl_->mutex_);
    stats.disk_cache_entries += impl_->restored_.size();
  }
  stats.disk_cache_bytes = impl_->disk_used_;
  const RamTier* ram = impl_->options_.ram.get();
  stats.memory_cache_bytes = ram ? ram->used_bytes() : impl_->ram_used_.load();
  stats.max_disk_cache_bytes = impl_->options_.disk_bytes;
  stats.max_memory_cache_bytes = ram ? ram->limit_bytes() : impl_->options_.ram_bytes;
  stats.total_hits = impl_->hits_;
  stats.total_misses = impl_->misses_;
  stats.total_requests = stats.total_hits + stats.total_misses;
  stats.total_evictions = impl_->evictions_;
  const uint64_t waited = impl_->waited_count_;
  stats.avg_latency_ms =
      waited ? static_cast<double>(impl_->waited_us_) / 1000.0 / static_cast<double>(waited) : 0;
  stats.reads_waited = waited;
  stats.read_wait_s = static_cast<double>(impl_->waited_us_) / 1e6;
  stats.bytes_downloaded = impl_->downloaded_;
  stats.bytes_served_from_cache = impl_->served_;
  stats.prefetch_issued_bytes = impl_->prefetch_issued_;
  stats.prefetch_used_bytes = impl_->prefetch_used_;
  stats.prefetch_wasted_bytes = impl_->prefetch_wasted_;
  {
    std::lock_guard lock(impl_->scrub_mutex_);
    stats.scrub = impl_->scrub_state_;
  }
  stats.migrated_objects = impl_->migrated_objects_;
  stats.migrated_bytes = impl_->migrated_bytes_;
  stats.zones = impl_->store_.zones();
  stats.cache_dir_hangs = impl_->store_.hangs();
  return stats;
}

std::vector<Progress> Cache::progress() const {
  std::vector<Progress> all;
  for (const auto& object : impl_->all_objects()) {
    if (!object->fetching_) continue;
    const ObjectInfo info = object->info();
    all.push_back({object->spec().name, info.bytes_cached, info.size, object->rate_.load(),
                   object->waiting_.load()});
  }
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return all;
}

std::vector<CachedObject> Cache::list() const {
  std::vector<CachedObject> all;
  for (const auto& object : impl_->all_objects()) {
    ObjectInfo info = object->info();
    if (info.bytes_cached == 0 && info.state != ObjectState::kFetching) continue;
    all.push_back({object->spec().model, object->spec().name, std::move(info)});
  }
  {
    std::lock_guard lock(impl_->mutex_);
    for (const auto& [key, stored] : impl_->restored_) {
      ObjectInfo info;
      info.state = stored.file->complete() ? ObjectState::kResident : ObjectState::kAbsent;
      info.tier = "ssd";
      info.zone = stored.file->zone();
      info.size = stored.meta.size;
      info.bytes_cached = stored.file->present_bytes();
      info.hits = stored.meta.hits;
      info.verified = stored.meta.verified;
      info.pinned = impl_->is_pinned_locked(pin_of(stored.meta.model, stored.meta.name));
      all.push_back({stored.meta.model, stored.meta.name, std::move(info)});
    }
  }
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return all;
}

}  // namespace nexus
