// Moving objects between zones: tiering.h says which, store/relocation.h how a file changes its
// place without ever being in none. Here: one at a time, at idle priority, while nothing is
// fetched.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>
#include <utility>

#include "backend/cache/impl.h"
#include "backend/cache/tiering.h"

namespace nexus {

namespace {
constexpr std::chrono::milliseconds kLook{20};
// A row of the catalog holds all hashes of its object: it is not written at every close.
constexpr int64_t kNoteEveryMs = 600'000;
// Written to the disk at once: as large as what a transfer gathers, for large folios.
constexpr uint64_t kStepBytes = 2 * kChunkBytes;
}  // namespace

struct Cache::Impl::Migration {
  bool rebalance = false;
  std::function<void(const VerifyProgress&)> on_progress;
  std::function<void(Result<MigrationReport>)> done;
  std::shared_ptr<CacheJob> job;
  // Of the upkeep thread:
  VerifyProgress progress;
  MigrationReport report;
};

bool Cache::Impl::wait_for_idle(const std::function<bool()>& stop) const {
  while (objects_fetching_ > 0) {
    if (stop()) return false;
    std::this_thread::sleep_for(kLook);
  }
  return !stop();
}

bool Cache::Impl::on_core(const std::function<void()>& task) {
  auto ran = std::make_shared<std::promise<void>>();
  auto answer = ran->get_future();
  auto succeeded = std::make_shared<std::atomic<bool>>(false);
  core_.post([&task, ran, succeeded] {
    task();
    *succeeded = true;
    ran->set_value();
  });
  ran.reset();  // a task that is dropped unrun then breaks the promise, which ends the wait as well
  answer.wait();
  return *succeeded;
}

void Cache::Impl::note_use(Object& object) {
  const auto file = object.file();
  const int64_t used_ms = object.last_access_ms_;
  if (!file || file->zone() < 0 || !file->complete()) return;
  if (used_ms - object.noted_ms_ < kNoteEveryMs) return;
  object.noted_ms_ = used_ms;
  store_.checkpoint(file, object.meta());
}

bool Cache::Impl::may_move(const Object& object) {
  return object.opens_ == 0 && object.runs_.empty() && object.waiters_.empty() &&
         !object.promoting_ && !object.checking_chunks_ && !object.checking_digest_ &&
         !object.in_memory_ && object.spec().local_path.empty();
}

bool Cache::Impl::commit_move(const MoveTarget& target, const std::shared_ptr<ObjectFile>& copy) {
  std::shared_ptr<Object> object = target.object;
  if (!object) {
    std::lock_guard lock(mutex_);
    if (auto it = restored_.find(target.key); it != restored_.end()) {
      if (it->second.file != target.file || !store_.commit_move(target.file, copy)) return false;
      it->second.file = copy;
      store_.checkpoint(copy, it->second.meta);
      return true;
    }
    auto it = objects_.find(target.key);  // its model was mounted meanwhile
    if (it == objects_.end()) return false;
    object = it->second;
  }
  if (object->file() != target.file || !may_move(*object)) return false;
  if (!store_.commit_move(target.file, copy)) return false;
  {
    std::lock_guard lock(object->mutex_);
    object->file_ = copy;  // the same bytes: its checks, its hash and its copy in memory hold
  }
  store_.checkpoint(copy, object->meta());
  return true;
}

Result<void> Cache::Impl::write_direct(const std::shared_ptr<ObjectFile>& file, uint64_t offset,
                                       const std::shared_ptr<AlignedBuffer>& buffer,
                                       size_t length) const {
  if (!options_.bulk_write) return file->write(offset, buffer->bytes().first(length));
  return file
      ->guarded([bulk_write = options_.bulk_write, file, offset, buffer, length] {
        return bulk_write(*file, offset, buffer->bytes().first(length));
      })
      .value_or(file->hang_error("write"));
}

// Every chunk is compared with its hash on the way, so a corrupt object is never spread.
Result<void> Cache::Impl::copy_chunks(Migration& job, const MoveTarget& target,
                                      const std::shared_ptr<ObjectFile>& copy) {
  const ObjectFile& from = *target.file;
  const auto buffer = std::make_shared<AlignedBuffer>(kStepBytes);
  const auto stop = [&] { return stopping_ || job.job->cancelled(); };
  for (uint64_t at = 0; at < from.size(); at += kStepBytes) {
    if (!wait_for_idle(stop)) return fail(Code::kCancelled, "stopped");
    if (from.retired()) return fail(Code::kCancelled, "it was removed meanwhile");
    const auto begun = std::chrono::steady_clock::now();
    const auto bytes = buffer->bytes().first(std::min(kStepBytes, from.size() - at));
    auto read = read_direct(target.file, at, buffer, bytes.size());
    if (!read) return read;
    if (auto written = write_direct(copy, at, buffer, bytes.size()); !written) return written;
    for (uint64_t offset = 0; offset < bytes.size(); offset += kChunkBytes) {
      const uint64_t chunk = (at + offset) / kChunkBytes;
      copy->seal_chunk(chunk, bytes.subspan(offset, from.chunk_length(chunk)));
      if (copy->chunk_hash(chunk) != from.chunk_hash(chunk)) {
        return fail(Code::kCorrupt, "chunk " + std::to_string(chunk) + " of " + from.path() +
                                        " is not what it was");
      }
    }
    job.progress.bytes_done += bytes.size();
    if (job.on_progress) job.on_progress(job.progress);
    // Half of the disk's time at most: readers that the kernel serves are not seen from here.
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(
        std::chrono::steady_clock::now() - begun, std::chrono::seconds(1)));
  }
  return {};
}

