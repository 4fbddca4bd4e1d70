// Waiters: who waits for which bytes, and what they are told.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
// A fetch begun anew for the same waiter (dropped object, disk trouble) more often than this is a
// fault.
constexpr int kAttemptsMax = 4;

bool overlaps(ByteRange a, ByteRange b) {
  return a.offset < b.end() && b.offset < a.end();
}
}  // namespace

int Cache::Impl::readers_waiting(const Object& object) {
  return static_cast<int>(
      std::count_if(object.waiters_.begin(), object.waiters_.end(),
                    [](const Waiter& waiter) { return waiter.priority < kPrefetch; }));
}

void Cache::Impl::add_waiter(const std::shared_ptr<Object>& object, Waiter waiter) {
  if (stopping_) {
    if (waiter.done) waiter.done(fail(Code::kCancelled, "the mount is closing"));
    return;
  }
  // Its disk does not answer: the origin may, and another zone takes it.
  if (const auto file = object->file();
      file && file->hung() && !object->ram_copy() && !is_put_key(object->spec().key)) {
    spdlog::warn("{}: its disk hangs; dropped, will be fetched again", object->spec().name);
    drop(object);
  }
  // A digest covers the whole file, so whoever wants it waits for all of it.
  if (waiter.digest && !object->digest_ok_) waiter.range = {0, object->size()};
  tickets_.emplace(waiter.ticket, object);
  object->waiters_.push_back(std::move(waiter));
  object->waiting_ = readers_waiting(*object);
  advance(object);
}

void Cache::Impl::remove_waiter(uint64_t ticket) {
  auto it = tickets_.find(ticket);
  if (it == tickets_.end()) return;
  auto object = it->second.lock();
  if (!object) return;
  std::list<Waiter> leaving;
  for (auto waiter = object->waiters_.begin(); waiter != object->waiters_.end(); ++waiter) {
    if (waiter->ticket == ticket) {
      leaving.splice(leaving.end(), object->waiters_, waiter);
      break;
    }
  }
  answer(object, std::move(leaving), fail(Code::kCancelled, object->spec().name + ": cancelled"));
  cancel_unwanted_runs(object, false);
  if (object->waiters_.empty() && object->awaited_blobs_ > 0) {
    // Nobody wants what is made from them any more (strict).
    object->awaited_given_up_ = true;
    for (const uint64_t one : std::exchange(object->awaited_tickets_, {})) remove_waiter(one);
  }
}

bool Cache::Impl::satisfied(const Object& object, const Waiter& waiter) const {
  auto file = object.file();
  if (!file || !file->has(waiter.range)) return false;
  if ((object.spec().whole || waiter.trust) && !file->complete()) return false;
  if (waiter.digest && !object.digest_ok_) return false;
  return !waiter.trust || object.trusted_;
}

void Cache::Impl::advance(const std::shared_ptr<Object>& object) {
  if (held_) return;
  std::list<Waiter> ready;
  for (auto it = object->waiters_.begin(); it != object->waiters_.end();) {
    auto next = std::next(it);
    if (satisfied(*object, *it)) ready.splice(ready.end(), object->waiters_, it);
    it = next;
  }
  if (!ready.empty()) {
    object->set_error("");
    answer(object, std::move(ready), {});
  }
  // What remains is started; waiters may be answered with an error on the way, so nothing is held.
  std::vector<std::pair<ByteRange, int>> wanted;
  bool want_digest = false, want_trust = false;
  for (Waiter& waiter : object->waiters_) {
    auto file = object->file();
    const bool here =
        file && file->has(waiter.range) && (!object->spec().whole || file->complete());
    if (!here) {
      wanted.emplace_back(waiter.range, waiter.priority);
    } else if (waiter.digest && !object->digest_ok_) {
      want_digest = true;
    } else if (waiter.trust && !object->trusted_) {
      want_trust = true;
    }
  }
  for (const auto& [range, priority] : wanted) start_missing(object, range, priority);
  if (want_digest) check_digest(object);
  if (want_trust) check_chunks(object);
}

