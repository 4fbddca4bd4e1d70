// Zones that the configuration names, their health, and the daily write budget.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "backend/store/sqlite.h"
#include "backend/store/write_budget.h"
#include "backend/store/zones.h"
#include "tests/unit/store_test_support.h"

namespace nexus::store_test {
namespace {

using std::chrono::minutes;
using std::chrono::seconds;

class NamedZones : public testing::Test {
 protected:
  std::unique_ptr<Store> open(uint64_t budget = 0) {
    StoreOptions options;
    options.cache_dir = dir_ / "cache";
    options.zones = zones_;
    options.daily_write_budget_bytes = budget;
    auto store = Store::open(options);
    if (!store) error_ = store.error().what;
    return store ? std::move(*store) : nullptr;
  }

  TempDir dir_;
  std::vector<ZoneOptions> zones_ = {{dir_ / "a", 0, "nvme", 0}, {dir_ / "b", 0, "", 0}};
  std::string error_;
};

TEST_F(NamedZones, HoldObjectsAcrossRestarts) {
  auto store = open();
  ASSERT_TRUE(store) << error_;
  EXPECT_EQ(store->zones()[0].tier, "nvme");
  for (int i = 0; i < 4; ++i) put(*store, std::to_string(i), kChunkBytes, 1);
  for (const ZoneInfo& zone : store->zones()) EXPECT_EQ(zone.used_bytes, 2 * kChunkBytes);
  store->close();
  store = open();
  const auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 4u);
  for (const auto& object : objects) EXPECT_TRUE(all_chunks_true(*object.file, 1));
}

TEST_F(NamedZones, AWriteByAnotherWayIsCountedAndCheckedLikeAnyOther) {
  const auto zone = std::make_shared<Zone>(0, dir_ / "a", "ssd", 0, 0);
  const int fd = ::open((dir_ / "object").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  std::filesystem::create_directories(dir_ / "a");
  ObjectFile file("key", dir_ / "object", 0, fd, 8192, zone);
  const std::vector<std::byte> bytes(8192, std::byte{7});
  std::vector<std::byte> back(8192);
  const auto whole = [](int to, uint64_t offset, std::span<const std::byte> from) -> Result<void> {
    const auto moved = ::pwrite(to, from.data(), from.size(), static_cast<off_t>(offset));
    if (moved != static_cast<ssize_t>(from.size())) return fail(Code::kDisk, "pwrite");
    return {};
  };
  ASSERT_TRUE(file.write_by(0, bytes, whole));
  ASSERT_TRUE(file.read(0, back));
  EXPECT_EQ(back, bytes);
  EXPECT_EQ(zone->bytes_written(), 8192u);
  EXPECT_EQ(file.write_by(1, bytes, whole).error().code, Code::kInvalid);
  const auto refuse = [](int, uint64_t, std::span<const std::byte>) -> Result<void> {
    return fail(Code::kDisk, "write at 0: Input/output error");
  };
  for (int i = 0; i < Zone::kErrorsMax; ++i) EXPECT_FALSE(file.write_by(0, bytes, refuse));
  EXPECT_FALSE(zone->healthy());
  EXPECT_EQ(zone->bytes_written(), 8192u);
  ASSERT_TRUE(file.write_by(0, bytes, whole));
  EXPECT_TRUE(zone->healthy());
}

TEST_F(NamedZones, WearIsRelativeToEndurance) {
  zones_[0].endurance_bytes = 1'000'000'000'000;
  zones_[1].endurance_bytes = 3'000'000'000'000;
  auto store = open();
  for (int i = 0; i < 40; ++i) put(*store, std::to_string(i), kChunkBytes, 1);
  const auto zones = store->zones();
  EXPECT_GT(zones[1].bytes_written, 2 * zones[0].bytes_written);
  EXPECT_LT(zones[1].bytes_written, 4 * zones[0].bytes_written);
}

TEST_F(NamedZones, ASizeIsKept) {
  zones_[0].size_bytes = 3 * kChunkBytes;
  auto store = open();
  std::vector<std::shared_ptr<ObjectFile>> files;
  for (int i = 0; i < 10; ++i) files.push_back(put(*store, std::to_string(i), kChunkBytes, 1));
  EXPECT_LE(store->zones()[0].used_bytes, 3 * kChunkBytes);
  EXPECT_EQ(store->zones()[0].used_bytes + store->zones()[1].used_bytes, 10 * kChunkBytes);
}

TEST_F(NamedZones, OneThatCannotBeMadeCostsNothingElse) {
  overwrite(dir_ / "a", "a file");
  auto store = open();
  ASSERT_TRUE(store) << error_;
  EXPECT_EQ(store->zones()[0].health, "unstable");
  EXPECT_EQ(put(*store, "k", kChunkBytes, 1)->zone(), 1);
  store.reset();
  overwrite(dir_ / "c", "a file");
  zones_[1].path = dir_ / "c";
  EXPECT_FALSE(open());
  EXPECT_NE(error_.find("is not a directory"), std::string::npos) << error_;
}

TEST_F(NamedZones, WhatOneRefusesAnotherTakes) {
  auto store = open();
  fs::remove_all(dir_ / "a");
  overwrite(dir_ / "a", "a file");
  for (int i = 0; i < 4; ++i) EXPECT_EQ(put(*store, std::to_string(i), kChunkBytes, 1)->zone(), 1);
  fs::remove(dir_ / "a");
  fs::create_directories(dir_ / "a/objects");  // back again
  EXPECT_EQ(put(*store, "back", kChunkBytes, 1)->zone(), 0);
}

TEST_F(NamedZones, OverTheDailyBudgetNothingIsPlaced) {
  auto store = open(3 * kChunkBytes);
  for (int i = 0; i < 2; ++i) put(*store, std::to_string(i), kChunkBytes, 1);
  EXPECT_EQ(store->create(meta_of("large", 4 * kChunkBytes), true).error().code, Code::kLimit);
  EXPECT_FALSE(store->create(meta_of("more", 2 * kChunkBytes), true).has_value());
  EXPECT_TRUE(store->create(meta_of("more", 2 * kChunkBytes), true).has_value()) << "asked again";
  EXPECT_FALSE(store->create(meta_of("more", 2 * kChunkBytes), true).has_value());
}

TEST_F(NamedZones, TheDailyBudgetGoesOnAfterARestart) {
  if (!open(8 * kChunkBytes)) FAIL() << error_;
  {
    auto store = open(8 * kChunkBytes);
    for (int i = 0; i < 2; ++i) put(*store, std::to_string(i), 3 * kChunkBytes, 1);
    EXPECT_LE(store->write_budget_left(), 2 * kChunkBytes);
  }
  auto store = open(8 * kChunkBytes);
  EXPECT_LE(store->write_budget_left(), 2 * kChunkBytes);
  EXPECT_EQ(store->create(meta_of("more", 3 * kChunkBytes), true).error().code, Code::kLimit);
  store.reset();
  store = open(20 * kChunkBytes);
  EXPECT_GT(store->write_budget_left(), 13 * kChunkBytes)
      << "what was written, and not the objects";
  EXPECT_LE(store->write_budget_left(), 14 * kChunkBytes);
}

// Of an object that is complete or absent nothing else is written down before its last byte.
TEST_F(NamedZones, WhatIsWrittenIsWrittenDownWhileItGrows) {
  auto store = open(20 * kChunkBytes);
  auto file = store->create(meta_of("whole", 4 * kChunkBytes), true);
  ASSERT_TRUE(file.has_value());
  ASSERT_TRUE(fill_chunk(**file, 1, 0).has_value());
  const auto written_down = [&](uint64_t least) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(120);
    while (std::chrono::steady_clock::now() < end) {
      auto database = Database::open(dir_ / "cache/catalog.db", SQLITE_OPEN_READONLY);
      const auto sum = database ? database->query_text("SELECT total(bytes_written) FROM zones")
                                : Result<std::string>(tl::unexpected(database.error()));
      if (sum && std::stod(*sum) >= static_cast<double>(least)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  };
  EXPECT_TRUE(written_down(kChunkBytes));
  ASSERT_TRUE(fill_chunk(**file, 1, 1).has_value());
  EXPECT_TRUE(written_down(2 * kChunkBytes));
}

class WriteBudgetTest : public testing::Test {
 protected:
  WriteBudget budget(std::optional<CatalogDay> begun) {
    return WriteBudget(
        100, zones_, std::move(begun), [this](CatalogDay day) { saved_ = std::move(day); },
        [this] { return today_; });
  }
  int64_t today_ = 20'000;
  std::optional<CatalogDay> saved_;
  std::vector<std::shared_ptr<Zone>> zones_ = {
      std::make_shared<Zone>(0, "/tmp", "ssd", uint64_t{0}, uint64_t{0}),
      std::make_shared<Zone>(1, "/tmp", "ssd", uint64_t{0}, uint64_t{0})};
};

TEST_F(WriteBudgetTest, ADayThatBeginsIsSavedAndAnotherRunGoesOnWithIt) {
  zones_[0]->restore_bytes_written(1000);
  WriteBudget first = budget(std::nullopt);
  ASSERT_TRUE(saved_);
  EXPECT_EQ(saved_->day, today_);
  EXPECT_EQ(saved_->zone_bytes_written, (std::map<int, uint64_t>{{0, 1000}, {1, 0}}));
  zones_[0]->add_written(30);
  zones_[1]->add_written(20);
  EXPECT_EQ(first.left(), 50u);
  const CatalogDay day = *saved_;
  saved_.reset();
  WriteBudget second = budget(day);
  EXPECT_FALSE(saved_) << "one day, one row";
  EXPECT_EQ(second.left(), 50u);
  EXPECT_TRUE(second.admits("a", 50));
  EXPECT_FALSE(second.admits("a", 51));
  EXPECT_TRUE(second.admits("a", 51)) << "asked again";
}

TEST_F(WriteBudgetTest, AnotherDayBeginsAnew) {
  WriteBudget first = budget(CatalogDay{today_ - 1, {{0, 0}, {1, 0}}});
  EXPECT_EQ(first.left(), 100u);
  zones_[0]->add_written(100);
  EXPECT_EQ(first.left(), 0u);
  ++today_;
  EXPECT_EQ(first.left(), 100u);
  EXPECT_EQ(saved_->day, today_);
  EXPECT_EQ(saved_->zone_bytes_written.at(0), 100u);
}

TEST_F(WriteBudgetTest, AZoneThatIsNewBringsNoWearOfBefore) {
  zones_[1]->restore_bytes_written(5000);
  EXPECT_EQ(budget(CatalogDay{today_, {{0, 0}}}).left(), 100u);
}

TEST(ZonesTest, AnUnstableZoneGoesDownAndIsTriedAgain) {
  Zone zone(0, "/tmp", "ssd", 0, 0);
  const auto start = Zone::Clock::now();
  for (int i = 0; i < Zone::kErrorsMax; ++i) zone.note_error(start);
  EXPECT_EQ(zone.health(start), Zone::Health::kUnstable);
  EXPECT_FALSE(zone.worth_trying(start + seconds(59)));
  EXPECT_TRUE(zone.worth_trying(start + seconds(60)));
  zone.note_error(start + seconds(60));
  EXPECT_FALSE(zone.worth_trying(start + seconds(61)));
  EXPECT_EQ(zone.health(start + minutes(30)), Zone::Health::kDown);
  zone.note_success();
  EXPECT_EQ(zone.health(start + minutes(31)), Zone::Health::kOk);
  zone.note_error(start + minutes(32));
  EXPECT_EQ(zone.health(start + minutes(90)), Zone::Health::kOk) << "one error alone";
}

TEST(ZonesTest, WearIsComparedByTheShareOfTheEndurance) {
  const std::vector<ZoneLoad> zones = {{20, 100, true, 100}, {30, 100, true, 300}};
  EXPECT_EQ(pick_zone(zones, 1, true), 1);
  EXPECT_EQ(pick_zone(zones, 1, false), 0);
}

}  // namespace
}  // namespace nexus::store_test
