// The access history: which accesses are one walk; and how reads of a file become layers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "prefetch/history.h"
#include "prefetch/read_meter.h"

namespace nexus::prefetch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int> walk_at(AccessHistory& history, int layer) {
  const Walk* walk = history.on_access(layer);
  return walk ? walk->layers : std::vector<int>{};
}

TEST(PrefetchHistory, NeighboursAreOneWalkWhoeverReads) {
  AccessHistory history;
  EXPECT_THAT(walk_at(history, 0), ElementsAre(0));
  EXPECT_THAT(walk_at(history, 1), ElementsAre(0, 1));
  EXPECT_THAT(walk_at(history, 2), ElementsAre(0, 1, 2));
  EXPECT_EQ(history.walks().size(), 1u);
}

TEST(PrefetchHistory, ASecondReaderOfTheSameLayersIsTheSameWalk) {
  AccessHistory history;
  for (int layer = 0; layer < 10; ++layer) {
    EXPECT_TRUE(history.on_access(layer));
    EXPECT_FALSE(history.on_access(layer));
    if (layer > 3) {
      EXPECT_FALSE(history.on_access(layer - 1));  // a rank that lags
    }
  }
  EXPECT_EQ(history.walks().size(), 1u);
  EXPECT_EQ(history.order().size(), 10u);
}

TEST(PrefetchHistory, InterleavedRanksAreAWalkEach) {
  AccessHistory history;
  for (int step = 0; step < 8; ++step) {
    const auto low = walk_at(history, step);
    const auto high = walk_at(history, 8 + step);
    EXPECT_EQ(low.size(), static_cast<size_t>(step + 1));
    EXPECT_EQ(high.size(), static_cast<size_t>(step + 1));
  }
  EXPECT_EQ(history.walks().size(), 2u);
}

TEST(PrefetchHistory, EqualStridesAreAWalkOnceThreeAreSeen) {
  AccessHistory history;
  EXPECT_THAT(walk_at(history, 1), ElementsAre(1));
  EXPECT_THAT(walk_at(history, 5), ElementsAre(5));
  EXPECT_THAT(walk_at(history, 9), ElementsAre(1, 5, 9));
  EXPECT_THAT(walk_at(history, 13), ElementsAre(1, 5, 9, 13));
  EXPECT_EQ(history.walks().size(), 1u);
}

TEST(PrefetchHistory, TwoStridedRanksAreFoundOnceFourOfOneAreSeen) {
  AccessHistory history;
  std::vector<int> low;
  for (int step = 0; step < 5; ++step) {
    low = walk_at(history, 3 * step);
    history.on_access(31 - 4 * step);
  }
  EXPECT_THAT(low, ElementsAre(0, 3, 6, 9, 12));
}

TEST(PrefetchHistory, AReverseWalkIsOneWalk) {
  AccessHistory history;
  history.on_access(9);
  history.on_access(8);
  EXPECT_THAT(walk_at(history, 7), ElementsAre(9, 8, 7));
}

