// Which engine a zone's bytes go by, and what follows from its settings for a copy into memory.
#include <gtest/gtest.h>
#include <liburing.h>

#include <cerrno>

#include "backend/cache/promotion_plan.h"
#include "backend/io/zone_engines.h"

namespace nexus {
namespace {

constexpr uint64_t kMiB = 1 << 20;

io::EngineSettings settings(uint64_t block_size, unsigned depth) {
  io::EngineSettings made;
  made.block_size = block_size;
  made.queue_depth = depth;
  return made;
}

io::ZoneTuning zone(io::EngineSettings read, io::EngineSettings write,
                    io::TuningState state = io::TuningState::kFresh) {
  io::ZoneTuning made;
  made.loaded.state = state;
  made.loaded.tuning.read = io::TunedDirection{read, 0, 0};
  made.loaded.tuning.write = io::TunedDirection{write, 0, 0};
  return made;
}

io::EngineOptions without_rings() {
  io::EngineOptions options;
  options.queue_init = [](unsigned, io_uring*, io_uring_params*) { return -EPERM; };
  return options;
}

TEST(IoZoneEngines, EachZoneHasItsSettingsAndEqualOnesShareAnEngine) {
  const auto fast = settings(4 * kMiB, 32), slow = settings(512 << 10, 4);
  const io::ZoneEngines engines({zone(fast, slow), zone(slow, slow), zone(fast, slow)},
                                without_rings());
  EXPECT_EQ(engines.engines().size(), 2u);
  EXPECT_EQ(engines.of(0).read_settings(), fast);
  EXPECT_EQ(engines.of(0).write_settings(), slow);
  EXPECT_EQ(engines.of(1).read_settings(), slow);
  EXPECT_EQ(&engines.of(2), &engines.of(0));
}

TEST(IoZoneEngines, WhatIsStaleOrWasNeverMeasuredGoesByDefaults) {
  const auto fast = settings(4 * kMiB, 32);
  const io::ZoneEngines engines({zone(fast, fast), zone(fast, fast, io::TuningState::kStale),
                                 zone(fast, fast, io::TuningState::kBad), io::ZoneTuning{}},
                                without_rings());
  EXPECT_EQ(engines.engines().size(), 2u);
  for (const int other : {1, 2, 3}) {
    EXPECT_EQ(engines.of(other).read_settings(), io::EngineSettings{}) << other;
  }
}

TEST(IoZoneEngines, AZoneThatIsNotKnownHasTheFirstOnes) {
  const io::ZoneEngines none({}, without_rings());
  EXPECT_EQ(none.of(0).read_settings(), io::EngineSettings{});
  const auto fast = settings(4 * kMiB, 32);
  const io::ZoneEngines engines({zone(fast, fast), io::ZoneTuning{}}, without_rings());
  EXPECT_EQ(&engines.of(-1), &engines.of(0));
  EXPECT_EQ(&engines.of(7), &engines.of(0));
}

uint64_t in_flight(const PromotionPlan& plan) {
  return plan.step_bytes * static_cast<uint64_t>(plan.readers);
}

TEST(CachePromotionPlan, KeepsTheQueueFullWhileAReaderTakesItsNextStep) {
  for (const uint64_t block : {uint64_t{128} << 10, kMiB, 2 * kMiB, 8 * kMiB}) {
    for (const uint64_t depth : {1, 4, 8, 16, 32, 64}) {
      const PromotionPlan plan = plan_promotion({block, block * depth}, 4096 * kMiB);
      EXPECT_EQ(plan.step_bytes % kChunkBytes, 0u);
      if (block >= kMiB) {
        EXPECT_EQ(plan.step_bytes % block, 0u) << block << " x " << depth;
      }
      EXPECT_GE(plan.readers, 2);
      EXPECT_LE(in_flight(plan), kPromoteBytesMax);
      if (block * depth <= 96 * kMiB) {
        EXPECT_GE(in_flight(plan) - plan.step_bytes, block * depth) << block << " x " << depth;
      }
    }
  }
}

TEST(CachePromotionPlan, IsBoundedWhateverWasStored) {
  for (const uint64_t block : {uint64_t{4096}, kMiB, 3 * kMiB, 64 * kMiB}) {
    for (const uint64_t window : {uint64_t{0}, uint64_t{4096}, 4096 * kMiB, UINT64_MAX}) {
      for (const uint64_t file : {uint64_t{1}, kMiB, 100 * kMiB, uint64_t{1} << 40}) {
        const PromotionPlan plan = plan_promotion({block, window}, file);
        EXPECT_GE(plan.readers, 1);
        EXPECT_LE(plan.readers, kPromoteThreads);
        EXPECT_GT(plan.step_bytes, 0u);
        EXPECT_EQ(plan.step_bytes % kChunkBytes, 0u);
        EXPECT_LE(in_flight(plan), kPromoteBytesMax) << block << " " << window << " " << file;
      }
    }
  }
}

TEST(CachePromotionPlan, ASmallFileIsStillReadInSteps) {
  // So that the hashes of one step are checked while the next one comes.
  const PromotionPlan plan = plan_promotion({8 * kMiB, 512 * kMiB}, 24 * kMiB);
  EXPECT_EQ(plan.step_bytes, 8 * kMiB);
  EXPECT_EQ(plan.readers, 3);
}

}  // namespace
}  // namespace nexus
