#include "backend/format/strides.h"

#include <algorithm>

namespace nexus {

std::optional<std::vector<uint64_t>> dense_strides(std::span<const uint64_t> shape) {
  std::vector<uint64_t> strides(shape.size());
  uint64_t next = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = next;
    if (i > 0 && __builtin_mul_overflow(next, std::max<uint64_t>(shape[i], 1), &next)) {
      return std::nullopt;
    }
  }
  return strides;
}

bool is_dense(std::span<const uint64_t> shape, std::span<const uint64_t> stride) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return true;
  const std::optional<std::vector<uint64_t>> dense = dense_strides(shape);
  if (!dense) return false;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] != 1 && stride[i] != (*dense)[i]) return false;
  }
  return true;
}

std::optional<uint64_t> strided_extent(std::span<const uint64_t> shape,
                                       std::span<const uint64_t> stride) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  uint64_t extent = 1;
  for (size_t i = 0; i < shape.size(); ++i) {
    uint64_t reach = 0;
    if (__builtin_mul_overflow(shape[i] - 1, stride[i], &reach) ||
        __builtin_add_overflow(extent, reach, &extent)) {
      return std::nullopt;
    }
  }
  return extent;
}

}  // namespace nexus
