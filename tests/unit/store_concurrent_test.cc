// Many threads on one object and on one store. Run under TSan.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "store_test_support.h"

namespace nexus::store_test {
namespace {

constexpr uint64_t kMiB = kChunkBytes;

void on_threads(int count, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
  for (std::thread& thread : threads) thread.join();
}

TEST(StoreConcurrentTest, ReaderThatSeesTheBitSeesTheBytes) {
  TempDir temp;
  auto store = open_store(temp / "cache");
  constexpr uint64_t kChunks = 24;
  const ObjectMeta meta = meta_of("k", kChunks * kMiB - 100);
  auto file = store->create(meta, false).value();
  on_threads(4, [&](int thread) {
    if (thread < 2) {  // each writes half of the chunks
      for (auto n = static_cast<uint64_t>(thread); n < kChunks; n += 2) {
        ASSERT_TRUE(fill_chunk(*file, 7, n));
        store->checkpoint(file, meta);
      }
    } else {
      while (!file->complete()) EXPECT_TRUE(all_chunks_true(*file, 7));
      EXPECT_EQ(file->present_bytes(), meta.size);
      EXPECT_TRUE(all_chunks_true(*file, 7));
    }
  });
}

TEST(StoreConcurrentTest, ChunkSealedByManyIsCountedOnce) {
  TempDir temp;
  auto store = open_store(temp / "cache");
  const ObjectMeta meta = meta_of("k", 8 * kMiB);
  auto file = store->create(meta, true).value();
  ASSERT_TRUE(file->write(0, true_bytes(1, 0, meta.size)));
  on_threads(4, [&](int) {
    for (uint64_t chunk = 0; chunk < 8; ++chunk) ASSERT_TRUE(file->seal_chunk(chunk));
  });
  EXPECT_EQ(file->present_chunks(), 8u);
  EXPECT_TRUE(file->complete());
  uint64_t used = 0;
  for (const ZoneInfo& zone : store->zones()) used += zone.used_bytes;
  EXPECT_EQ(used, meta.size);
}

TEST(StoreConcurrentTest, CreationsRemovalsAndCheckpointsLeaveWhatIsAlive) {
  TempDir temp(TempDir::in_memory());
  auto store = open_store(temp / "cache");
  constexpr int kRounds = 30;
  std::atomic<bool> done{false};
  std::thread observer([&] {
    while (!done) {
      store->zones();
      store->free_bytes();
      store->flush();
      store->load_model("org/m", "main");
      store->list_models();
    }
  });
  on_threads(4, [&](int thread) {
    for (int i = 0; i < kRounds; ++i) {
      const std::string own = std::to_string(thread) + "-" + std::to_string(i % 5);
      auto mine = put(*store, own, 70000, 1);
      if (i % 3 == 0) store->remove(mine);
      put(*store, "shared", 80000, 1);  // all threads replace it all the time
      store->save_model({"org/m", "main", std::to_string(i), "snapshot"});
      store->save_header(own, own);
      EXPECT_TRUE(all_chunks_true(*mine, 1));
    }
  });
  done = true;
  observer.join();
  store.reset();
  store = open_store(temp / "cache");
  auto objects = store->take_objects();
  EXPECT_NE(find(objects, "shared"), nullptr);
  for (const StoredObject& object : objects) {
    EXPECT_TRUE(object.file->complete());
    EXPECT_TRUE(all_chunks_true(*object.file, 1));
  }
  // Rounds 25 to 29 decide: i % 3 == 0 of them is 27, slot 2.
  EXPECT_EQ(objects.size(), 1u + 4u * 4u);
  EXPECT_EQ(object_files(temp / "cache").size(), 2 * objects.size());
}

TEST(StoreConcurrentTest, FirstUseByManyThreadsOpensOneDescriptor) {
  TempDir temp;
  auto store = open_store(temp / "cache");
  put(*store, "k", 4 * kMiB, 1);
  store.reset();
  store = open_store(temp / "cache");
  auto file = store->take_objects().at(0).file;
  std::atomic<int> fds[4];
  on_threads(4, [&](int thread) {
    fds[thread] = file->fd();
    EXPECT_TRUE(all_chunks_true(*file, 1));
  });
  for (const auto& fd : fds) EXPECT_EQ(fd.load(), file->fd());
}

TEST(StoreConcurrentTest, CloseWhileOthersWorkIsOrderly) {
  TempDir temp(TempDir::in_memory());
  auto store = open_store(temp / "cache");
  on_threads(3, [&](int thread) {
    for (int i = 0; i < 20; ++i) {
      if (thread == 0 && i == 10) store->close();
      auto file = store->create(meta_of(std::to_string(thread * 100 + i), 1000), true);
      if (!file) {
        EXPECT_EQ(file.error().code, Code::kCancelled);
        continue;
      }
      EXPECT_TRUE(fill_chunk(**file, 1, 0));
      store->checkpoint(*file, meta_of((*file)->key(), 1000));
      if (i % 4 == 0) store->remove(*file);
      store->flush();
    }
  });
  store.reset();
  store = open_store(temp / "cache");
  for (const auto& object : store->take_objects()) EXPECT_TRUE(all_chunks_true(*object.file, 1));
}

// A file system of 64 MiB of its own, which nothing but objects is written to.
TEST(StoreConcurrentTest, WritersTogetherLeaveTheReserveAlone) {
  TempDir temp;
  const std::string disk = temp / "disk";
  fs::create_directory(disk);
  if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64m,mode=0700") != 0) {
    GTEST_SKIP() << "mounting needs root";
  }
  const auto free_and_reserve = [&] {
    struct statvfs st {};
    EXPECT_EQ(::statvfs(disk.c_str(), &st), 0);
    return std::pair(st.f_bavail * st.f_frsize, st.f_blocks * st.f_frsize / 20);
  };
  {
    StoreOptions options = options_at(temp / "cache");
    options.zones = {{disk + "/a", 0, "ssd", 0}, {disk + "/b", 0, "ssd", 0}};
    options.persist = false;
    auto store = Store::open(options);
    ASSERT_TRUE(store) << store.error().what;
    on_threads(6, [&](int thread) {
      int refused = 0;
      for (int n = 0; refused < 10; ++n) {
        const bool whole = (n + thread) % 2 == 0;
        const ObjectMeta meta = meta_of(std::to_string(thread) + "-" + std::to_string(n), 3 * kMiB);
        auto file = (*store)->create(meta, whole);
        for (uint64_t chunk = 0; file && chunk < 3; ++chunk) {
          if (!fill_chunk(**file, 1, chunk)) break;
        }
        if (!file || !(*file)->complete()) ++refused;
        const auto [free, reserve] = free_and_reserve();
        EXPECT_GE(free, reserve);
      }
    });
    const auto [free, reserve] = free_and_reserve();
    EXPECT_LT(free, reserve + 8 * kMiB) << "and use the rest";
  }
  ::umount2(disk.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace nexus::store_test
