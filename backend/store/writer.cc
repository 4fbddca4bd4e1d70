#include "backend/store/writer.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <future>

#include "backend/store/disk_io.h"
#include "backend/store/sidecar.h"

namespace nexus {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds kBatchDelay{1000};
constexpr int64_t kBatchChunks = 64;  // 64 MiB of one object are worth a checkpoint of their own
constexpr milliseconds kRetryMin{1000}, kRetryMax{60000};
constexpr milliseconds kWearDelay{5000};  // while nothing is written and an object waits for bytes

int descriptors_max() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 512;
  return static_cast<int>(std::min<rlim_t>(limit.rlim_cur / 2, 1 << 16));
}

std::string file_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}
std::string directory_of(const std::string& path) {
  return path.substr(0, path.rfind('/'));
}
std::string sidecar_path(const std::string& path) {
  return path + ".meta";
}

}  // namespace

StoreWriter::StoreWriter(std::unique_ptr<Catalog> catalog, std::shared_ptr<HangGuard> disk,
                         std::vector<std::shared_ptr<Zone>> zones, bool persist, bool follow_wear)
    : catalog_(std::move(catalog)),
      disk_(std::move(disk)),
      zones_(std::move(zones)),
      persist_(persist),
      follow_wear_(follow_wear),
      descriptors_max_(descriptors_max()),
      trim_at_(descriptors_max_),
      thread_("nexus-store") {
  std::lock_guard lock(mutex_);
  for (const auto& zone : zones_) saved_wear_[zone->index()] = zone->bytes_written();
}

StoreWriter::~StoreWriter() {
  stop();
  // Closing it writes. Where the disk hangs, the call that does so is its last owner.
  disk_->run_slow([catalog = std::exchange(catalog_, nullptr)]() mutable { catalog.reset(); });
}

Result<void> StoreWriter::save_copy(const std::shared_ptr<ObjectFile>& copy, const ObjectMeta& meta,
                                    uint64_t generation) {
  if (!persist_) return {};
  std::lock_guard stop_lock(stop_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return fail(Code::kCancelled, "the cache is closed");
  }
  std::promise<Result<void>> done;
  thread_.post([&] {
    Batch batch;
    Work work{Live{copy, generation}, meta};
    work.meta.key = copy->key();
    work.meta.size = copy->size();
    Result<void> saved = save_object(work, batch);
    if (saved) sync_directories(batch.directories, saved);
    if (copy->retired()) remove_sidecar(*copy);
    done.set_value(saved);
  });
  return done.get_future().get();
}

// --- Checkpoints ---

bool StoreWriter::urgent(const Live& live, const ObjectMeta& meta) {
  if (live.retry > milliseconds(0)) return false;  // a failing disk is not asked more often for it
  const auto present = static_cast<int64_t>(live.file->present_chunks());
  if (present - live.saved_chunks >= kBatchChunks) return true;
  const bool news = present != live.saved_chunks || meta.verified != live.saved_verified;
  return news && live.file->complete();
}

void StoreWriter::checkpoint(const std::shared_ptr<ObjectFile>& file, const ObjectMeta& meta) {
  if (!persist_) return;
  std::lock_guard lock(mutex_);
  auto it = live_.find(file->key());
  if (stopped_ || it == live_.end() || it->second.file != file) return;
  const bool now = urgent(it->second, meta);
  auto [dirty, fresh] = dirty_.try_emplace(it->first);
  dirty->second.meta = meta;
  dirty->second.meta.key = file->key();
  dirty->second.meta.size = file->size();
  if (now) {
    dirty->second.due = Clock::now();
  } else if (fresh) {
    dirty->second.due = Clock::now() + std::max(kBatchDelay, it->second.retry);
  }
  wake(now);
}

void StoreWriter::wake(bool now) {
  if (stopped_) return;
  if (!now) return arm(kBatchDelay);
  if (std::exchange(woken_, true)) return;
  thread_.post([this] {
    {
      std::lock_guard lock(mutex_);
      woken_ = false;
    }
    run_batch(false);
  });
}

void StoreWriter::arm(milliseconds delay) {
  if (std::exchange(armed_, true)) return;
  thread_.post_after(delay, [this] {
    {
      std::lock_guard lock(mutex_);
      armed_ = false;
    }
    run_batch(false);
  });
}

Result<void> StoreWriter::guarded(const std::string& path, std::function<Result<void>()> call) {
  for (const auto& zone : zones_) {
    if (!path.starts_with(zone->path() + "/") && path != zone->path()) continue;
    return zone->guard().get_slow(std::move(call)).value_or(hang_error(path));
  }
  return call();
}

