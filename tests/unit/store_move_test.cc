// Moving an object's file to another zone: whatever happens, it is whole in exactly one.
#include <gtest/gtest.h>

#include "backend/store/disk_io.h"
#include "tests/unit/store_test_support.h"

namespace nexus::store_test {
namespace {

constexpr uint64_t kSize = 2 * kChunkBytes + 100;

class StoreMove : public testing::Test {
 protected:
  std::unique_ptr<Store> open(uint64_t budget = 0) { return open_at(dir_ / "now", budget); }
  // What a new daemon would find if this one died now.
  std::unique_ptr<Store> open_as_after_a_crash() {
    const std::string copy = dir_ / ("crash" + std::to_string(++crashes_));
    fs::copy(dir_ / "now", copy, fs::copy_options::recursive);
    return open_at(copy, 0);
  }
  std::unique_ptr<Store> open_at(const std::string& at, uint64_t budget) {
    StoreOptions options;
    options.cache_dir = at + "/cache";
    options.zones = {{at + "/a", 0, "hdd", 0}, {at + "/b", 0, "nvme", 0}};
    options.daily_write_budget_bytes = budget;
    fs::create_directories(at);
    auto store = Store::open(options);
    if (!store) ADD_FAILURE() << store.error().what;
    return store ? std::move(*store) : nullptr;
  }
  // True: every byte is there, in one zone, and no file of another lies about.
  void expect_whole(Store& store, const std::string& at, int zone, const std::string& what) {
    const auto objects = store.take_objects();
    ASSERT_EQ(objects.size(), 1u) << what;
    EXPECT_TRUE(objects[0].file->complete()) << what;
    EXPECT_TRUE(all_chunks_true(*objects[0].file, 7)) << what;
    EXPECT_EQ(objects[0].file->zone(), zone) << what;
    store.flush();
    EXPECT_EQ(object_files(at).size(), 2u) << what << ": the file and its sidecar";
    for (const ZoneInfo& info : store.zones()) {
      EXPECT_EQ(info.used_bytes, info.path == at + (zone == 0 ? "/a" : "/b") ? kSize : 0) << what;
    }
  }
  void expect_whole_after_a_crash(int zone, const std::string& what) {
    auto store = open_as_after_a_crash();
    ASSERT_TRUE(store);
    expect_whole(*store, dir_ / ("crash" + std::to_string(crashes_)), zone, what);
  }
  static void fill(ObjectFile& copy) {
    for (uint64_t chunk = 0; chunk < copy.chunks(); ++chunk) {
      ASSERT_TRUE(fill_chunk(copy, 7, chunk).has_value());
    }
  }

