// Which objects go to another zone: the plan alone, no disk and no clock.
#include <gtest/gtest.h>

#include "backend/cache/tiering.h"

namespace nexus {
namespace {

constexpr int64_t kNow = 1000 * kDayMs;

TierZone zone(const char* tier, uint64_t room, uint64_t used = 0, uint64_t device = 0) {
  return {tier_rank(tier), room, used, device, true};
}
TierObject object(size_t in, uint64_t bytes, uint64_t hits, double days_ago = 0) {
  return {bytes, in, kNow - 1 - static_cast<int64_t>(days_ago * static_cast<double>(kDayMs)), hits,
          true};
}
std::vector<TierMove> plan(const std::vector<TierZone>& zones,
                           const std::vector<TierObject>& objects, bool rebalance = false,
                           uint64_t bytes_max = UINT64_MAX) {
  return plan_moves(zones, objects, {kNow, bytes_max, rebalance});
}

TEST(Tiering, TiersAreRanked) {
  EXPECT_LT(tier_rank("nvme"), tier_rank("ssd"));
  EXPECT_EQ(tier_rank("ssd"), tier_rank("nfs"));
  EXPECT_LT(tier_rank("nfs"), tier_rank("hdd"));
}

TEST(Tiering, HeatGrowsWithHitsAndFadesWithDays) {
  EXPECT_GT(heat_of(object(0, 1, 8), kNow), heat_of(object(0, 1, 2), kNow));
  EXPECT_GT(heat_of(object(0, 1, 2), kNow), heat_of(object(0, 1, 8, 3), kNow));
  TierObject never = object(0, 1, 5);
  never.last_access_ms = 0;
  EXPECT_LT(heat_of(never, kNow), heat_of(object(0, 1, 0, 300), kNow));
}

TEST(Tiering, WithOneTierNothingMoves) {
  EXPECT_TRUE(
      plan({zone("ssd", 0, 100), zone("ssd", 0, 100)}, {object(0, 50, 9), object(1, 50, 0, 30)})
          .empty());
}

TEST(Tiering, AHotObjectGoesToTheFastestTierWithRoom) {
  const std::vector<TierZone> zones = {zone("hdd", 1000, 50), zone("ssd", 1000),
                                       zone("nvme", 1000)};
  EXPECT_EQ(plan(zones, {object(0, 50, kHotHits)}), (std::vector<TierMove>{{0, 0, 2}}));
  EXPECT_EQ(plan({zones[0], zones[1], zone("nvme", 49)}, {object(0, 50, kHotHits)}),
            (std::vector<TierMove>{{0, 0, 1}}));
}

TEST(Tiering, WhatIsSeldomUsedOrLongAgoStaysDown) {
  const std::vector<TierZone> zones = {zone("hdd", 1000, 50), zone("nvme", 1000)};
  EXPECT_TRUE(plan(zones, {object(0, 50, kHotHits - 1)}).empty());
  EXPECT_TRUE(plan(zones, {object(0, 50, 100, 1)}).empty());
}

TEST(Tiering, WhatIsInUseStays) {
  TierObject open = object(0, 50, 9);
  open.movable = false;
  EXPECT_TRUE(plan({zone("hdd", 1000, 50), zone("nvme", 1000)}, {open}).empty());
}

TEST(Tiering, AZoneThatIsNotWellIsNeitherReadNorWritten) {
  std::vector<TierZone> zones = {zone("hdd", 1000, 50), zone("nvme", 1000)};
  zones[1].usable = false;
  EXPECT_TRUE(plan(zones, {object(0, 50, 9)}).empty());
  zones[1].usable = true;
  zones[0].usable = false;
  EXPECT_TRUE(plan(zones, {object(0, 50, 9)}).empty());
}

TEST(Tiering, ColderObjectsMakeRoomForAHotOne) {
  const std::vector<TierZone> zones = {zone("nvme", 10, 90), zone("hdd", 1000, 50)};
  const std::vector<TierObject> objects = {object(0, 45, 1, 5), object(0, 45, 1, 2),
                                           object(1, 40, 9)};
  EXPECT_EQ(plan(zones, objects), (std::vector<TierMove>{{0, 0, 1}, {2, 1, 0}}));
}

TEST(Tiering, EquallyHotObjectsDoNotChangePlaces) {
  EXPECT_TRUE(
      plan({zone("nvme", 10, 50), zone("hdd", 1000, 50)}, {object(0, 50, 8), object(1, 50, 9)})
          .empty());
}

TEST(Tiering, NothingIsMovedInVain) {
  // All that is cold is not enough.
  EXPECT_TRUE(plan({zone("nvme", 10, 60), zone("hdd", 1000, 100)},
                   {object(0, 20, 0, 9), object(0, 40, 9), object(1, 100, 9)})
                  .empty());
}

TEST(Tiering, AFullZoneSendsWhatIsColdDown) {
  const std::vector<TierZone> zones = {zone("nvme", 5, 95), zone("hdd", 1000)};
  const std::vector<TierObject> objects = {object(0, 10, 3, 0.1), object(0, 10, 3, 40),
                                           object(0, 10, 3, 20), object(0, 65, 3, 2)};
  EXPECT_EQ(plan(zones, objects), (std::vector<TierMove>{{1, 0, 1}, {2, 0, 1}}));
  EXPECT_TRUE(plan({zone("nvme", 15, 85), zone("hdd", 1000)}, objects).empty()) << "no pressure";
  EXPECT_TRUE(plan({zone("nvme", 5, 95), zone("hdd", 9)}, objects).empty()) << "no room below";
}

TEST(Tiering, NoMoreIsMovedThanMayBeWritten) {
  const std::vector<TierZone> zones = {zone("hdd", 1000, 50), zone("nvme", 1000)};
  EXPECT_EQ(plan(zones, {object(0, 30, 9), object(0, 20, 5)}, false, 40),
            (std::vector<TierMove>{{0, 0, 1}}));
  // A victim counts too.
  EXPECT_TRUE(plan({zone("nvme", 10, 50), zone("hdd", 1000, 50)},
                   {object(0, 50, 0, 9), object(1, 50, 9)}, false, 99)
                  .empty());
}

TEST(Tiering, ZonesOfOneDiskShareItsRoom) {
  EXPECT_EQ(plan({zone("hdd", 1000, 120), zone("nvme", 70, 0, 7), zone("nvme", 70, 0, 7)},
                 {object(0, 60, 9), object(0, 60, 8)}),
            (std::vector<TierMove>{{0, 0, 1}}));
}

TEST(Tiering, RebalancingEvensOutDisksOfOneTier) {
  const std::vector<TierZone> zones = {zone("ssd", 20, 80, 1), zone("ssd", 100, 0, 2)};
  std::vector<TierObject> objects;
  for (int i = 0; i < 8; ++i) objects.push_back(object(0, 10, 1, i));
  EXPECT_TRUE(plan(zones, objects).empty());
  // The coldest four: both are 40 % full then.
  EXPECT_EQ(plan(zones, objects, true),
            (std::vector<TierMove>{{7, 0, 1}, {6, 0, 1}, {5, 0, 1}, {4, 0, 1}}));
  EXPECT_TRUE(plan({zones[0], zone("ssd", 100, 0, 1)}, objects, true).empty()) << "one disk";
  EXPECT_TRUE(plan({zones[0], zone("ssd", 35, 65, 2)}, objects, true).empty()) << "not worth it";
}

TEST(Tiering, APlanIsStable) {
  // What was moved does not want to move back.
  const std::vector<TierZone> after = {zone("nvme", 5, 95), zone("hdd", 955, 45)};
  EXPECT_TRUE(plan(after, {object(0, 95, 9), object(1, 45, 1, 5)}).empty());
}

}  // namespace
}  // namespace nexus