Result<void> StoreWriter::on_catalog(std::function<Result<void>(Catalog&)> call) {
  return disk_->get_slow([catalog = catalog_, call = std::move(call)] { return call(*catalog); })
      .value_or(hang_error("catalog"));
}

void StoreWriter::remove_sidecar(const ObjectFile& file) {
  zones_[static_cast<size_t>(file.zone())]->guard().run_sometime(
      [path = sidecar_path(file.path())] { ::unlink(path.c_str()); });
}

void StoreWriter::run_batch(bool everything) {
  Batch batch = take_batch(everything);
  const Result<void> saved = save_objects(batch);
  Result<void> committed;
  if (!batch.rows->empty()) {
    committed = on_catalog([rows = batch.rows](Catalog& catalog) { return catalog.commit(*rows); });
  }
  finish_batch(batch, saved, committed);
  trim_descriptors();
}

// Steps 1 to 3. Returns the first error.
Result<void> StoreWriter::save_objects(Batch& batch) {
  Result<void> first;
  for (Work& work : batch.work) {
    auto done = save_object(work, batch);
    work.saved = done.has_value();
    if (!done && first) first = done;
    trim_descriptors();  // a large batch may have opened one for each
  }
  const std::set<std::string> unsynced = sync_directories(batch.directories, first);
  for (Work& work : batch.work) {
    const ObjectFile& file = *work.live.file;
    if (unsynced.contains(directory_of(file.path()))) work.saved = false;
    // remove() retires before it unlinks: either it finds our sidecar or we see that it was here.
    if (file.retired()) remove_sidecar(file);
    if (!work.saved || file.retired()) continue;
    batch.rows->put.push_back(
        {file_name(file.path()), file.zone(), file.key(), work.meta.name, std::move(work.record)});
  }
  return first;
}

// Returns those that failed. A directory met for the first time may be new, so its name is made
// durable too, up to cache_dir: .../zone_n/objects/xx.
std::set<std::string> StoreWriter::sync_directories(const std::set<std::string>& directories,
                                                    Result<void>& first) {
  std::set<std::string> parents, failed;
  for (const std::string& directory : directories) {
    if (anchored_.contains(directory)) continue;
    std::string parent = directory;
    for (int i = 0; i < 3; ++i) parents.insert(parent = directory_of(parent));
  }
  const auto sync = [&](const std::string& directory) {
    auto synced = guarded(directory, [directory] { return sync_dir(directory); });
    if (!synced && first) first = synced;
    return synced.has_value();
  };
  bool parents_synced = true;
  for (const std::string& parent : parents) parents_synced &= sync(parent);
  for (const std::string& directory : directories) {
    if (!sync(directory) || (!parents_synced && !anchored_.contains(directory))) {
      failed.insert(directory);
    } else {
      anchored_.insert(directory);
    }
  }
  return failed;
}

StoreWriter::Batch StoreWriter::take_batch(bool everything) {
  Batch batch;
  std::lock_guard lock(mutex_);
  const auto now = Clock::now();
  for (auto it = dirty_.begin(); it != dirty_.end();) {
    if (!everything && it->second.due > now) {
      ++it;
      continue;
    }
    batch.work.push_back({live_.at(it->first), std::move(it->second.meta)});
    it = dirty_.erase(it);
  }
  for (const std::string& path : removed_) {
    batch.rows->erase.push_back(file_name(path));
    if (path.front() == '/') batch.directories.insert(directory_of(path));
  }
  removed_.clear();
  for (const auto& zone : zones_) {
    const uint64_t written = zone->bytes_written();
    if (saved_wear_[zone->index()] != written) {
      batch.rows->zone_bytes_written[zone->index()] = written;
    }
  }
  if (!everything && now < catalog_retry_at_) return batch;
  batch.up_to_sequence = sequence_;
  for (const auto& [id, model] : models_) batch.rows->models.push_back(model.value);
  for (const auto& [id, header] : headers_) batch.rows->headers.emplace_back(id, header.value);
  if (day_) batch.rows->day = day_->value;
  return batch;
}

