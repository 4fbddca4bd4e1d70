// The store as its callers see it: objects, models, zones, permissions, the lock.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/store/zones.h"
#include "store_test_support.h"

namespace nexus::store_test {
namespace {

constexpr uint64_t kMiB = kChunkBytes;

class StoreTest : public testing::Test {
 protected:
  std::unique_ptr<Store> reopen(std::unique_ptr<Store> store) {
    store.reset();
    return open_store(dir);
  }
  TempDir temp;
  const std::string dir = temp / "cache";
};

TEST_F(StoreTest, CompleteObjectIsThereAfterReopen) {
  auto store = open_store(dir);
  ObjectMeta meta = meta_of("k", 3 * kMiB + 17);
  meta.sha256 = std::string(64, 'a');
  meta.verified = true;
  meta.hits = 7;
  meta.last_access_ms = 1234;
  put(*store, "k", meta.size, 1);
  store->checkpoint(store->create(meta_of("unsealed", 5), true).value(), meta_of("unsealed", 5));
  auto file = put(*store, "k2", 10, 2);
  file = put(*store, "k", meta.size, 3);  // replaced
  store->checkpoint(file, meta);
  file.reset();
  store = reopen(std::move(store));

  auto objects = store->take_objects();
  const StoredObject* object = find(objects, "k");
  ASSERT_NE(object, nullptr);
  EXPECT_EQ(object->meta.size, meta.size);
  EXPECT_EQ(object->meta.model, "org/m");
  EXPECT_EQ(object->meta.name, meta.name);
  EXPECT_EQ(object->meta.sha256, meta.sha256);
  EXPECT_TRUE(object->meta.verified);
  EXPECT_EQ(object->meta.hits, 7u);
  EXPECT_EQ(object->meta.last_access_ms, 1234);
  EXPECT_TRUE(object->file->complete());
  EXPECT_EQ(object->file->present_bytes(), meta.size);
  EXPECT_TRUE(all_chunks_true(*object->file, 3));
  EXPECT_EQ(fs::file_size(object->file->path()), meta.size);
  EXPECT_NE(find(objects, "k2"), nullptr);
  EXPECT_TRUE(store->take_objects().empty()) << "they are taken once";
}

TEST_F(StoreTest, PartialBitmapSurvivesReopen) {
  auto store = open_store(dir);
  put(*store, "k", 130 * kMiB + 5, 1, {0, 63, 64, 130});
  store = reopen(std::move(store));
  auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 1u);
  const ObjectFile& file = *objects[0].file;
  EXPECT_FALSE(file.complete());
  EXPECT_EQ(file.present_chunks(), 4u);
  EXPECT_EQ(file.present_bytes(), 3 * kMiB + 5);
  for (uint64_t chunk : {0, 63, 64, 130}) EXPECT_TRUE(chunk_is_true(file, 1, chunk)) << chunk;
  EXPECT_FALSE(file.has(1));
  EXPECT_TRUE(file.has(ByteRange{63 * kMiB, 2 * kMiB}));
  EXPECT_FALSE(file.has(ByteRange{62 * kMiB, 2 * kMiB}));
  EXPECT_FALSE(file.has(ByteRange{130 * kMiB, 6})) << "past the end";
  EXPECT_TRUE(file.has(ByteRange{5, 0}));
}

TEST_F(StoreTest, ChunksSealedAfterReopenAreKeptToo) {
  auto store = open_store(dir);
  put(*store, "k", 2 * kMiB, 1, {0});
  store = reopen(std::move(store));
  auto objects = store->take_objects();
  ASSERT_TRUE(fill_chunk(*objects.at(0).file, 1, 1));
  store->checkpoint(objects[0].file, objects[0].meta);
  objects.clear();
  store = reopen(std::move(store));
  objects = store->take_objects();
  EXPECT_TRUE(objects.at(0).file->complete());
  EXPECT_TRUE(all_chunks_true(*objects[0].file, 1));
}

TEST_F(StoreTest, HitsAloneAreKeptWithoutANewSidecar) {
  auto store = open_store(dir);
  auto file = put(*store, "k", 10, 1);
  store->flush();
  const auto written = fs::last_write_time(file->path() + ".meta");
  ObjectMeta meta = meta_of("k", 10);
  meta.hits = 99;
  store->checkpoint(file, meta);
  store->flush();
  EXPECT_EQ(fs::last_write_time(file->path() + ".meta"), written);
  file.reset();
  store = reopen(std::move(store));
  EXPECT_EQ(store->take_objects().at(0).meta.hits, 99u);
}

TEST_F(StoreTest, EmptyObjectIsCompleteAndSurvives) {
  auto store = open_store(dir);
  EXPECT_TRUE(put(*store, "empty", 0, 1)->complete());
  store = reopen(std::move(store));
  EXPECT_TRUE(store->take_objects().at(0).file->complete());
}

TEST_F(StoreTest, ReplacedObjectKeepsOldReadersBytes) {
  auto store = open_store(dir);
  auto old = put(*store, "k", 2 * kMiB, 1);
  const int old_fd = old->fd();
  auto fresh = put(*store, "k", 2 * kMiB, 2);
  EXPECT_TRUE(all_chunks_true(*old, 1));
  EXPECT_EQ(old->fd(), old_fd);
  EXPECT_TRUE(all_chunks_true(*fresh, 2));
  store->checkpoint(old, meta_of("k", 2 * kMiB));  // too late: it is not an object any more
  store->remove(old);
  store->flush();
  EXPECT_TRUE(fs::exists(fresh->path()));
  EXPECT_EQ(object_files(dir).size(), 2u) << "one file, one sidecar";
}

TEST_F(StoreTest, ReplacedObjectThatWasNeverOpenedKeepsItsBytes) {
  auto store = open_store(dir);
  put(*store, "k", kMiB, 1);
  store = reopen(std::move(store));
  auto old = store->take_objects().at(0).file;  // no descriptor yet
  put(*store, "k", kMiB, 2);
  EXPECT_TRUE(all_chunks_true(*old, 1));
}

TEST_F(StoreTest, RemovalWhileCheckpointPendingDoesNotResurrect) {
  auto store = open_store(dir);
  for (int i = 0; i < 20; ++i) {
    auto file = put(*store, "k" + std::to_string(i), kMiB, 1);  // complete: the writer is at it now
    store->remove(file);
    store->checkpoint(file, meta_of(file->key(), kMiB));
    EXPECT_TRUE(all_chunks_true(*file, 1)) << "readers keep it";
  }
  store->flush();
  EXPECT_TRUE(object_files(dir).empty());
  store = reopen(std::move(store));
  EXPECT_TRUE(store->take_objects().empty());
}

TEST_F(StoreTest, NothingIsKeptWithoutPersist) {
  auto store = open_store(dir);
  put(*store, "k", kMiB, 1);
  store->save_model({"org/m", "main", "abc", "snapshot"});
  store.reset();
  store = open_store(dir, false);
  EXPECT_TRUE(store->take_objects().empty());
  EXPECT_TRUE(object_files(dir).empty());
  EXPECT_FALSE(store->load_model("org/m", "main"));
  auto file = put(*store, "k", kMiB, 2);
  store->save_header("h", "bytes");
  store->flush();
  EXPECT_TRUE(all_chunks_true(*file, 2));
  EXPECT_FALSE(fs::exists(file->path() + ".meta"));
  EXPECT_EQ(store->load_header("h"), "bytes");
  file.reset();
  store.reset();
  store = open_store(dir, false);
  EXPECT_TRUE(store->take_objects().empty());
  EXPECT_TRUE(object_files(dir).empty());
}

TEST_F(StoreTest, SecondOpenerIsRefusedByPid) {
  auto store = open_store(dir);
  auto second = Store::open(options_at(dir));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Code::kLimit);
  EXPECT_NE(second.error().what.find(std::to_string(::getpid())), std::string::npos);
  store->close();
  store->close();
  EXPECT_TRUE(Store::open(options_at(dir))) << "a closed store has let go";
  auto late = store->create(meta_of("k", 1), true);
  EXPECT_EQ(late.error().code, Code::kCancelled);
}

