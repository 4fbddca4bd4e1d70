// The writer's register: which objects exist, and how many of them may be open.
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "backend/store/writer.h"

namespace nexus {

namespace {
using std::chrono::milliseconds;
}  // namespace

std::shared_ptr<ObjectFile> StoreWriter::add(std::shared_ptr<ObjectFile> file,
                                             uint64_t generation) {
  std::lock_guard lock(mutex_);
  std::shared_ptr<ObjectFile> previous;
  if (auto it = live_.find(file->key()); it != live_.end()) {
    previous = it->second.file;
    dirty_.erase(it->first);
    live_.erase(it);  // its key points into `previous`
    if (persist_) removed_.push_back(previous->path());
  }
  const std::string_view key = file->key();
  live_.emplace(key, Live{std::move(file), generation});
  if (follow_wear_) wake(false);
  return previous;
}

void StoreWriter::reserve(size_t objects) {
  std::lock_guard lock(mutex_);
  live_.reserve(objects);
}

void StoreWriter::add_restored(std::shared_ptr<ObjectFile> file, uint64_t generation,
                               bool sidecar_current, const ObjectMeta* meta) {
  std::lock_guard lock(mutex_);
  const std::string_view key = file->key();
  const auto present = static_cast<int64_t>(file->present_chunks());
  Live live{std::move(file), generation, sidecar_current ? present : -1,
            meta != nullptr && meta->verified, milliseconds(0)};
  if (meta != nullptr) dirty_.emplace(key, Dirty{*meta, Clock::now()});
  live_.emplace(key, std::move(live));
  if (meta != nullptr) wake(true);
}

std::shared_ptr<ObjectFile> StoreWriter::find(const std::string& key) {
  std::lock_guard lock(mutex_);
  auto it = live_.find(key);
  return it == live_.end() ? nullptr : it->second.file;
}

bool StoreWriter::forget(const std::shared_ptr<ObjectFile>& file) {
  std::shared_ptr<ObjectFile> last;  // closed outside the lock
  std::lock_guard lock(mutex_);
  auto it = live_.find(file->key());
  if (it == live_.end() || it->second.file != file) return false;
  dirty_.erase(it->first);
  last = it->second.file;
  live_.erase(it);
  if (persist_) {
    removed_.push_back(last->path());
    wake(false);
  }
  return true;
}

void StoreWriter::forget_rows(std::vector<std::string> files) {
  std::lock_guard lock(mutex_);
  std::move(files.begin(), files.end(), std::back_inserter(removed_));
  wake(true);
}

bool StoreWriter::replace(const std::shared_ptr<ObjectFile>& from,
                          const std::shared_ptr<ObjectFile>& copy, uint64_t generation,
                          bool verified) {
  std::shared_ptr<ObjectFile> last;  // closed outside the lock
  std::lock_guard lock(mutex_);
  auto it = live_.find(from->key());
  if (it == live_.end() || it->second.file != from) return false;
  dirty_.erase(it->first);
  last = it->second.file;
  live_.erase(it);  // its key points into `from`
  Live live{copy, generation, -1, verified};
  if (persist_) {
    live.saved_chunks = static_cast<int64_t>(copy->present_chunks());
    removed_.push_back(last->path());
    wake(false);
  }
  live_.emplace(copy->key(), std::move(live));
  return true;
}

void StoreWriter::trim_descriptors() {
  if (Descriptor::count() <= trim_at_) return;
  std::vector<std::shared_ptr<ObjectFile>> clean, dirty;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, live] : live_) {
      (dirty_.contains(key) ? dirty : clean).push_back(live.file);
    }
  }
  // Twice, for what was used lately is spared once. Objects with unsaved bytes last: their
  // descriptor is the one that is sure to hear of a failed write-back.
  const int enough = descriptors_max_ / 4 * 3;
  for (const auto* files : {&clean, &clean, &dirty, &dirty}) {
    for (const auto& file : *files) {
      if (Descriptor::count() <= enough) break;
      file->close_idle();
    }
  }
  trim_at_ = std::max(descriptors_max_, Descriptor::count() + descriptors_max_ / 8);
}

std::unordered_set<std::string> StoreWriter::paths() {
  std::lock_guard lock(mutex_);
  std::unordered_set<std::string> all;
  all.reserve(live_.size());
  for (const auto& [key, live] : live_) all.insert(live.file->path());
  return all;
}

}  // namespace nexus
