// The background scrub: every complete object is hashed again, over and over, at idle priority and
// only while nothing is fetched. A pass begins `scrub_interval` after the last one's end, which is
// kept across restarts; what it finds corrupt is dropped, like verify() does.
#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
using std::chrono::milliseconds;
// Of the catalog's entries by name; no header's id looks like this.
const std::string kLastPass = "nexusfs/scrub/last_pass_ms";
// After the start, when models are being opened.
constexpr milliseconds kFirstDelay{60'000};
}  // namespace

Result<void> Cache::Impl::read_direct(const std::shared_ptr<ObjectFile>& file, uint64_t offset,
                                      const std::shared_ptr<AlignedBuffer>& buffer,
                                      size_t length) const {
  if (!options_.bulk_read) return file->read(offset, buffer->bytes().first(length));
  return file
      ->guarded([bulk_read = options_.bulk_read, file, offset, buffer, length] {
        return bulk_read(*file, offset, buffer->bytes().first(length));
      })
      .value_or(file->hang_error("read"));
}

Result<void> Cache::Impl::check_file(const std::shared_ptr<ObjectFile>& shared, bool from_disk,
                                     const std::function<bool(uint64_t)>& each) const {
  const ObjectFile& file = *shared;
  std::shared_ptr<AlignedBuffer> buffer;
  if (from_disk) buffer = std::make_shared<AlignedBuffer>(kChunkBytes);
  if (!each(0)) return fail(Code::kCancelled, "stopped");
  for (uint64_t chunk = 0; chunk < file.chunks(); ++chunk) {
    if (!file.has(chunk)) continue;
    if (from_disk) {
      const auto bytes = buffer->bytes().first(file.chunk_length(chunk));
      auto read = read_direct(shared, chunk * kChunkBytes, buffer, bytes.size());
      if (!read) return read;
      if (XXH3_64bits(bytes.data(), bytes.size()) != file.chunk_hash(chunk)) {
        return fail(Code::kCorrupt, "chunk " + std::to_string(chunk) + " of " + file.path() +
                                        " is not what it was");
      }
    } else if (auto sound = file.verify_chunk(chunk); !sound) {
      return sound;
    }
    if (!each(file.chunk_length(chunk))) return fail(Code::kCancelled, "stopped");
  }
  return {};
}

void Cache::Impl::start_scrubbing() {
  int64_t last_ms = 0;
  if (const auto text = store_.load_header(kLastPass)) {
    std::from_chars(text->data(), text->data() + text->size(), last_ms);
  }
  {
    std::lock_guard lock(scrub_mutex_);
    scrub_state_.on = true;
    scrub_state_.last_pass_ms = last_ms;
  }
  // A clock that was set back must not put it off for ever.
  const int64_t since_ms = std::max<int64_t>(0, wall_ms() - last_ms);
  const milliseconds left = options_.scrub_interval - milliseconds(since_ms);
  scrub_after(std::max(left, std::min(kFirstDelay, options_.scrub_interval)));
}

void Cache::Impl::scrub_after(milliseconds delay) {
  core_.post_after(delay, [this] {
    upkeep_.post([this, self = shared_from_this()] {
      be_idle();
      scrub_targets_ = verify_targets({});
      std::erase_if(scrub_targets_, [](const auto& target) { return !target.file->complete(); });
      std::reverse(scrub_targets_.begin(), scrub_targets_.end());
      VerifyProgress progress;
      progress.objects_total = scrub_targets_.size();
      for (const auto& target : scrub_targets_) progress.bytes_total += target.file->size();
      {
        std::lock_guard lock(scrub_mutex_);
        scrub_state_.running = true;
        scrub_state_.progress = progress;
      }
      scrub_next();
    });
  });
}

// One object at a time, so that a migration waits for no more.
void Cache::Impl::scrub_next() {
  if (stopping_) return;
  if (scrub_targets_.empty()) return end_scrub_pass();
  const VerifyTarget target = std::move(scrub_targets_.back());
  scrub_targets_.pop_back();
  auto begun = std::chrono::steady_clock::now();
  const auto each = [&](uint64_t bytes) {
    {
      std::lock_guard lock(scrub_mutex_);
      scrub_state_.progress.bytes_done += bytes;
      scrub_state_.checked_bytes += bytes;
    }
    // A quarter of the disk's time at most: readers that the kernel serves are not seen from here.
    const auto pause = 3 * (std::chrono::steady_clock::now() - begun);
    if (bytes > 0) {
      std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(pause, milliseconds(500)));
    }
    const bool go_on =
        wait_for_idle([this] { return stopping_.load(); }) && !target.file->retired();
    begun = std::chrono::steady_clock::now();
    return go_on;
  };
  const auto sound = check_file(target.file, true, each);
  // A disk that cannot be read says nothing of the bytes: that is for the zone's health.
  const bool corrupt = !sound && sound.error().code == Code::kCorrupt && !target.file->retired();
  {
    std::lock_guard lock(scrub_mutex_);
    ++scrub_state_.progress.objects_done;
    if (corrupt) ++scrub_state_.corrupt;
  }
  if (corrupt) found_corrupt("scrub", target, sound.error());
  upkeep_.post([this, self = shared_from_this()] { scrub_next(); });
}

void Cache::Impl::end_scrub_pass() {
  const int64_t now_ms = wall_ms();
  store_.save_header(kLastPass, std::to_string(now_ms));
  {
    std::lock_guard lock(scrub_mutex_);
    scrub_state_.running = false;
    scrub_state_.last_pass_ms = now_ms;
    ++scrub_state_.passes;
  }
  scrub_after(options_.scrub_interval);
}

}  // namespace nexus