Result<void> StoreWriter::save_object(Work& work, Batch& batch) {
  ObjectFile& file = *work.live.file;
  if (file.retired()) return {};
  const std::shared_ptr<Zone>& zone = zones_[static_cast<size_t>(file.zone())];
  SidecarRecord record{work.meta, work.live.generation, zone->bytes_written(), file.bitmap(),
                       file.hashes()};
  work.present = static_cast<int64_t>(record.present_chunks());
  work.record = encode_sidecar(record);
  // Only hits or the time of the last access: the row is enough, and the drive is spared.
  if (work.present == work.live.saved_chunks && work.meta.verified == work.live.saved_verified) {
    return {};
  }
  if (auto synced = file.sync(); !synced) return synced;
  auto replaced = guarded(file.path(), [path = sidecar_path(file.path()), record = work.record] {
    return replace_file(path, record);
  });
  if (!replaced) return replaced;
  zone->add_written(work.record.size());
  batch.directories.insert(directory_of(file.path()));
  return {};
}

void StoreWriter::finish_batch(Batch& batch, const Result<void>& saved,
                               const Result<void>& committed) {
  std::lock_guard lock(mutex_);
  if (!batch.work.empty() || !saved) {
    report(saved, "an object cannot be made durable", objects_failing_);
  }
  const auto longer = [](milliseconds delay) {
    return std::clamp(delay * 2, kRetryMin, kRetryMax);
  };
  const auto now = Clock::now();
  if (!batch.rows->empty()) {
    report(committed, "the catalog cannot be written", catalog_failing_);
    catalog_retry_ = committed ? milliseconds(0) : longer(catalog_retry_);
    catalog_retry_at_ = now + catalog_retry_;
  }
  for (Work& work : batch.work) {
    auto it = live_.find(work.live.file->key());
    if (it == live_.end() || it->second.file != work.live.file) continue;
    Live& live = it->second;
    if (work.saved) {
      live.saved_chunks = work.present;
      live.saved_verified = work.meta.verified;
      live.retry = milliseconds(0);
    } else if (!live.file->failed()) {
      live.retry = longer(live.retry);
      dirty_.try_emplace(it->first, Dirty{std::move(work.meta), now + live.retry});
    }
  }
  if (committed) {
    for (const auto& [zone, written] : batch.rows->zone_bytes_written) saved_wear_[zone] = written;
    const auto settle = [&](auto& unsaved) {
      std::erase_if(unsaved,
                    [&](const auto& item) { return item.second.sequence <= batch.up_to_sequence; });
    };
    settle(models_);
    settle(headers_);
    if (day_ && day_->sequence <= batch.up_to_sequence) day_.reset();
    unsaved_bytes_ = 0;
    for (const auto& [id, model] : models_) unsaved_bytes_ += model.value->snapshot.size();
    for (const auto& [id, header] : headers_) unsaved_bytes_ += header.value->size();
  }
  if (stopped_) return;
  const auto due = next_due(now);
  if (due == Clock::time_point::max()) return;
  arm(std::max(milliseconds(1), std::chrono::ceil<milliseconds>(due - now)));
}

StoreWriter::Clock::time_point StoreWriter::next_due(Clock::time_point now) const {
  auto due = Clock::time_point::max();
  if (!removed_.empty()) due = now + kBatchDelay;
  if (!models_.empty() || !headers_.empty() || day_) {
    due = std::min(due, std::max(now + kBatchDelay, catalog_retry_at_));
  }
  for (const auto& [key, dirty] : dirty_) due = std::min(due, dirty.due);
  if (!follow_wear_) return due;
  for (const auto& zone : zones_) {
    const bool grew = saved_wear_.at(zone->index()) != zone->bytes_written();
    if (!grew && zone->promised_bytes() == 0) continue;
    due = std::min(due, std::max(now + (grew ? kBatchDelay : kWearDelay), catalog_retry_at_));
  }
  return due;
}

// One line when trouble begins and one when it ends, however long it lasts.
void StoreWriter::report(const Result<void>& outcome, const char* what, bool& failing) {
  if (!outcome && !failing) spdlog::warn("cache: {}: {}", what, outcome.error().what);
  if (outcome && failing) spdlog::info("cache: the disk takes writes again");
  failing = !outcome;
}

void StoreWriter::flush() {
  std::lock_guard stop_lock(stop_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (stopped_) return;
  }
  std::promise<void> done;
  thread_.post([&] {
    run_batch(true);
    done.set_value();
  });
  done.get_future().wait();
}

void StoreWriter::stop() {
  std::lock_guard stop_lock(stop_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(stopped_, true)) return;
  }
  thread_.post([this] { run_batch(true); });
  thread_.stop();
}

}  // namespace nexus
