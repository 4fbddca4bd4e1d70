// Dropping objects: by request, because a source was wrong, and when the disk limit is reached.
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <tuple>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
// What nobody has read since it came outlives what was read, but not for ever: then it was not
// wanted.
constexpr int64_t kUnreadGraceMs = 3'600'000;
}  // namespace

void Cache::Impl::add_charge(Object& object, uint64_t bytes) {
  object.charged_ += bytes;
  object.charged_ms_ = wall_ms();
  if (auto file = object.file(); file && file->zone() < 0) {
    ram_used_ += bytes;
  } else {
    disk_used_ += bytes;
  }
}

void Cache::Impl::drop(const std::shared_ptr<Object>& object, bool to_memory) {
  if (!object->spec().local_path.empty()) return;
  std::shared_ptr<ObjectFile> file, copy;
  {
    std::lock_guard lock(object->mutex_);
    file = std::exchange(object->file_, nullptr);
    copy = std::exchange(object->ram_, nullptr);
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
  const ObjectSpec& spec = blob->spec();
  if (spec.layout.extents.empty()) return drop(blob);  // of no bytes: nothing is made from it
  drop_made_from(spec.model, blob->file_id(spec.layout.extents.front().file), spec.name);
}

void Cache::Impl::drop_made_from(const std::string& model, uint64_t file_id,
                                 const std::string& name) {
  // Views of an earlier run that nobody has named yet: what they are made of is not known.
  drop_restored([&](const ObjectMeta& meta, const ObjectFile&) {
    return meta.model == model && !meta.key.starts_with("blob:") && !is_put_key(meta.key);
  });
  // Nobody begins anew before all of it is gone, else the bad bytes would be copied from a sibling.
  std::vector<std::shared_ptr<Object>> dropped;
  held_ = true;
  for (const auto& object : all_objects()) {
    if (object->spec().model != model) continue;
    const auto& extents = object->source_extents();
    const bool uses = std::any_of(extents.begin(), extents.end(), [file_id](const auto& extent) {
      return extent.file_id == file_id;
    });
    if (!uses || !object->file()) continue;
    spdlog::warn("{}: dropped, it was made from {}", object->spec().name, name);
    drop(object);
    dropped.push_back(object);
  }
  held_ = false;
  for (const auto& object : dropped) advance(object);
}

Result<std::shared_ptr<ObjectFile>> Cache::Impl::memory_file(const Object& object) {
  const uint64_t size = object.size();
  const auto refused = [&](const std::string& why) {
    return fail(Code::kNoSpace, object.spec().name + ": the cache disk takes no more, and " + why);
  };
  evict_memory(size);
  if (options_.ram) {
    auto file = options_.ram->create(object.spec().key, size);
    if (!file) return refused(file.error().what);
    return file;
  }
  if (ram_used_ + size > options_.ram_bytes) {
    return refused(std::to_string(size) + " bytes are over the memory limit");
  }
  const int fd = ::memfd_create("nexus-object", MFD_CLOEXEC);
  if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    return refused(std::string("memory: ") + std::strerror(error));
  }
  return std::make_shared<ObjectFile>(object.spec().key, "(memory)", -1, fd, size);
}

// Copies of what is on disk go first, then idle objects that are in memory alone; each the oldest
// first, until `bytes` more fit.
void Cache::Impl::evict_memory(uint64_t bytes) {
  if (options_.ram) drop_copies(bytes);
  const auto fits = [&] {
    if (!options_.ram) return ram_used_ + bytes <= options_.ram_bytes;
    return options_.ram->used_bytes() + options_.ram->charge_of(bytes) <=
           options_.ram->limit_bytes();
  };
  if (fits()) return;
  // What was fetched ahead and is still to be read goes last.
  std::vector<std::tuple<bool, int64_t, std::shared_ptr<Object>>> victims;
  for (auto& object : all_objects()) {
    if (object->charged_ == 0 || !object->in_memory_ || object->opens_ > 0) continue;
    if (object->pinned()) continue;
    if (!object->runs_.empty() || !object->waiters_.empty()) continue;
    victims.emplace_back(object->prefetched_unread(), object->last_access_ms_, object);
  }
  std::sort(victims.begin(), victims.end());
  for (const auto& [unread, used, object] : victims) {
    if (fits()) return;
    // Mapped: dropping it would free nothing.
    if (auto file = object->file(); options_.ram && file && !RamTier::idle(*file)) continue;
    ++evictions_;
    drop(object);
  }
}

void Cache::Impl::evict() {
  if (disk_used_ <= options_.disk_bytes) return;
  struct Holder {
    std::shared_ptr<Object> object;  // or, of a model not mounted since the start:
    std::string restored;
    // Open, on its way, waited for or pinned: stays, even over the limit. A reader that is served
    // now matters more than the last megabyte of the bound.
    bool stays = false;
    bool unread = false;  // goes after everything that has been read
    bool put = false;     // nothing can bring it again: goes last
  };
  std::vector<Holder> holders;
  std::vector<EvictionCandidate> candidates;
  const int64_t now_ms = wall_ms();
  for (auto& object : all_objects()) {
    if (object->charged_ == 0 || object->in_memory_) continue;
    candidates.push_back(
        {object->id(), object->charged_, object->last_access_ms_, object->last_use_});
    const bool stays = object->opens_ > 0 || object->pinned() || !object->runs_.empty() ||
                       !object->waiters_.empty();
    const bool unread =
        object->prefetched_unread() ||
        (object->last_access_ms_ == 0 && now_ms - object->charged_ms_ < kUnreadGraceMs);
    holders.push_back({object, "", stays, unread, is_put_key(object->spec().key)});
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, stored] : restored_) {
      const ObjectMeta& meta = stored.meta;
      candidates.push_back({XXH3_64bits(key.data(), key.size()), stored.file->present_bytes(),
                            meta.last_access_ms, 0});
      holders.push_back(
          {nullptr, key, is_pinned_locked(pin_of(meta.model, meta.name)), false, is_put_key(key)});
    }
  }
  std::vector<size_t> order = policy_->order(candidates);
  std::stable_partition(order.begin(), order.end(), [&](size_t i) { return !holders[i].unread; });
  std::stable_partition(order.begin(), order.end(), [&](size_t i) { return !holders[i].put; });
  for (const size_t i : order) {
    if (disk_used_ <= options_.disk_bytes) return;
    const Holder& holder = holders[i];
    if (holder.stays) continue;
    if (holder.object) {
      spdlog::info("{}: evicted", holder.object->spec().name);
      ++evictions_;  // counted before its bytes are seen to be gone
      drop(holder.object);
    } else {
      std::unique_lock lock(mutex_);
      auto it = restored_.find(holder.restored);
      if (it == restored_.end()) continue;
      const auto file = it->second.file;
      lock.unlock();
      if (!drop_restored(holder.restored, file.get())) continue;
      ++evictions_;
    }
    policy_->evicted(candidates[i].id);
  }
}

}  // namespace nexus