void Cache::Impl::answer(const std::shared_ptr<Object>& object, std::list<Waiter> answered,
                         const Result<void>& result) {
  object->waiting_ = readers_waiting(*object);
  const auto now = std::chrono::steady_clock::now();
  for (Waiter& waiter : answered) {
    tickets_.erase(waiter.ticket);
    if (waiter.priority == kDemand && result) {
      waited_us_ += static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::microseconds>(now - waiter.since).count());
      ++waited_count_;
    }
    if (waiter.done) waiter.done(result);
  }
}

void Cache::Impl::fail_waiters(const std::shared_ptr<Object>& object, ByteRange range,
                               const Error& error) {
  std::list<Waiter> failed;
  for (auto it = object->waiters_.begin(); it != object->waiters_.end();) {
    auto next = std::next(it);
    if (object->spec().whole || it->digest || it->trust || overlaps(it->range, range)) {
      failed.splice(failed.end(), object->waiters_, it);
    }
    it = next;
  }
  answer(object, std::move(failed), tl::unexpected<Error>(error));
}

void Cache::Impl::cancel_unwanted_runs(const std::shared_ptr<Object>& object, bool read_ahead_too) {
  for (const auto& run : std::vector(object->runs_)) {
    // Each prefetch has a waiter of its own: without one it was cancelled.
    const bool read_ahead = run->priority > kDemand && run->priority < kPrefetch;
    if (read_ahead && !read_ahead_too) continue;
    const ByteRange bytes{run->first * kChunkBytes, (run->last - run->first) * kChunkBytes};
    const bool wanted =
        std::any_of(object->waiters_.begin(), object->waiters_.end(),
                    [&](const Waiter& waiter) { return overlaps(waiter.range, bytes); });
    if (!wanted) end_run(run, fail(Code::kCancelled, "nobody waits any more"));
  }
}

void Cache::Impl::end_run(const std::shared_ptr<Run>& run, Result<void> result) {
  if (run->ended) return;
  run->ended = true;
  const auto object = run->object;
  for (const auto& transfer : run->transfers) transfer->cancel();
  run->transfers.clear();
  std::erase(object->runs_, run);
  set_fetching(*object);
  const bool current = object->file() == run->file;
  if (current && run->file->zone() >= 0 && (!object->spec().whole || run->file->complete())) {
    store_.checkpoint(run->file, object->meta());
  }
  if (result) {
    if (current && run->file->complete()) completed(object, run->file);
    advance(object);
    return;
  }
  settle_prefetch(*run);
  const Error& error = result.error();
  const ByteRange bytes{run->first * kChunkBytes, (run->last - run->first) * kChunkBytes};
  const bool again = error.code == Code::kCancelled || error.code == Code::kNoSpace ||
                     (error.code == Code::kDisk && run->file->zone() >= 0);
  const bool refused = again && error.code != Code::kCancelled;
  // Complete or absent: what arrived of a whole object is of no use to anyone.
  // A zone that hangs is not chosen again, so there may be one that takes it.
  const bool to_memory = refused && !run->file->hung();
  if (current && (refused || object->spec().whole)) drop(object, to_memory);
  if (error.code != Code::kCancelled) {
    spdlog::warn("{}: {}{}", object->spec().name, error.what, to_memory ? "; kept in memory" : "");
    object->set_error(error.what);
  }
  if (!again) {
    fail_waiters(object, bytes, error);
    return;
  }
  if (stopping_) return;
  std::list<Waiter> worn;
  for (auto it = object->waiters_.begin(); it != object->waiters_.end();) {
    auto next = std::next(it);
    // Its own run's end counts for a waiter, not that of every run of a dropped object.
    if (overlaps(it->range, bytes) && ++it->attempts > kAttemptsMax) {
      worn.splice(worn.end(), object->waiters_, it);
    }
    it = next;
  }
  answer(object, std::move(worn), tl::unexpected<Error>(error));
  advance(object);
}

void Cache::Impl::set_fetching(Object& object) {
  const bool now = !object.runs_.empty();
  if (object.fetching_.exchange(now) != now) objects_fetching_ += now ? 1 : -1;
  if (object.runs_.empty()) object.rate_ = 0;
}

}  // namespace nexus
