// Where a transfer's bytes go: gathered to large writes, then into the object's file.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
constexpr size_t kBuffersKept = 12;  // 24 MiB
constexpr int kWritesMax = 6;       // on their way to the disk beside what the network's thread writes itself
}  // namespace

// The network's pieces are small and begin anywhere, so they are gathered first (see kWriteBytes).
Result<void> Cache::Impl::land(const std::shared_ptr<Run>& run, Part& part, uint64_t dest,
                               std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (part.gathered_bytes > 0 && dest != part.gathered_at + part.gathered_bytes) {
      if (auto written = write_gathered(run, part); !written) return written;
    }
    const uint64_t step =
        std::min<uint64_t>(bytes.size(), part.write_bytes - dest % part.write_bytes);
    const auto head = bytes.first(step);
    if (step == part.write_bytes) {
      if (auto written = run->file->write(dest, head); !written) return written;
      arrived(run, dest, step);
    } else {
      if (!part.gathered) part.gathered = take_buffer();
      if (part.gathered_bytes == 0) part.gathered_at = dest;
      std::memcpy(part.gathered.get() + part.gathered_bytes, head.data(), step);
      part.gathered_bytes += step;
      run->gathered += step;
      if ((dest + step) % part.write_bytes == 0) {
        if (auto written = write_gathered(run, part); !written) return written;
      }
    }
    dest += step;
    bytes = bytes.subspan(step);
  }
  return {};
}

// Kept from part to part: fresh memory is a page fault for each 4 KiB, a tenth of the transfer's
// processor time.
std::shared_ptr<std::byte[]> Cache::Impl::take_buffer() {
  std::unique_ptr<std::byte[]> buffer;
  {
    std::lock_guard lock(buffers_mutex_);
    if (!buffers_.empty()) {
      buffer = std::move(buffers_.back());
      buffers_.pop_back();
    }
  }
  if (!buffer) buffer.reset(new std::byte[kWriteBytes]);
  // Once nobody reads from it: not the hashing, nor a write on a disk that hangs.
  return {buffer.release(), [weak = weak_from_this()](std::byte* bytes) {
            std::unique_ptr<std::byte[]> over(bytes);
            const auto self = weak.lock();
            if (!self) return;
            std::lock_guard lock(self->buffers_mutex_);
            if (self->buffers_.size() < kBuffersKept) self->buffers_.push_back(std::move(over));
          }};
}

// On the pool, while the network's thread receives more; by that thread itself where the disk does not keep up, which
// makes the origin wait.
Result<void> Cache::Impl::write_gathered(const std::shared_ptr<Run>& run, Part& part) {
  const uint64_t length = std::exchange(part.gathered_bytes, 0);
  if (length == 0) return {};
  std::shared_ptr<std::byte[]> bytes = std::move(part.gathered);
  const uint64_t at = part.gathered_at;
  if (writes_.fetch_add(1) >= kWritesMax) return write_landed(run, at, bytes, length);
  pool_.post([this, self = shared_from_this(), run, at, length, bytes = std::move(bytes)] {
    if (auto written = write_landed(run, at, bytes, length); !written) run_failed(run, written.error());
  });
  return {};
}

Result<void> Cache::Impl::write_landed(const std::shared_ptr<Run>& run, uint64_t at,
                                       const std::shared_ptr<std::byte[]>& bytes, uint64_t length) {
  auto written = run->file->write(at, bytes, length);
  --writes_;
  run->gathered -= length;
  if (written) arrived(run, at, length, bytes);
  return written;
}

}  // namespace nexus
