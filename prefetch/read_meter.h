// Turns reads of a file into layers: a pure function of where readers were.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/model/layer_access.h"

namespace nexus::prefetch {

// Of a layer's bytes in one file; less is a probe. A buffered reader that looks at a header takes
// 1 MiB, the mount's block size, and a page fault what the kernel reads around it.
inline constexpr uint64_t kProbeBytes = 2 << 20;

// State of one object, shared by its handles. Layers are announced again only after kLayersMax
// others were read. Not thread-safe: the caller guards it.
class ReadMeter {
 public:
  // Layers of which this read made it more than a probe, in the order of their bytes. A small layer
  // counts once half of it was read.
  std::vector<int> on_read(const LayerSpans& spans, ByteRange range);

 private:
  static constexpr size_t kLayersMax = 8;
  struct Reading {
    int layer = 0;
    uint64_t bytes = 0;
    bool announced = false;
    uint64_t used = 0;  // clock of the last read
  };
  std::vector<Reading> readings_;
  uint64_t clock_ = 0;
};

}  // namespace nexus::prefetch
