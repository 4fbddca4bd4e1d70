#include "backend/cache/promotion_plan.h"

#include <algorithm>

namespace nexus {

namespace {

// Small enough that hashing keeps up close behind.
constexpr uint64_t kStepMin = 8 << 20;

uint64_t rounded_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

PromotionPlan plan_promotion(const BulkShape& shape, uint64_t file_bytes) {
  const uint64_t window = std::clamp(std::min(shape.in_flight_bytes, file_bytes), kStepMin,
                                     kPromoteBytesMax / kPromoteThreads * (kPromoteThreads - 1));
  // All readers but one keep the queue full.
  uint64_t step = std::max(kStepMin, rounded_up(window / (kPromoteThreads - 1), kChunkBytes));
  // Whole blocks, where blocks are whole chunks: a step that ends amid one asks for a short one.
  if (shape.block_bytes > kChunkBytes && shape.block_bytes % kChunkBytes == 0) {
    step = rounded_up(step, shape.block_bytes);
  }
  step = std::min(step, kPromoteBytesMax / 2);
  const uint64_t wanted = (window + step - 1) / step + 1;
  const uint64_t bounded = std::min({wanted, kPromoteBytesMax / step, uint64_t{kPromoteThreads},
                                     (file_bytes + step - 1) / step});
  return {step, static_cast<int>(std::max<uint64_t>(bounded, 1))};
}

}  // namespace nexus
