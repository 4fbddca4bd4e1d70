// Objects that go to other zones by how much they are used, under readers and removals.
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "backend/cache/tiering.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

constexpr uint64_t kSize = 3 * kMiB + 5;
// The first takes what comes: the store of the test fills zones in turn.
const std::vector<ZoneOptions> kTiers = {{"hdd", 0, "hdd", 0}, {"nvme", 0, "nvme", 0}};

class CacheMigrate : public testing::Test {
 protected:
  static CacheOptions no_linger() {
    CacheOptions options;
    options.linger = std::chrono::milliseconds(0);
    return options;
  }
  explicit CacheMigrate(CacheOptions options = no_linger(), std::vector<ZoneOptions> zones = kTiers)
      : bed_(std::move(options), "", std::move(zones)) {
    for (int i = 0; i < 3; ++i) {
      truth_.push_back(random_bytes(kSize, 70 + static_cast<uint64_t>(i)));
      bed_.origin().put("f" + std::to_string(i), truth_.back());
    }
  }
  void read_often(const std::string& name) {
    const auto object = bed_.blob(name);
    for (uint64_t i = 0; i <= kHotHits; ++i) bed_.read_all(object);
  }
  Result<MigrationReport> migrate() {
    Answer<MigrationReport> answer;
    bed_->migrate({}, answer.callback());
    return answer.get();
  }
  int zone_of(const std::string& name) { return bed_.blob(name)->info().zone; }

  std::vector<std::string> truth_;
  CacheUnderTest bed_;
};

TEST_F(CacheMigrate, WhatIsHotGoesUpAndWhatIsNotStays) {
  read_often("f0");
  bed_.read_all(bed_.blob("f1"));
  ASSERT_EQ(zone_of("f0"), 0);
  const auto report = migrate();
  ASSERT_TRUE(report.has_value()) << report.error().what;
  ASSERT_EQ(report->moved.size(), 1u);
  EXPECT_TRUE(report->failed.empty());
  EXPECT_EQ(report->moved[0].name, "org/m@" + kCommit + "/f0");
  EXPECT_EQ(report->moved[0].from_tier, "hdd");
  EXPECT_EQ(report->moved[0].to_tier, "nvme");
  EXPECT_EQ(zone_of("f0"), 1);
  EXPECT_EQ(zone_of("f1"), 0);
  const auto asked = bed_.origin().bytes_asked("f0");
  EXPECT_EQ(bed_.read_all(bed_.blob("f0")), truth_[0]);
  EXPECT_EQ(bed_.origin().bytes_asked("f0"), asked) << "not fetched again";
  EXPECT_TRUE(migrate()->moved.empty()) << "a second pass has nothing to do";
  const CacheStats stats = bed_->stats();
  EXPECT_EQ(stats.migrated_objects, 1u);
  EXPECT_EQ(stats.migrated_bytes, kSize);
  EXPECT_EQ(stats.disk_cache_bytes, 2 * kSize);
  EXPECT_EQ(stats.zones[0].used_bytes, kSize);
  EXPECT_EQ(stats.zones[1].used_bytes, kSize);
}

TEST_F(CacheMigrate, AMovedObjectIsFoundByTheNextRun) {
  read_often("f0");
  ASSERT_EQ(migrate()->moved.size(), 1u);
  bed_.restart();
  EXPECT_EQ(zone_of("f0"), 1);
  EXPECT_EQ(bed_.read_all(bed_.blob("f0")), truth_[0]);
  EXPECT_EQ(bed_.origin().bytes_asked("f0"), 0u);
}

TEST_F(CacheMigrate, WhatAnEarlierRunLeftMovesBeforeItsModelIsNamed) {
  // How often it was used is written down some time after it was closed.
  for (int tries = 0; tries < 100; ++tries) {
    read_often("f0");
    bed_->abandon(bed_.blob("f0"));
    bed_.settle();
    bed_.restart();
    if (migrate()->moved.size() == 1) break;
  }
  EXPECT_EQ(zone_of("f0"), 1);
  EXPECT_EQ(bed_.read_all(bed_.blob("f0")), truth_[0]);
  EXPECT_EQ(bed_.origin().bytes_asked("f0"), 0u);
}

TEST_F(CacheMigrate, AnOpenObjectStays) {
  read_often("f0");
  const auto object = bed_.blob("f0");
  object->add_open();
  EXPECT_TRUE(migrate()->moved.empty());
  EXPECT_EQ(zone_of("f0"), 0);
  object->drop_open();
  EXPECT_EQ(migrate()->moved.size(), 1u);
}

