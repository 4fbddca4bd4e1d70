// Strides in elements, as torch counts them. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace nexus {

// Row-major; a dimension of 0 counts as 1. Nothing on overflow.
std::optional<std::vector<uint64_t>> dense_strides(std::span<const uint64_t> shape);

// Whether the view is row-major without gaps. The stride of a dimension of 1 does not matter, and a
// view without elements always is. `stride` is as long as `shape`.
bool is_dense(std::span<const uint64_t> shape, std::span<const uint64_t> stride);

// Elements from the view's first to one past its last, 0 without elements. Nothing on overflow.
std::optional<uint64_t> strided_extent(std::span<const uint64_t> shape,
                                       std::span<const uint64_t> stride);

}  // namespace nexus