TEST_F(StoreTest, EverythingIsPrivateWhateverTheUmaskSays) {
  fs::create_directories(dir + "/zone_1");
  fs::permissions(dir, fs::perms(0755));
  fs::permissions(dir + "/zone_1", fs::perms(0777));
  const mode_t umask_before = ::umask(0);
  auto store = open_store(dir);
  put(*store, "k", kMiB, 1);
  put(*store, "sparse", 5 * kMiB, 1, {2});
  store->flush();
  ::umask(umask_before);
  EXPECT_EQ(mode_of(dir), 0700u);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    files += entry.is_regular_file();
    EXPECT_EQ(mode_of(entry.path()), entry.is_directory() ? 0700u : 0600u) << entry.path();
  }
  EXPECT_GE(files, 6);
}

TEST_F(StoreTest, UnusableCacheDirIsRefusedWithTheReason) {
  overwrite(temp / "file", "x");
  auto on_a_file = Store::open(options_at(temp / "file"));
  ASSERT_FALSE(on_a_file);
  EXPECT_EQ(on_a_file.error().code, Code::kInvalid);
  EXPECT_THAT(on_a_file.error().what, testing::HasSubstr("not a directory"));
  EXPECT_THAT(on_a_file.error().what, testing::HasSubstr(temp / "file"));
  EXPECT_EQ(Store::open(options_at(temp / "file/below")).error().code, Code::kInvalid);
  EXPECT_EQ(Store::open(options_at("")).error().code, Code::kInvalid);
  EXPECT_EQ(Store::open(options_at(dir, 0)).error().code, Code::kInvalid);
  if (::geteuid() == 0) {
    fs::create_directory(temp / "theirs");
    ASSERT_EQ(::chown((temp / "theirs").c_str(), 12345, 12345), 0);
    auto theirs = Store::open(options_at(temp / "theirs"));
    ASSERT_FALSE(theirs);
    EXPECT_EQ(theirs.error().code, Code::kInvalid);
    EXPECT_THAT(theirs.error().what, testing::HasSubstr("belongs to uid 12345"));
  }
}

