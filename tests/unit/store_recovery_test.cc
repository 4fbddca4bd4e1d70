// What a store finds after something went wrong: the catalog, a sidecar or a file damaged or gone,
// the disk full, the daemon killed.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <random>

#include "backend/store/sidecar.h"
#include "backend/store/sqlite.h"
#include "store_test_support.h"
#include "tests/crash/store_torture.h"

namespace nexus::store_test {
namespace {

using crash_test::TortureReport;

constexpr uint64_t kMiB = kChunkBytes;

class StoreRecoveryTest : public testing::Test {
 protected:
  // Leaves a complete object "whole" (seed 1) and a sparse one "sparse" (seed 2, chunks 0 and 2).
  void SetUp() override {
    auto store = open_store(dir);
    whole = put(*store, "whole", 2 * kMiB + 3, 1)->path();
    sparse = put(*store, "sparse", 4 * kMiB, 2, {0, 2})->path();
    store->save_model({"org/m", "main", "abc", "snapshot"});
  }
  void expect_both() {
    auto store = open_store(dir);
    auto objects = store->take_objects();
    ASSERT_EQ(objects.size(), 2u);
    EXPECT_TRUE(find(objects, "whole")->file->complete());
    EXPECT_EQ(find(objects, "sparse")->file->present_chunks(), 2u);
    EXPECT_TRUE(all_chunks_true(*find(objects, "whole")->file, 1));
    EXPECT_TRUE(all_chunks_true(*find(objects, "sparse")->file, 2));
  }
  void expect_only(const std::string& key) {
    auto store = open_store(dir);
    auto objects = store->take_objects();
    ASSERT_EQ(objects.size(), 1u);
    EXPECT_EQ(objects[0].meta.key, key);
    EXPECT_EQ(object_files(dir).size(), 2u) << "nothing is left of the other";
  }
  void run_sql(const char* sql) {
    auto database = Database::open(dir + "/catalog.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    ASSERT_TRUE(database);
    auto done = database->exec(sql);
    ASSERT_TRUE(done) << done.error().what;
  }
  void lose_catalog() {
    for (const char* suffix : {"", "-wal", "-shm"}) fs::remove(dir + "/catalog.db" + suffix);
  }

  TempDir temp;
  const std::string dir = temp / "cache";
  std::string whole, sparse;
};

TEST_F(StoreRecoveryTest, ObjectOfTheWrongSizeIsDropped) {
  fs::resize_file(sparse, kMiB);
  expect_only("whole");
}

TEST_F(StoreRecoveryTest, ObjectThatIsLongerIsDropped) {
  fs::resize_file(sparse, 4 * kMiB + 1);
  expect_only("whole");
}

TEST_F(StoreRecoveryTest, CompleteObjectOfTheWrongSizeIsDroppedWithoutACatalogToo) {
  lose_catalog();
  fs::resize_file(whole, 2 * kMiB + 4);
  expect_only("sparse");
}

// The catalog is believed at the start.
TEST_F(StoreRecoveryTest, CompleteObjectOfTheWrongSizeIsFoundOutWhenItIsOpened) {
  for (const uint64_t size : {kMiB, 2 * kMiB + 4}) {
    fs::resize_file(whole, size);
    auto store = open_store(dir);
    const auto objects = store->take_objects();
    const auto& file = find(objects, "whole")->file;
    EXPECT_EQ(file->descriptor().error().code, Code::kCorrupt);
    EXPECT_EQ(file->verify_chunk(0).error().code, Code::kCorrupt);
    EXPECT_EQ(file->fd(), -1);
    EXPECT_TRUE(all_chunks_true(*find(objects, "sparse")->file, 2));
  }
}

TEST_F(StoreRecoveryTest, ObjectWithoutItsFileIsDropped) {
  fs::remove(sparse);
  expect_only("whole");
  expect_only("whole");
}

TEST_F(StoreRecoveryTest, LostSidecarIsMadeAgainFromTheRow) {
  fs::remove(whole + ".meta");
  fs::remove(sparse + ".meta");
  expect_both();
  lose_catalog();
  expect_both();
}

TEST_F(StoreRecoveryTest, TornSidecarIsMadeAgainFromTheRow) {
  fs::resize_file(sparse + ".meta", 100);
  expect_both();
}

TEST_F(StoreRecoveryTest, TornSidecarWithoutARowDropsItsObject) {
  lose_catalog();
  fs::resize_file(whole + ".meta", fs::file_size(whole + ".meta") - 1);
  expect_only("sparse");
}

TEST_F(StoreRecoveryTest, DeletedCatalogIsRebuiltFromTheSidecars) {
  lose_catalog();
  uint64_t written = 0;
  for (const ZoneInfo& zone : open_store(dir)->zones()) written += zone.bytes_written;
  EXPECT_GE(written, 4 * kMiB + 3) << "the sidecars know the wear too";
  expect_both();
  expect_both();
}

TEST_F(StoreRecoveryTest, GarbageInPlaceOfTheCatalogIsMovedAsideAndRebuilt) {
  overwrite(dir + "/catalog.db", std::string(100000, 'x'));
  expect_both();
  EXPECT_TRUE(fs::exists(dir + "/catalog.db.corrupt"));
  expect_both();
}

TEST_F(StoreRecoveryTest, TruncatedCatalogIsRebuilt) {
  fs::resize_file(dir + "/catalog.db", fs::file_size(dir + "/catalog.db") / 2);
  expect_both();
  fs::resize_file(dir + "/catalog.db", 0);
  expect_both();
}

TEST_F(StoreRecoveryTest, CatalogWithDamagedPagesIsRebuiltOrRead) {
  const auto size = fs::file_size(dir + "/catalog.db");
  for (uint64_t at = 100; at < size; at += 1000) {
    std::fstream file(dir + "/catalog.db", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file << std::string(64, '\xee');
    file.close();
    expect_both();
  }
}

// The list of free pages is read by whoever writes, and by nobody else.
TEST_F(StoreRecoveryTest, CatalogWhoseDamageOnlyAWriterMeetsIsRebuiltByTheNextStart) {
  open_store(dir)->save_header("large", std::string(200'000, 'h'));
  run_sql("DELETE FROM headers; PRAGMA wal_checkpoint(TRUNCATE)");
  {
    std::fstream file(dir + "/catalog.db", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(32);  // the first page of that list, and how many there are
    file << std::string("\x7f\xff\xff\xff", 4);
  }
  {
    auto store = open_store(dir);
    EXPECT_EQ(store->take_objects().size(), 2u);
    store->save_header("another", std::string(200'000, 'h'));
    store->flush();
  }
  EXPECT_FALSE(fs::exists(dir + "/catalog.db.corrupt"));
  expect_both();
  EXPECT_TRUE(fs::exists(dir + "/catalog.db.corrupt"));
  EXPECT_FALSE(fs::exists(dir + "/catalog.db.damaged"));
  expect_both();
}

TEST_F(StoreRecoveryTest, CatalogOfAnotherProgramOrVersionIsRebuilt) {
  fs::remove(dir + "/catalog.db");
  fs::create_directory(dir + "/catalog.db");
  expect_both();
  run_sql("PRAGMA user_version=99");
  expect_both();
  lose_catalog();
  run_sql("CREATE TABLE t(x)");
  expect_both();
}

TEST_F(StoreRecoveryTest, RowWithDamagedRecordFallsBackToTheSidecar) {
  run_sql("UPDATE objects SET record=x'00'");
  expect_both();
}

TEST_F(StoreRecoveryTest, SidecarThatKnowsMoreThanTheRowCounts) {
  // The state after a crash between the sidecar's rename and the row's commit.
  fs::copy(dir + "/catalog.db", temp / "old.db");
  {
    auto store = open_store(dir);
    auto objects = store->take_objects();
    const StoredObject& object = *find(objects, "sparse");
    ASSERT_TRUE(fill_chunk(*object.file, 2, 3));
    store->checkpoint(object.file, object.meta);
  }
  fs::copy(temp / "old.db", dir + "/catalog.db", fs::copy_options::overwrite_existing);
  auto store = open_store(dir);
  auto objects = store->take_objects();
  EXPECT_EQ(find(objects, "sparse")->file->present_chunks(), 3u);
  EXPECT_TRUE(all_chunks_true(*find(objects, "sparse")->file, 2));
}

TEST_F(StoreRecoveryTest, OrphanFilesAreRemoved) {
  const std::string objects = dir + "/zone_3/objects/ab/";
  fs::create_directories(objects);
  const std::string name = "ab" + std::string(30, '0');
  overwrite(objects + name, "no row, no sidecar");
  overwrite(objects + "ab" + std::string(30, '1') + ".meta", "a sidecar without a file");
  overwrite(objects + name + ".meta.tmp", "half a sidecar");
  overwrite(objects + "README", "?");
  expect_both();
  EXPECT_TRUE(fs::is_empty(objects));
}

TEST_F(StoreRecoveryTest, OfTwoObjectsWithOneKeyTheNewerSurvives) {
  // The state after a power cut that kept both the object and the one that replaced it.
  fs::copy(whole, temp / "old");
  fs::copy(whole + ".meta", temp / "old.meta");
  {
    auto store = open_store(dir);
    put(*store, "whole", kMiB, 9);
  }
  fs::copy(temp / "old", whole);
  fs::copy(temp / "old.meta", whole + ".meta");
  auto store = open_store(dir);
  auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 2u);
  EXPECT_EQ(find(objects, "whole")->meta.size, kMiB);
  EXPECT_TRUE(all_chunks_true(*find(objects, "whole")->file, 9));
  EXPECT_FALSE(fs::exists(whole));
}

TEST_F(StoreRecoveryTest, EveryObjectFileGoneIsAnEmptyCache) {
  for (int i = 0; i < 4; ++i) fs::remove_all(dir + "/zone_" + std::to_string(i));
  auto store = open_store(dir);
  EXPECT_TRUE(store->take_objects().empty());
  EXPECT_TRUE(put(*store, "k", kMiB, 1)->complete());
  EXPECT_EQ(store->load_model("org/m", "main")->snapshot, "snapshot");
}

TEST(SidecarTest, RoundTripKeepsEverythingAndNoDamagePasses) {
  SidecarRecord record;
  record.meta = meta_of("key", 66 * kMiB + 1);
  record.meta.sha256 = std::string(64, 'f');
  record.meta.verified = true;
  record.meta.hits = 5;
  record.meta.last_access_ms = -1;
  record.generation = 9;
  record.zone_bytes_written = 77;
  record.bitmap = {0x8000000000000001u, 0b100};
  record.hashes.resize(67);
  record.hashes[0] = 1;
  record.hashes[63] = 2;
  record.hashes[66] = 3;
  const std::string bytes = encode_sidecar(record);
  auto read = decode_sidecar(bytes);
  ASSERT_TRUE(read) << read.error().what;
  EXPECT_EQ(read->bitmap, record.bitmap);
  EXPECT_EQ(read->hashes, record.hashes);
  EXPECT_EQ(read->meta.name, record.meta.name);
  EXPECT_EQ(read->meta.last_access_ms, -1);
  EXPECT_EQ(read->generation, 9u);
  EXPECT_EQ(read->zone_bytes_written, 77u);
  EXPECT_TRUE(read->meta.verified);
  EXPECT_EQ(bytes.size() % 8, 0u);
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_FALSE(decode_sidecar(bytes.substr(0, i))) << "cut at " << i;
    std::string flipped = bytes;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x10);
    EXPECT_EQ(decode_sidecar(flipped).error().code, Code::kCorrupt) << "flipped at " << i;
  }
}

// A file system of 8 MiB of its own.
class StoreFullDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directory(dir);
    if (::mount("tmpfs", dir.c_str(), "tmpfs", 0, "size=8m,mode=0700") != 0) {
      GTEST_SKIP() << "mounting needs root";
    }
    mounted = true;
  }
  void TearDown() override {
    if (mounted) ::umount2(dir.c_str(), MNT_DETACH);
  }
  TempDir temp;
  const std::string dir = temp / "disk";
  bool mounted = false;
};

TEST_F(StoreFullDiskTest, WholeObjectsStopAboveTheReserve) {
  auto store = open_store(dir);
  EXPECT_LE(store->free_bytes(), 8 * kMiB * 95 / 100);
  auto too_large = store->create(meta_of("large", 8 * kMiB), true);
  ASSERT_FALSE(too_large);
  EXPECT_EQ(too_large.error().code, Code::kNoSpace);
  put(*store, "a", 5 * kMiB, 1);
  EXPECT_EQ(store->create(meta_of("b", 3 * kMiB), true).error().code, Code::kNoSpace);
  EXPECT_EQ(store->get_write_zone(3 * kMiB).error().code, Code::kNoSpace);
  auto small = put(*store, "c", kMiB, 2);
  EXPECT_TRUE(all_chunks_true(*small, 2));
}

TEST_F(StoreFullDiskTest, SparseObjectFillsUntilTheReserveAndKeepsWhatItHas) {
  auto store = open_store(dir);
  auto file = store->create(meta_of("sparse", 64 * kMiB), false);
  ASSERT_TRUE(file) << "charged by what it holds, not by its size";
  uint64_t chunk = 0;
  Result<void> done;
  while (chunk < 64 && (done = fill_chunk(**file, 1, chunk))) ++chunk;
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Code::kNoSpace);
  EXPECT_GE(chunk, 4u);
  EXPECT_LT(chunk, 8u);
  EXPECT_FALSE((*file)->has(chunk));
  store->checkpoint(*file, meta_of("sparse", 64 * kMiB));
  (*file).reset();
  store.reset();
  store = open_store(dir);
  auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 1u);
  EXPECT_EQ(objects[0].file->present_chunks(), chunk);
  EXPECT_TRUE(all_chunks_true(*objects[0].file, 1));
}

TEST_F(StoreFullDiskTest, NothingFailsWhenOthersFillTheDiskAndLaterItRecovers) {
  auto store = open_store(dir);
  auto file = put(*store, "k", 4 * kMiB, 1, {0});
  store->flush();
  ASSERT_TRUE(fill_chunk(*file, 1, 1));
  const int filler = ::open((dir + "/filler").c_str(), O_CREAT | O_WRONLY, 0600);
  const std::vector<std::byte> junk(4096);
  while (::write(filler, junk.data(), junk.size()) > 0) {
  }
  EXPECT_EQ(store->free_bytes(), 0u);
  store->checkpoint(file, meta_of("k", 4 * kMiB));
  for (int i = 0; i < 50; ++i) {
    store->save_header("h" + std::to_string(i), std::string(200000, 'h'));
  }
  store->flush();
  EXPECT_EQ(store->load_header("h49"), std::string(200000, 'h')) << "kept in memory meanwhile";
  EXPECT_EQ(store->create(meta_of("new", kMiB), true).error().code, Code::kNoSpace);
  EXPECT_EQ(store->create(meta_of("new", kMiB), false).error().code, Code::kNoSpace);
  EXPECT_TRUE(all_chunks_true(*file, 1));

  // Also a start on the full disk is a start.
  file.reset();
  store.reset();
  store = open_store(dir);
  ASSERT_TRUE(store);
  auto objects = store->take_objects();
  ASSERT_EQ(objects.size(), 1u);
  EXPECT_TRUE(all_chunks_true(*objects[0].file, 1));

  ASSERT_EQ(::ftruncate(filler, 0), 0);
  ::close(filler);
  ASSERT_TRUE(fill_chunk(*objects[0].file, 1, 3));
  store->checkpoint(objects[0].file, objects[0].meta);
  const uint64_t present = objects[0].file->present_chunks();
  objects.clear();
  store.reset();
  store = open_store(dir);
  EXPECT_EQ(store->take_objects().at(0).file->present_chunks(), present);
}

// --- kill -9 ---

// A process of another program: one forked from this would begin with locks held by threads that it
// lacks.
pid_t start_torture(const std::string& dir, uint64_t cycle, int reports) {
  const std::string program = fs::read_symlink("/proc/self/exe").parent_path() / "store_torture";
  const std::string number = std::to_string(cycle);
  const char* argv[] = {program.c_str(), dir.c_str(), number.c_str(), nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, reports, crash_test::kTortureReports);
  pid_t child = -1;
  const int error = ::posix_spawn(&child, program.c_str(), &actions, nullptr,
                                  const_cast<char**>(argv), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  EXPECT_EQ(error, 0) << program;
  return error == 0 ? child : -1;
}

TEST(StoreCrashTest, KilledDaemonLeavesOnlyTrueBytesAndAllThatWasFlushed) {
  TempDir temp;
  const std::string dir = temp / "cache";
  std::mt19937_64 random(4711);
  std::map<uint32_t, TortureReport> durable;
  for (uint64_t cycle = 0; cycle < 20; ++cycle) {
    int pipe_fds[2];
    ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
    const pid_t child = start_torture(dir, cycle, pipe_fds[1]);
    ::close(pipe_fds[1]);
    ASSERT_GT(child, 0);
    TortureReport report;
    const auto note = [&] {
      if (report.key >= crash_test::kTortureKeys) return;
      durable.erase(report.key);  // replaced or removed: nothing is promised of it
      if (report.chunks > 0) durable[report.key] = report;
    };
    const uint64_t steps = 1 + random() % 60;
    for (uint64_t i = 0; i < steps; ++i) {
      ASSERT_EQ(::read(pipe_fds[0], &report, sizeof report), ssize_t{sizeof report});
      note();
    }
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    while (::read(pipe_fds[0], &report, sizeof report) == ssize_t{sizeof report}) note();
    ::close(pipe_fds[0]);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child gave up: " << WEXITSTATUS(status);

    auto store = open_store(dir);
    ASSERT_TRUE(store);
    auto objects = store->take_objects();
    int replaced = 0;
    for (const StoredObject& object : objects) {
      EXPECT_TRUE(all_chunks_true(*object.file, std::stoul(object.meta.sha256)))
          << "cycle " << cycle << " object " << object.meta.key;
    }
    for (const auto& [key, flushed] : durable) {
      const StoredObject* object = find(objects, std::to_string(key));
      // The last thing that the child did, unreported, may have been to remove or replace one.
      if (object == nullptr || object->meta.sha256 != std::to_string(flushed.seed)) {
        EXPECT_EQ(++replaced, 1) << "cycle " << cycle << ": flushed object " << key << " is lost";
        continue;
      }
      EXPECT_GE(object->file->present_chunks(), flushed.chunks) << "cycle " << cycle;
    }
    EXPECT_EQ(object_files(dir).size(), 2 * objects.size()) << "no garbage";
    durable.clear();
    for (const StoredObject& object : objects) {
      const auto key = static_cast<uint32_t>(std::stoul(object.meta.key));
      const auto seed = static_cast<uint32_t>(std::stoul(object.meta.sha256));
      durable[key] = {key, seed, object.file->present_chunks()};
    }
  }
}

}  // namespace
}  // namespace nexus::store_test
