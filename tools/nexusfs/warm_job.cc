#include "tools/nexusfs/warm_job.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>

namespace nexus::tools {
namespace {
constexpr auto kProgressEvery = std::chrono::milliseconds(300);
std::atomic<int> job_count{0};
}  // namespace

int WarmJob::count() {
  return job_count;
}

WarmJob::WarmJob(Cache& cache, std::vector<WarmFile> files)
    : cache_(cache), files_(std::move(files)) {
  ++job_count;
}

WarmJob::~WarmJob() {
  --job_count;
}

void WarmJob::start(Executor& timers, std::function<void(const WarmState&)> progress,
                    std::function<void(const WarmState&)> done) {
  progress_ = std::move(progress);
  done_ = std::move(done);
  if (progress_) tick(timers);
  fill();
}

bool WarmJob::over_locked() {
  if (over_ || !flights_.empty()) return false;
  return over_ = cancelled_ || next_ == files_.size();
}

// Not called with mutex_ held. A fetch may answer at once, and does when the mount closes: that
// call finds filling_ and leaves the next file to this loop, rather than nest as deep as there are
// files.
void WarmJob::fill() {
  {
    std::lock_guard lock(mutex_);
    if (std::exchange(filling_, true)) return;
  }
  while (true) {
    size_t file = 0;
    {
      std::unique_lock lock(mutex_);
      const bool over = over_locked();
      if (over || cancelled_ || next_ == files_.size() || flights_.size() >= kFilesAtOnce) {
        filling_ = false;
        lock.unlock();
        if (over) done_(state());
        return;
      }
      file = next_++;
      flights_.push_back({file, 0});
    }
    const auto& object = files_[file].object;
    const uint64_t ticket = cache_.fetch(
        object, {0, object->size()}, kReadAhead,
        [self = shared_from_this(), file](Result<void> result) { self->finished(file, result); });
    bool cancelled = false;
    {
      std::lock_guard lock(mutex_);
      for (Flight& flight : flights_) {
        if (flight.file == file) flight.ticket = ticket;
      }
      cancelled = cancelled_;
    }
    if (cancelled) cache_.cancel(ticket);  // cancel() came before the ticket was known
  }
}

void WarmJob::finished(size_t file, const Result<void>& result) {
  {
    std::lock_guard lock(mutex_);
    std::erase_if(flights_, [file](const Flight& flight) { return flight.file == file; });
    ++done_count_;
    if (!result && failed_.size() < 100) {
      failed_.push_back(files_[file].path + ": " + result.error().what);
    }
  }
  // What the cancelled wait was for goes too, unless a reader has come for it.
  if (!result && result.error().code == Code::kCancelled) cache_.abandon(files_[file].object);
  fill();
}

void WarmJob::cancel() {
  std::vector<uint64_t> tickets;
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
    for (const Flight& flight : flights_) {
      if (flight.ticket != 0) tickets.push_back(flight.ticket);
    }
  }
  for (const uint64_t ticket : tickets) cache_.cancel(ticket);
}

WarmState WarmJob::state() const {
  WarmState state;
  for (const WarmFile& file : files_) {
    const ObjectInfo info = file.object->info();
    state.bytes_total += info.size;
    // Files of a local directory are served from where they lie.
    state.bytes_done += info.state == ObjectState::kResident ? info.size : info.bytes_cached;
  }
  std::lock_guard lock(mutex_);
  state.files_total = files_.size();
  state.files_done = done_count_;
  state.failed = failed_;
  return state;
}

void WarmJob::tick(Executor& timers) {
  {
    std::lock_guard lock(mutex_);
    if (over_) return;
  }
  progress_(state());
  timers.post_after(kProgressEvery, [self = weak_from_this(), &timers] {
    if (auto job = self.lock()) job->tick(timers);
  });
}

}  // namespace nexus::tools