TEST_F(StoreTest, ModelsAndHeadersAreReadBackAtOnceAndAfterReopen) {
  auto store = open_store(dir);
  EXPECT_FALSE(store->load_model("org/m", "main"));
  EXPECT_FALSE(store->load_header("id"));
  const std::string binary("a\0b\xff", 4);
  store->save_model({"org/m", "main", "abc", "one"});
  store->save_model({"org/m", "main", "def", binary});
  store->save_model({"gpt2", "main", "123", ""});
  store->save_header("id", binary);
  for (int round = 0; round < 3; ++round) {
    auto model = store->load_model("org/m", "main");
    ASSERT_TRUE(model);
    EXPECT_EQ(model->commit, "def");
    EXPECT_EQ(model->snapshot, binary);
    EXPECT_EQ(store->load_header("id"), binary);
    auto models = store->list_models();
    ASSERT_EQ(models.size(), 2u);
    EXPECT_EQ(models[0].repo, "gpt2");
    EXPECT_EQ(models[1].commit, "def");
    if (round == 0) store->flush();
    if (round == 1) store = reopen(std::move(store));
  }
}

TEST_F(StoreTest, ZonesWearEvenlyAndRememberIt) {
  auto store = open_store(dir);
  for (int i = 0; i < 16; ++i) put(*store, "k" + std::to_string(i), kMiB, 1);
  store->flush();
  const auto before = store->zones();
  ASSERT_EQ(before.size(), 4u);
  for (const ZoneInfo& zone : before) {
    EXPECT_EQ(zone.used_bytes, 4 * kMiB);
    EXPECT_NEAR(static_cast<double>(zone.bytes_written), 4.0 * kMiB, 4096);
    EXPECT_EQ(zone.health, "ok");
    EXPECT_GT(zone.size_bytes, 0u);
  }
  store = reopen(std::move(store));
  auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 16u);
  for (auto& object : objects) store->remove(object.file);
  const auto after = store->zones();
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_GE(after[i].bytes_written, before[i].bytes_written);
    EXPECT_EQ(after[i].used_bytes, 0u);
  }
}

