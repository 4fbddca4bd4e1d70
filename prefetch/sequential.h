// Read-ahead within one object that is not complete: a pure function of where readers were. Issue 5
// adds layer-wise predictors beside it.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/base/byte_range.h"

namespace nexus::prefetch {

inline constexpr uint64_t kWindowMin = 4ull << 20;  // bytes
// Bytes; what any walk may have ahead of it.
inline constexpr uint64_t kWindowEasy = 16ull << 20;
// Bytes; what a walk may have ahead that has read twice as much already: eight requests of 8 MiB under way and as much
// again here, which hides round trips of 20 ms at 40 MB/s a connection. A walk that ends has fetched at most half of
// what it read for nothing.
inline constexpr uint64_t kWindowMax = 128ull << 20;

// State of the streams over one object, shared by all its handles: a reader split over threads or
// processes is still one walk. At most kStreams streams are followed, the least recent is
// forgotten. Not thread-safe: the caller guards it.
class SequentialReadAhead {
 public:
  // A read of [range) of an object of `size` bytes. Returns what to fetch beyond it (length 0:
  // nothing). The window doubles from kWindowMin to kWindowEasy, and to kWindowMax as the stream goes on; the range
  // returned starts where the last one ended, and comes only once half of the window is used up.
  ByteRange on_read(ByteRange range, uint64_t size);

 private:
  static constexpr int kStreams = 16;
  struct Stream {
    uint64_t next = 0;    // where the next read of the walk would start
    uint64_t ahead = 0;   // bytes up to here were asked for
    uint64_t window = 0;  // 0: seen once
    uint64_t used = 0;    // clock of the last touch
    uint64_t begin = 0;   // where the walk began
  };
  std::vector<Stream> streams_;
  uint64_t clock_ = 0;
};

}  // namespace nexus::prefetch
