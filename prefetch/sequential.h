// Read-ahead within one object that is not complete: a pure function of where readers were. Issue 5
// adds layer-wise predictors beside it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backend/base/byte_range.h"

namespace nexus::prefetch {

inline constexpr uint64_t kWindowMin = 8ull << 20;  // bytes
// Bytes; who has read no more looked at a header.
inline constexpr uint64_t kGlance = 512ull << 10;
// Bytes; who has read as much of a file reads on as in the model's other files.
inline constexpr uint64_t kProbe = 2ull << 20;
// Bytes; what any walk may have ahead of it.
inline constexpr uint64_t kWindowEasy = 32ull << 20;
// Bytes; what a walk may have ahead that has read half as much already. Half of it is asked for at once: eight requests of
// 16 MiB, beside which a round trip of 20 ms is little at 100 MB/s a connection.
inline constexpr uint64_t kWindowMax = 256ull << 20;

// How far the files of one model were walked one after the other, shared by their read-ahead: who has read one shard from
// its head goes on to do so with the next. Thread-safe.
using WalkedBytes = std::atomic<uint64_t>;

// State of the streams over one object, shared by all its handles: a reader split over threads or
// processes is still one walk. At most kStreams streams are followed, the least recent is
// forgotten. Not thread-safe: the caller guards it.
class SequentialReadAhead {
 public:
  // `walked`: of the object's model; nullptr: it stands alone.
  explicit SequentialReadAhead(std::shared_ptr<WalkedBytes> walked = nullptr)
      : walked_(std::move(walked)) {}
  ~SequentialReadAhead();
  SequentialReadAhead(const SequentialReadAhead&) = delete;
  SequentialReadAhead& operator=(const SequentialReadAhead&) = delete;
  // A read of [range) of an object of `size` bytes. Returns what to fetch beyond it (length 0:
  // nothing). The window doubles from kWindowMin to kWindowEasy, and to kWindowMax as the stream goes on; a stream that
  // begins at the object's head starts with what was walked in the model's other files. The range
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
  const std::shared_ptr<WalkedBytes> walked_;
  uint64_t longest_ = 0;  // bytes of the longest walk over this object
  bool trusted_ = false;  // one had a window for what was walked elsewhere
  std::vector<Stream> streams_;
  uint64_t clock_ = 0;
};

}  // namespace nexus::prefetch