  TempDir dir_;
  int crashes_ = 0;
};

TEST_F(StoreMove, DiedAnywhereTheObjectIsWholeInOneZone) {
  auto store = open();
  const auto from = put(*store, "k", kSize, 7);
  store->flush();
  ASSERT_EQ(from->zone(), 0);
  auto copy = store->begin_move(from, 1);
  ASSERT_TRUE(copy.has_value()) << copy.error().what;
  expect_whole_after_a_crash(0, "an empty copy");
  ASSERT_TRUE(fill_chunk(**copy, 7, 0).has_value());
  expect_whole_after_a_crash(0, "half a copy");
  fill(**copy);
  expect_whole_after_a_crash(0, "a copy without sidecar");
  ASSERT_TRUE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
  expect_whole_after_a_crash(1, "two whole files");
  // The old file goes before its sidecar.
  fs::copy_file(from->path() + ".meta", dir_ / "old.meta");
  ASSERT_TRUE(store->commit_move(from, *copy));
  expect_whole_after_a_crash(1, "committed, its row not written");
  fs::copy_file(dir_ / "old.meta", from->path() + ".meta");
  expect_whole_after_a_crash(1, "the old sidecar alone");
  fs::remove(from->path() + ".meta");
  store->checkpoint(*copy, meta_of("k", kSize));
  store->flush();
  expect_whole_after_a_crash(1, "after all");
  EXPECT_EQ(object_files(dir_ / "now").size(), 2u);
  store->close();
  store = open();
  expect_whole(*store, dir_ / "now", 1, "a restart");
}

TEST_F(StoreMove, ATornSidecarOfTheCopyLeavesTheOld) {
  auto store = open();
  const auto from = put(*store, "k", kSize, 7);
  store->flush();
  auto copy = store->begin_move(from, 1);
  fill(**copy);
  ASSERT_TRUE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
  fs::resize_file((*copy)->path() + ".meta", 40);
  expect_whole_after_a_crash(0, "torn");
}

TEST_F(StoreMove, WhoHasTheOldFileKeepsItsBytes) {
  auto store = open();
  const auto from = put(*store, "k", kSize, 7);
  auto copy = store->begin_move(from, 1);
  fill(**copy);
  ASSERT_TRUE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
  ASSERT_TRUE(store->commit_move(from, *copy));
  EXPECT_FALSE(fs::exists(from->path()));
  EXPECT_TRUE(all_chunks_true(*from, 7));
  EXPECT_TRUE(all_chunks_true(**copy, 7));
  store->remove(from);  // says nothing about the object any more
  EXPECT_TRUE(fs::exists((*copy)->path()));
  store->remove(*copy);
  EXPECT_TRUE(object_files(dir_ / "now").empty());
}

TEST_F(StoreMove, AnObjectRemovedMeanwhileTakesItsCopyAlong) {
  auto store = open();
  for (const bool settled : {false, true}) {
    const auto from = put(*store, "k", kSize, 7);
    store->flush();
    auto copy = store->begin_move(from, from->zone() == 0 ? 1 : 0);
    ASSERT_TRUE(copy.has_value());
    fill(**copy);
    if (settled) {
      ASSERT_TRUE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
    }
    store->remove(from);
    EXPECT_TRUE(object_files(dir_ / "now").empty());
    if (!settled) {
      EXPECT_FALSE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
    }
    EXPECT_FALSE(store->commit_move(from, *copy));
    store->discard_move(*copy);
    store->flush();
    EXPECT_TRUE(object_files(dir_ / "now").empty());
    EXPECT_TRUE(open_as_after_a_crash()->take_objects().empty());
  }
}

TEST_F(StoreMove, ADiscardedCopyLeavesNothing) {
  auto store = open();
  const auto from = put(*store, "k", kSize, 7);
  store->flush();
  auto copy = store->begin_move(from, 1);
  EXPECT_EQ(store->begin_move(from, 1).error().code, Code::kLimit) << "once at a time";
  fill(**copy);
  ASSERT_TRUE(store->settle_move(*copy, meta_of("k", kSize)).has_value());
  store->discard_move(*copy);
  EXPECT_FALSE(store->commit_move(from, *copy));
  EXPECT_TRUE(fs::exists(from->path()));
  EXPECT_EQ(object_files(dir_ / "now").size(), 2u);
  EXPECT_EQ(store->zones()[1].used_bytes, 0u);
  EXPECT_TRUE(store->begin_move(from, 1).has_value()) << "and may be tried again";
}

TEST_F(StoreMove, UpkeepDoesNotTakeACopyForAnOrphan) {
  auto store = open();
  const auto from = put(*store, "k", kSize, 7);
  auto copy = store->begin_move(from, 1);
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(store->remove_orphans().files, 0u);
  EXPECT_TRUE(fs::exists((*copy)->path()));
  store->discard_move(*copy);
}

TEST_F(StoreMove, IsRefusedOverTheBudgetAndForWhatIsIncomplete) {
  auto store = open(kSize + kChunkBytes);
  const auto from = put(*store, "k", kSize, 7);
  EXPECT_EQ(store->begin_move(from, 1).error().code, Code::kLimit);
  store.reset();
  store = open();
  const auto sparse = put(*store, "sparse", kSize, 7, {0});
  EXPECT_EQ(store->begin_move(sparse, 1).error().code, Code::kInvalid);
  EXPECT_EQ(store->begin_move(from, 9).error().code, Code::kInvalid);
}

}  // namespace
}  // namespace nexus::store_test
