#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "prefetch/sequential.h"

namespace nexus::prefetch {
namespace {

constexpr uint64_t kMiB = 1 << 20, kSize = 1000 * kMiB;

TEST(SequentialReadAhead, AFirstReadPredictsNothing) {
  SequentialReadAhead ahead;
  EXPECT_EQ(ahead.on_read({500 * kMiB, kMiB}, kSize).length, 0u);
  EXPECT_EQ(ahead.on_read({100 * kMiB, kMiB}, kSize).length, 0u);
}

TEST(SequentialReadAhead, AWalkIsFetchedAheadWithoutGapsOrRepeatsInDoublingWindows) {
  SequentialReadAhead ahead;
  uint64_t fetched = kMiB, largest = 0;
  ahead.on_read({0, kMiB}, kSize);
  for (uint64_t at = kMiB; at < 500 * kMiB; at += kMiB) {
    const ByteRange next = ahead.on_read({at, kMiB}, kSize);
    if (next.length == 0) continue;
    EXPECT_EQ(next.offset, std::max(fetched, at + kMiB));
    EXPECT_LE(next.end(), at + kMiB + kWindowMax);
    largest = std::max(largest, next.length);
    fetched = next.end();
  }
  EXPECT_GE(fetched, 500 * kMiB);
  EXPECT_GE(largest, kWindowMax / 2);
}

TEST(SequentialReadAhead, ALongWindowHasToBeEarned) {
  SequentialReadAhead ahead;
  ahead.on_read({100 * kMiB, kMiB}, kSize);
  for (uint64_t walked = 2 * kMiB; walked < 500 * kMiB; walked += kMiB) {
    const uint64_t end = 100 * kMiB + walked;
    const ByteRange next = ahead.on_read({end - kMiB, kMiB}, kSize);
    const uint64_t reach = next.length > 0 ? next.end() - end : 0;
    EXPECT_LE(reach, std::max(kWindowEasy, 2 * walked));
  }
}

TEST(SequentialReadAhead, AHeaderIsNoWalk) {
  SequentialReadAhead ahead;
  ahead.on_read({0, 8}, kSize);
  EXPECT_EQ(ahead.on_read({8, 300 << 10}, kSize).length, 0u);
  EXPECT_GT(ahead.on_read({300 << 10, kMiB}, kSize).length, 0u);
}

// Reads [0, bytes) and returns the farthest that any read asked for.
uint64_t reach_of(SequentialReadAhead& ahead, uint64_t bytes, uint64_t begin = 0) {
  uint64_t reach = 0;
  for (uint64_t at = begin; at < begin + bytes; at += kMiB) {
    reach = std::max(reach, ahead.on_read({at, kMiB}, kSize).end());
  }
  return reach;
}

TEST(SequentialReadAhead, WhoWalkedOneFileOfAModelIsTrustedInTheNext) {
  const auto walked = std::make_shared<WalkedBytes>(0);
  {
    SequentialReadAhead first(walked);
    EXPECT_LE(reach_of(first, 3 * kMiB), 3 * kMiB + kWindowEasy);
    reach_of(first, 600 * kMiB);
  }
  SequentialReadAhead head(walked);
  EXPECT_LE(reach_of(head, kMiB), 2 * kMiB + kWindowMin);  // a header is one still
  SequentialReadAhead second(walked);
  EXPECT_GE(reach_of(second, 3 * kMiB), kWindowMax);
  SequentialReadAhead middle(walked);
  EXPECT_LE(reach_of(middle, 3 * kMiB, 500 * kMiB), 503 * kMiB + kWindowEasy);
}

TEST(SequentialReadAhead, TrustEndsWithAWalkThatDoes) {
  const auto walked = std::make_shared<WalkedBytes>(600 * kMiB);
  {
    SequentialReadAhead second(walked);
    EXPECT_GE(reach_of(second, 3 * kMiB), kWindowMax);
  }
  SequentialReadAhead third(walked);
  EXPECT_LE(reach_of(third, 3 * kMiB), 3 * kMiB + kWindowEasy);
}

TEST(SequentialReadAhead, StopsAtTheEndOfTheObject) {
  SequentialReadAhead ahead;
  ahead.on_read({kSize - 3 * kMiB, kMiB}, kSize);
  EXPECT_EQ(ahead.on_read({kSize - 2 * kMiB, kMiB}, kSize), (ByteRange{kSize - kMiB, kMiB}));
  EXPECT_EQ(ahead.on_read({kSize - kMiB, kMiB}, kSize).length, 0u);
}

TEST(SequentialReadAhead, RereadsAndStragglersAskForNothing) {
  SequentialReadAhead ahead;
  ahead.on_read({0, kMiB}, kSize);
  EXPECT_GT(ahead.on_read({kMiB, kMiB}, kSize).length, 0u);
  EXPECT_EQ(ahead.on_read({0, kMiB}, kSize).length, 0u);
  EXPECT_EQ(ahead.on_read({kMiB, kMiB}, kSize).length, 0u);
}

TEST(SequentialReadAhead, SeveralWalksAreFollowedAtOnce) {
  SequentialReadAhead ahead;
  for (uint64_t walk = 0; walk < 8; ++walk) ahead.on_read({walk * 100 * kMiB, kMiB}, kSize);
  for (uint64_t walk = 0; walk < 8; ++walk) {
    EXPECT_EQ(ahead.on_read({walk * 100 * kMiB + kMiB, kMiB}, kSize),
              (ByteRange{walk * 100 * kMiB + 2 * kMiB, kWindowMin}));
  }
}

TEST(SequentialReadAhead, TheLeastRecentOfTooManyWalksIsForgotten) {
  SequentialReadAhead ahead;
  for (uint64_t walk = 0; walk < 17; ++walk) ahead.on_read({walk * 50 * kMiB, kMiB}, kSize);
  EXPECT_EQ(ahead.on_read({kMiB, kMiB}, kSize).length, 0u);
  EXPECT_GT(ahead.on_read({16 * 50 * kMiB + kMiB, kMiB}, kSize).length, 0u);
}

}  // namespace
}  // namespace nexus::prefetch
