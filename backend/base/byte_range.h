#pragma once

#include <cstdint>

namespace nexus {

// [offset, offset + length) in bytes.
struct ByteRange {
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t end() const { return offset + length; }
  bool operator==(const ByteRange&) const = default;
};

}  // namespace nexus