TEST_F(CacheMigrate, WhoHoldsTheOldFileKeepsItsBytes) {
  read_often("f0");
  const auto held = *bed_.prepare(bed_.blob("f0"));
  ASSERT_EQ(migrate()->moved.size(), 1u);
  std::string bytes(kSize, '\0');
  ASSERT_TRUE(held->read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  EXPECT_EQ(bytes, truth_[0]);
  EXPECT_NE(*bed_.prepare(bed_.blob("f0")), held);
}

TEST_F(CacheMigrate, ACorruptObjectIsDroppedAndNotSpread) {
  read_often("f0");
  const std::string path = bed_.blob("f0")->file()->path();
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).write("x", 1) << "yz";
  const auto report = migrate();
  ASSERT_TRUE(report.has_value());
  EXPECT_TRUE(report->moved.empty());
  ASSERT_EQ(report->failed.size(), 1u);
  EXPECT_NE(report->failed[0].find("is not what it was"), std::string::npos) << report->failed[0];
  bed_.settle();
  EXPECT_FALSE(bed_.blob("f0")->resident());
  EXPECT_EQ(bed_->stats().zones[1].used_bytes, 0u);
  EXPECT_EQ(bed_.read_all(bed_.blob("f0")), truth_[0]);
}

TEST_F(CacheMigrate, ACancelledPassLeavesEverythingWhole) {
  read_often("f0");
  Answer<MigrationReport> answer;
  auto job = std::make_shared<std::shared_ptr<CacheJob>>();
  // Ends at its first step.
  std::atomic<bool> told{false};
  *job = bed_->migrate(
      [job, &told](const VerifyProgress&) {
        while (!told) std::this_thread::yield();
        (*job)->cancel();
      },
      answer.callback());
  told = true;
  EXPECT_EQ(answer.get().error().code, Code::kCancelled);
  EXPECT_EQ(zone_of("f0"), 0);
  EXPECT_EQ(bed_.read_all(bed_.blob("f0")), truth_[0]);
  EXPECT_EQ(bed_->stats().zones[1].used_bytes, 0u);
  job->reset();
}

class CacheMigrateByItself : public CacheMigrate {
 protected:
  CacheMigrateByItself() : CacheMigrate(often()) {}
  static CacheOptions often() {
    CacheOptions options;
    options.migrate_interval = std::chrono::milliseconds(1);
    return options;
  }
};

TEST_F(CacheMigrateByItself, WhatIsHotGoesUp) {
  read_often("f0");
  EXPECT_TRUE(bed_.until([&] { return zone_of("f0") == 1; }));
}

// Readers, passes and removals at once: every byte that is read is true.
using CacheMigrateConcurrent = CacheMigrateByItself;
TEST_F(CacheMigrateConcurrent, ReadersSeeTrueBytesAllTheTime) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&, reader] {
      for (int round = 0; !stop; ++round) {
        const int i = (reader + round) % 3;
        EXPECT_EQ(bed_.read_all(bed_.blob("f" + std::to_string(i))),
                  truth_[static_cast<size_t>(i)]);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the mover has idle priority
      }
    });
  }
  for (int round = 0; round < 4; ++round) {
    EXPECT_TRUE(
        bed_.until([&] { return bed_->stats().migrated_objects > static_cast<uint64_t>(round); }));
    bed_->drop(bed_.blob("f" + std::to_string(round % 3)));
  }
  stop = true;
  for (auto& reader : readers) reader.join();
}

class CacheRebalance : public CacheMigrate {
 protected:
  // Of one tier, on one disk.
  CacheRebalance()
      : CacheMigrate(no_linger(), {{"one", 4 * kSize, "ssd", 0}, {"two", 4 * kSize, "ssd", 0}}) {}
};

TEST_F(CacheRebalance, OptimizeMovesNothingBetweenZonesOfOneDisk) {
  for (const char* name : {"f0", "f1", "f2"}) bed_.read_all(bed_.blob(name));
  Answer<OptimizeReport> answer;
  bed_->optimize({}, answer.callback());
  const auto report = answer.get();
  ASSERT_TRUE(report.has_value()) << report.error().what;
  EXPECT_EQ(report->verified.objects, 3u);
  EXPECT_TRUE(report->rebalanced.moved.empty());
}

}  // namespace
}  // namespace nexus::test
