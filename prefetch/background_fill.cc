#include "prefetch/background_fill.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

namespace nexus::prefetch {
namespace {

// The first bytes that are missing, at most `most`; of length 0 when the object is complete.
ByteRange first_missing(const Object& object, uint64_t most) {
  const auto file = object.file();
  if (object.spec().whole) return {0, file && file->complete() ? 0 : object.size()};
  if (!file) return {0, std::min(object.size(), most)};
  uint64_t begin = 0;
  while (begin < file->chunks() && file->has(begin)) ++begin;
  uint64_t end = begin;
  while (end < file->chunks() && !file->has(end) && (end - begin) * kChunkBytes < most) ++end;
  const uint64_t from = begin * kChunkBytes;
  return {from, std::min(end * kChunkBytes, object.size()) - std::min(from, object.size())};
}

}  // namespace

BackgroundFill::BackgroundFill(FillOptions options, FillHooks hooks, Cache& cache,
                               Executor& executor)
    : options_(options), hooks_(std::move(hooks)), cache_(cache), executor_(executor) {}

void BackgroundFill::start() {
  executor_.post([self = shared_from_this()] {
    self->activity_ = self->hooks_.activity();
    self->check();
  });
}

void BackgroundFill::stop() {
  executor_.post([self = shared_from_this()] {
    self->stopped_ = true;
    if (self->ticket_ != 0) self->cache_.cancel(self->ticket_);
  });
}

void BackgroundFill::check() {
  if (stopped_) return;
  if (!idle()) {
    if (ticket_ != 0) cache_.cancel(std::exchange(ticket_, 0));
  } else if (!fetching_) {
    fetch_next();
  }
  executor_.post_after(options_.check_every, [weak = weak_from_this()] {
    const auto self = weak.lock();
    if (!self) return;
    self->quiet_ += self->options_.check_every;
    self->check();
  });
}

bool BackgroundFill::idle() {
  const uint64_t now = hooks_.activity();
  if (now != std::exchange(activity_, now)) quiet_ = std::chrono::milliseconds(0);
  return quiet_ >= options_.idle;
}

void BackgroundFill::fetch_next() {
  const uint64_t room = hooks_.room();
  for (const auto& object : hooks_.wanted()) {
    if (!object->spec().local_path.empty() || failed_.count(object->spec().key) > 0) continue;
    const ByteRange range = first_missing(*object, options_.step_bytes);
    if (range.length == 0 || range.length > room) continue;
    return fetch(object, range);
  }
}

void BackgroundFill::fetch(const std::shared_ptr<Object>& object, ByteRange range) {
  fetching_ = true;
  const auto done = [weak = weak_from_this(), &executor = executor_, object](Result<void> result) {
    executor.post([weak, object, result] {
      const auto self = weak.lock();
      if (!self) return;
      self->fetching_ = false;
      self->ticket_ = 0;
      if (!result && result.error().code != Code::kCancelled) {
        spdlog::info("background fill: {}", result.error().what);
        self->failed_.insert(object->spec().key);
      }
      // After a failure not before the next check: whatever it is, it is no reason to hurry.
      if (result && !self->stopped_ && self->idle()) self->fetch_next();
    });
  };
  ticket_ = cache_.prefetch(object, range, kFill, done);
}

}  // namespace nexus::prefetch