TEST_F(StoreTest, BurstOfCreationsIsSpreadBeforeAByteIsWritten) {
  auto store = open_store(dir);
  std::set<int> zones;
  for (int i = 0; i < 4; ++i) {
    zones.insert(store->create(meta_of("k" + std::to_string(i), 50 * kMiB), false).value()->zone());
  }
  EXPECT_EQ(zones.size(), 4u);
}

TEST_F(StoreTest, FewerZonesThanBeforeStillServeTheOldOnes) {
  auto store = open_store(dir);
  for (int i = 0; i < 8; ++i) put(*store, "k" + std::to_string(i), kMiB, 1);
  store.reset();
  auto smaller = Store::open(options_at(dir, 2));
  ASSERT_TRUE(smaller);
  auto objects = (*smaller)->take_objects();
  EXPECT_EQ(objects.size(), 8u);
  for (const auto& object : objects) EXPECT_TRUE(all_chunks_true(*object.file, 1));
  for (int i = 0; i < 8; ++i) {
    EXPECT_LT((*smaller)->create(meta_of("n" + std::to_string(i), kMiB), true).value()->zone(), 2);
  }
}

TEST_F(StoreTest, KeysAndSizesOutOfBoundsAreRefused) {
  auto store = open_store(dir);
  EXPECT_EQ(store->create(meta_of("", 1), false).error().code, Code::kInvalid);
  EXPECT_EQ(store->create(meta_of(std::string(1025, 'k'), 1), false).error().code, Code::kInvalid);
  EXPECT_EQ(store->create(meta_of("k", ~uint64_t{0}), false).error().code, Code::kInvalid);
  auto file = store->create(meta_of("k", 10), false).value();
  EXPECT_EQ(file->write(5, std::vector<std::byte>(6)).error().code, Code::kInvalid);
  EXPECT_EQ(file->write(~uint64_t{0}, std::vector<std::byte>(6)).error().code, Code::kInvalid);
  std::vector<std::byte> into(11);
  EXPECT_EQ(file->read(0, into).error().code, Code::kInvalid);
  EXPECT_EQ(file->seal_chunk(1).error().code, Code::kInvalid);
}

TEST_F(StoreTest, ChunkChangedOnDiskFailsItsCheckByName) {
  auto store = open_store(dir);
  auto file = put(*store, "the-key", 2 * kMiB, 1);
  const std::byte wrong{0x42};
  ASSERT_EQ(::pwrite(file->fd(), &wrong, 1, kMiB + 3), 1);
  EXPECT_TRUE(file->verify_chunk(0));
  auto verified = file->verify_chunk(1);
  ASSERT_FALSE(verified);
  EXPECT_EQ(verified.error().code, Code::kCorrupt);
  EXPECT_THAT(verified.error().what,
              testing::AllOf(testing::HasSubstr("the-key"), testing::HasSubstr("chunk 1")));
}

TEST_F(StoreTest, FileThatLostItsEndIsADiskErrorNotZeros) {
  auto store = open_store(dir);
  auto file = put(*store, "k", 2 * kMiB, 1);
  ASSERT_EQ(::truncate(file->path().c_str(), kMiB), 0);
  std::vector<std::byte> into(kMiB);
  EXPECT_EQ(file->read(kMiB, into).error().code, Code::kDisk);
}

TEST_F(StoreTest, CheckpointOfAnObjectThatCannotBeSavedFailsAloneAndIsRetried) {
  auto store = open_store(dir);
  auto file = put(*store, "k", kMiB, 1, {0});
  auto other = put(*store, "other", kMiB, 2);
  store->flush();
  auto fresh = store->create(meta_of("blocked", 2 * kMiB), false).value();
  fs::create_directory(fresh->path() + ".meta.tmp");  // the sidecar cannot be written
  ASSERT_TRUE(fill_chunk(*fresh, 3, 0));
  store->checkpoint(fresh, meta_of("blocked", 2 * kMiB));
  put(*store, "after", kMiB, 4);
  store->flush();
  EXPECT_FALSE(fs::exists(fresh->path() + ".meta"));
  fs::remove(fresh->path() + ".meta.tmp");
  store->flush();  // nobody has to checkpoint it again
  EXPECT_TRUE(fs::exists(fresh->path() + ".meta"));
  store = reopen(std::move(store));
  EXPECT_EQ(store->take_objects().size(), 4u);
}