TEST(PrefetchHistory, ALayerThatIsPassedUnseenKeepsTheWalkAndItsStep) {
  AccessHistory history;
  for (int layer : {0, 1, 2}) history.on_access(layer);
  EXPECT_THAT(walk_at(history, 4), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(history.order(), ElementsAre(0, 1, 2, 4));
  EXPECT_EQ(history.walks()[0].step(), 1);
}

TEST(PrefetchHistory, TheOrderIsThatOfFirstAccesses) {
  AccessHistory history;
  for (int layer : {4, 9, 4, 0, 9, 2}) history.on_access(layer);
  EXPECT_THAT(history.order(), ElementsAre(4, 9, 0, 2));
}

TEST(PrefetchHistory, AWalkIsLeftWhenOthersWereBusyMeanwhile) {
  AccessHistory history;
  history.on_access(0);
  EXPECT_FALSE(history.abandoned(history.walks()[0]));
  history.on_access(20);
  EXPECT_FALSE(history.abandoned(history.walks()[0]));
  history.on_access(30);
  EXPECT_TRUE(history.abandoned(history.walks()[0]));
}

TEST(PrefetchHistory, AWalkThatOnlyBeganIsLeftLaterBesideOneThatGoesOn) {
  AccessHistory history;
  for (const int layer : {0, 20, 0, 20, 0, 21, 21, 22}) history.on_access(layer);
  ASSERT_THAT(history.walks()[0].layers, ElementsAre(0));
  EXPECT_FALSE(history.abandoned(history.walks()[0]));
  for (const int layer : {23, 24}) history.on_access(layer);
  EXPECT_TRUE(history.abandoned(history.walks()[0]));
}

TEST(PrefetchHistory, AnyOrderKeepsItsBounds) {
  AccessHistory history;
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    const int layer = static_cast<int>(random() % 128);
    const Walk* walk = history.on_access(layer);
    if (walk) {
      EXPECT_EQ(walk->last(), layer);
      EXPECT_LE(walk->layers.size(), 32u);
    }
    ASSERT_LE(history.walks().size(), 16u);
    ASSERT_LE(history.recent().size(), 32u);
  }
  EXPECT_EQ(history.order().size(), 128u);
}

constexpr uint64_t kMiB = 1 << 20;

TEST(PrefetchReadMeter, AProbeIsNoLayerAndMoreIs) {
  ReadMeter meter;
  const LayerSpans spans{{4096, 10 * kMiB, 0}, {10 * kMiB, 20 * kMiB, 1}};
  EXPECT_THAT(meter.on_read(spans, {0, 4096}), IsEmpty());  // the header belongs to no layer
  EXPECT_THAT(meter.on_read(spans, {0, kMiB}), IsEmpty());
  EXPECT_THAT(meter.on_read(spans, {kMiB, kMiB}), IsEmpty());
  EXPECT_THAT(meter.on_read(spans, {2 * kMiB, kMiB}), ElementsAre(0));
  EXPECT_THAT(meter.on_read(spans, {3 * kMiB, kMiB}), IsEmpty());  // said already
  EXPECT_THAT(meter.on_read(spans, {10 * kMiB, 4 * kMiB}), ElementsAre(1));
}

TEST(PrefetchReadMeter, OneReadMayReachSeveralSmallLayers) {
  ReadMeter meter;
  LayerSpans spans;
  for (int layer = 0; layer < 6; ++layer) {
    const uint64_t begin = static_cast<uint64_t>(layer) * 1000;
    spans.push_back({begin, begin + 1000, layer});
  }
  EXPECT_THAT(meter.on_read(spans, {500, 2000}), ElementsAre(0, 1, 2));
  EXPECT_THAT(meter.on_read(spans, {5100, 100}), IsEmpty());
  EXPECT_THAT(meter.on_read(spans, {5200, 400}), ElementsAre(5));
  EXPECT_THAT(meter.on_read(spans, {6000, 100}), IsEmpty());  // behind the last
}

TEST(PrefetchReadMeter, ALayerInPiecesCountsTogetherAndAgainAfterOthers) {
  ReadMeter meter;
  LayerSpans spans{{0, 1 * kMiB, 0}, {kMiB + 9, 2 * kMiB, 0}};
  for (int layer = 1; layer < 12; ++layer) {
    const uint64_t begin = static_cast<uint64_t>(layer + 1) * kMiB;
    spans.push_back({begin, begin + kMiB, layer});
  }
  EXPECT_THAT(meter.on_read(spans, {0, 900 << 10}), IsEmpty());
  EXPECT_THAT(meter.on_read(spans, {kMiB, 200 << 10}), ElementsAre(0));
  for (int layer = 1; layer < 12; ++layer) {
    EXPECT_THAT(meter.on_read(spans, {static_cast<uint64_t>(layer + 1) * kMiB, kMiB}),
                ElementsAre(layer));
  }
  EXPECT_THAT(meter.on_read(spans, {0, 2 * kMiB}), ElementsAre(0));  // the next pass
}

}  // namespace
}  // namespace nexus::prefetch
