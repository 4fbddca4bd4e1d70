// Where a transfer's bytes go: gathered to large writes, then into the object's file.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "backend/cache/impl.h"

namespace nexus {

namespace {
constexpr size_t kBuffersKept = 8;  // 16 MiB
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
  {
    std::lock_guard lock(buffers_mutex_);
    if (!buffers_.empty()) {
      auto buffer = std::move(buffers_.back());
      buffers_.pop_back();
      return buffer;
    }
  }
  return std::shared_ptr<std::byte[]>(new std::byte[kWriteBytes]);
}

void Cache::Impl::keep_buffer(std::shared_ptr<std::byte[]> buffer) {
  if (!buffer) return;
  std::lock_guard lock(buffers_mutex_);
  if (buffers_.size() < kBuffersKept) buffers_.push_back(std::move(buffer));
}

Result<void> Cache::Impl::write_gathered(const std::shared_ptr<Run>& run, Part& part) {
  const uint64_t length = std::exchange(part.gathered_bytes, 0);
  if (length == 0) return {};
  run->gathered -= length;
  auto written = run->file->write(part.gathered_at, part.gathered, length);
  if (!written) {
    part.gathered.reset();  // a disk that hangs may still read from it
    return written;
  }
  if (part.at == part.range.end()) keep_buffer(std::move(part.gathered));
  arrived(run, part.gathered_at, length);
  return {};
}

}  // namespace nexus