TEST_F(StoreTest, DescriptorsStayBoundedWhileObjectsAreKept) {
  if (::geteuid() != 0) GTEST_SKIP() << "a lowered limit can be raised again by root alone";
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const struct rlimit few = {256, 256};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  {
    const TempDir small(TempDir::in_memory());
    auto store = open_store(small / "cache");
    auto lent = put(*store, "lent", 10, 1);
    const int fd = lent->fd();
    std::vector<std::shared_ptr<ObjectFile>> all;
    for (int i = 0; i < 400; ++i) all.push_back(put(*store, std::to_string(i), 10, 1));
    for (size_t i = 0; i < all.size(); ++i) {
      ASSERT_TRUE(all[i] && all_chunks_true(*all[i], 1)) << "opened again when needed";
      if (i % 50 == 0) store->flush();  // the batch that the hits would bring about
    }
    EXPECT_EQ(lent->fd(), fd);
    EXPECT_TRUE(all_chunks_true(*lent, 1));
    EXPECT_LE(Descriptor::count(), 256);
  }
  ::setrlimit(RLIMIT_NOFILE, &before);
}

TEST(ZonesTest, LeastWornZoneWithRoomIsChosen) {
  const std::vector<ZoneLoad> zones = {
      {30, 100, true}, {10, 5, true}, {20, 100, true}, {0, 100, false}};
  EXPECT_EQ(pick_zone(zones, 50, true), 2);
  EXPECT_EQ(pick_zone(zones, 5, true), 1);
  EXPECT_EQ(pick_zone(zones, 50, false), 0);
  EXPECT_EQ(pick_zone(zones, 101, true), -1);
  EXPECT_EQ(pick_zone({}, 0, true), -1);
  EXPECT_EQ(pick_zone({{7, 9, true}, {7, 9, true}}, 1, true), 0) << "the first of equals";
}

TEST(ZonesTest, ThreeErrorsInARowMakeAZoneUnstableAndASuccessHealsIt) {
  Zone zone(0, "/tmp", "ssd", true);
  zone.note_error();
  zone.note_error();
  EXPECT_TRUE(zone.healthy());
  zone.note_error();
  EXPECT_FALSE(zone.healthy());
  zone.note_success();
  EXPECT_TRUE(zone.healthy());
}

TEST(ZonesTest, TierFollowsTheDevice) {
  TempDir sys;
  const auto device = [&](const std::string& name, const std::string& rotational) {
    fs::create_directories(sys / ("devices/" + name + "/queue"));
    overwrite(sys / ("devices/" + name + "/queue/rotational"), rotational);
  };
  const auto link = [&](const std::string& number, const std::string& target) {
    fs::create_symlink(sys / ("devices/" + target), sys / number);
  };
  device("nvme0n1", "0\n");
  device("sda", "1\n");
  device("sdb", "0\n");
  device("dm-0", "0\n");
  fs::create_directories(sys / "devices/nvme0n1/nvme0n1p1");
  fs::create_directories(sys / "devices/sda/sda2");
  fs::create_directories(sys / "devices/dm-0/slaves/nvme0n1p2");
  link("259:1", "nvme0n1/nvme0n1p1");
  link("8:2", "sda/sda2");
  link("8:16", "sdb");
  link("253:0", "dm-0");
  EXPECT_EQ(tier_of_device(makedev(259, 1), sys.path()), "nvme");
  EXPECT_EQ(tier_of_device(makedev(8, 2), sys.path()), "hdd");
  EXPECT_EQ(tier_of_device(makedev(8, 16), sys.path()), "ssd");
  EXPECT_EQ(tier_of_device(makedev(253, 0), sys.path()), "nvme");
  EXPECT_EQ(tier_of_device(makedev(0, 77), sys.path()), "ssd") << "the kernel does not tell";
}

}  // namespace
}  // namespace nexus::store_test