Result<void> Cache::Impl::migrate_one(Migration& job, const MoveTarget& target) {
  bool movable = true;
  if (target.object && !on_core([&] { movable = may_move(*target.object); })) movable = false;
  if (!movable) return fail(Code::kCancelled, "it is in use");
  auto copy = store_.begin_move(target.file, target.zone);
  if (!copy) return tl::unexpected<Error>(copy.error());
  auto moved = copy_chunks(job, target, *copy);
  if (moved) moved = store_.settle_move(*copy, target.meta);
  bool committed = false;
  if (moved) on_core([&] { committed = commit_move(target, *copy); });
  if (committed) return {};
  store_.discard_move(*copy);
  if (!moved && (moved.error().code == Code::kCorrupt) && !target.file->retired()) {
    VerifyTarget corrupt;
    corrupt.object = target.object;
    corrupt.key = target.key;
    corrupt.model = target.meta.model;
    corrupt.name = target.name;
    corrupt.file = target.file;
    found_corrupt("migrate", corrupt, moved.error());
  }
  return moved ? fail(Code::kCancelled, "it came into use") : moved;
}

void Cache::Impl::migrate_pass(const std::shared_ptr<Migration>& job) {
  be_idle();
  const auto stop = [&] { return stopping_ || job->job->cancelled(); };
  if (stop()) return job->done(fail(Code::kCancelled, "migrate: cancelled"));
  const std::vector<ZoneInfo> infos = store_.zones();
  std::vector<TierZone> zones;
  for (const ZoneInfo& info : infos) {
    zones.push_back({tier_rank(info.tier), info.free_bytes, info.used_bytes, info.device,
                     info.writable && info.health == "ok"});
  }
  std::vector<MoveTarget> targets;
  std::vector<TierObject> objects;
  const auto add = [&](MoveTarget target, bool movable) {
    if (!target.file || target.file->zone() < 0 || !target.file->complete()) return;
    objects.push_back({target.file->size(), static_cast<size_t>(target.file->zone()),
                       target.meta.last_access_ms, target.meta.hits, movable});
    targets.push_back(std::move(target));
  };
  for (const auto& object : all_objects()) {
    add({object, object->spec().key, object->spec().name, object->file(), object->meta()},
        object->opens_ == 0);
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [key, stored] : restored_) {
      add({nullptr, key, stored.meta.name, stored.file, stored.meta}, true);
    }
  }
  const auto moves =
      plan_moves(zones, objects, {wall_ms(), store_.write_budget_left(), job->rebalance});
  job->progress.objects_total = moves.size();
  for (const TierMove& move : moves) job->progress.bytes_total += objects[move.object].bytes;
  for (const TierMove& move : moves) {
    if (stop()) break;
    MoveTarget& target = targets[move.object];
    target.zone = static_cast<int>(move.to);
    const ZoneInfo &from = infos[move.from], &to = infos[move.to];
    if (auto moved = migrate_one(*job, target); moved) {
      spdlog::info("{}: moved from {} ({}) to {} ({})", target.name, from.path, from.tier, to.path,
                   to.tier);
      ++migrated_objects_;
      migrated_bytes_ += target.file->size();
      job->report.moved.push_back(
          {target.name, target.file->size(), from.path, to.path, from.tier, to.tier});
    } else if (!stop()) {
      job->report.failed.push_back(target.name + ": " + moved.error().what);
    }
    target = {};  // what was removed goes with its last holder
    ++job->progress.objects_done;
  }
  if (stop()) return job->done(fail(Code::kCancelled, "migrate: cancelled"));
  job->done(std::move(job->report));
}

std::shared_ptr<CacheJob> Cache::migrate(std::function<void(const VerifyProgress&)> progress,
                                         std::function<void(Result<MigrationReport>)> done) {
  auto job = std::make_shared<CacheJob>();
  impl_->start_migration(job, false, std::move(progress), std::move(done));
  return job;
}

void Cache::Impl::start_migration(std::shared_ptr<CacheJob> job, bool rebalance,
                                  std::function<void(const VerifyProgress&)> progress,
                                  std::function<void(Result<MigrationReport>)> done) {
  auto migration = std::make_shared<Migration>();
  migration->job = std::move(job);
  migration->rebalance = rebalance;
  migration->on_progress = std::move(progress);
  migration->done = std::move(done);
  upkeep_.post([this, self = shared_from_this(), migration] { migrate_pass(migration); });
}

void Cache::Impl::migrate_now_and_then() {
  core_.post_after(options_.migrate_interval, [this] {
    start_migration(std::make_shared<CacheJob>(), false, {},
                    [this](Result<MigrationReport> report) {
                      if (report) {
                        for (const std::string& one : report->failed)
                          spdlog::debug("migrate: {}", one);
                      }
                      core_.post([this] { migrate_now_and_then(); });
                    });
  });
}

}  // namespace nexus
