// How a copy into the RAM tier is cut: steps that readers ask for one after the other, so many
// readers at once. Internal to cache/.
#pragma once

#include <cstdint>

#include "backend/cache/cache.h"

namespace nexus {

struct PromotionPlan {
  uint64_t step_bytes = 0;  // a multiple of kChunkBytes
  int readers = 0;
};

// Threads of nx-promote, and what all readers of one copy have on the way at most.
inline constexpr int kPromoteThreads = 4;
inline constexpr uint64_t kPromoteBytesMax = 128 << 20;
// A step that has come is hashed in jobs of this size.
inline constexpr uint64_t kHashBytes = 8 << 20;

// Steps so large and readers so many that the disk's queue stays full while one reader takes up its
// next step; within kPromoteBytesMax.
PromotionPlan plan_promotion(const BulkShape& shape, uint64_t file_bytes);

}  // namespace nexus
