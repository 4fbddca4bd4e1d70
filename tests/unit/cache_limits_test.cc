// Limits: eviction, a disk that refuses, and readers beside both.
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <random>
#include <thread>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

CacheOptions disk(uint64_t bytes) {
  CacheOptions options;
  options.disk_bytes = bytes;
  return options;
}

// Files f0, f1, ... of `size` bytes each.
std::vector<std::string> put_files(FakeOrigin& origin, int count, uint64_t size) {
  std::vector<std::string> truth;
  for (int i = 0; i < count; ++i) {
    truth.push_back(random_bytes(size, 100 + static_cast<uint64_t>(i)));
    origin.put("f" + std::to_string(i), truth.back());
  }
  return truth;
}

TEST(CacheEviction, TheLeastRecentlyReadGoesFirst) {
  CacheUnderTest bed(disk(4 * kMiB));
  put_files(bed.origin(), 3, 2 * kMiB);
  for (const char* name : {"f0", "f1", "f0", "f2"}) {
    bed.read_all(bed.blob(name));
    pass_a_millisecond();
  }
  ASSERT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes <= 4 * kMiB; }));
  EXPECT_TRUE(bed.blob("f0")->resident());
  EXPECT_FALSE(bed.blob("f1")->resident());
  EXPECT_TRUE(bed.blob("f2")->resident());
  EXPECT_EQ(bed->stats().total_evictions, 1u);
}

TEST(CacheEviction, AnOpenObjectStaysAndItsHolderKeepsTrueBytesInAnyCase) {
  CacheUnderTest bed(disk(2 * kMiB));
  const auto truth = put_files(bed.origin(), 3, 2 * kMiB);
  const auto open = bed.blob("f0"), held = bed.blob("f1");
  open->add_open();
  bed.read_all(open);
  pass_a_millisecond();
  const auto file = *bed.prepare(held);
  pass_a_millisecond();
  bed.read_all(bed.blob("f2"));
  ASSERT_TRUE(bed.until([&] { return !held->resident(); }));
  EXPECT_TRUE(open->resident());
  std::string bytes(2 * kMiB, '\0');
  ASSERT_TRUE(file->read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  EXPECT_EQ(bytes, truth[1]);
  EXPECT_EQ(bed.read_all(held), truth[1]);
  open->drop_open();
}

TEST(CacheEviction, WhatAnEarlierRunLeftIsEvictedToo) {
  CacheUnderTest bed(disk(8 * kMiB));
  put_files(bed.origin(), 3, 2 * kMiB);
  bed.read_all(bed.blob("f0"));
  pass_a_millisecond();
  bed.read_all(bed.blob("f1"));
  bed.restart(disk(4 * kMiB));
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 4 * kMiB; }));
  bed.read_all(bed.blob("f2"));
  ASSERT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes <= 4 * kMiB; }));
  EXPECT_FALSE(bed.blob("f0")->resident());
  EXPECT_TRUE(bed.blob("f1")->resident());
}

double hits_of_walks(const char* policy) {
  CacheOptions options = disk(5 * kMiB);
  options.eviction_policy = policy;
  CacheUnderTest bed(options);
  put_files(bed.origin(), 8, kMiB);
  uint64_t hits = 0, uses = 0;
  for (int round = 0; round < 8; ++round) {
    for (int i = 0; i < 8; ++i) {
      const auto object = bed.blob("f" + std::to_string(i));
      if (round >= 4) {
        hits += object->resident() ? 1 : 0;
        ++uses;
      }
      object->add_open();
      bed.read_all(object);
      object->drop_open();
      pass_a_millisecond();
      EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes <= 6 * kMiB; }));
    }
  }
  return static_cast<double>(hits) / static_cast<double>(uses);
}

TEST(CacheEviction, AWalkRoundALargerModelHitsUnderLirsAlone) {
  EXPECT_EQ(hits_of_walks("lru"), 0.0);
  EXPECT_GT(hits_of_walks("lirs"), 0.4 * 5 / 8);
}

TEST(CacheEviction, WhatWasFetchedAheadAndNotYetReadOutlivesWhatWasRead) {
  CacheUnderTest bed(disk(4 * kMiB));
  put_files(bed.origin(), 3, 2 * kMiB);
  ASSERT_TRUE(bed.fetch(bed.blob("f0"), 0, 2 * kMiB, nullptr, kReadAhead).get().has_value());
  bed.read_all(bed.blob("f1"));
  pass_a_millisecond();
  bed.read_all(bed.blob("f2"));
  ASSERT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes <= 4 * kMiB; }));
  EXPECT_TRUE(bed.blob("f0")->resident());
  EXPECT_FALSE(bed.blob("f1")->resident());
}

// A tmpfs of 8 MiB: the store's own files and little else fit.
class CacheOnATinyDisk : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/nexus-tiny-XXXXXX";
    dir_ = ::mkdtemp(name);
    if (::mount("tmpfs", dir_.c_str(), "tmpfs", 0, "size=8m") != 0) {
      GTEST_SKIP() << "mounting needs root";
    }
    mounted_ = true;
    CacheOptions options;
    options.ram_bytes = 64 * kMiB;
    bed = std::make_unique<CacheUnderTest>(options, dir_);
  }
  void TearDown() override {
    bed.reset();
    if (mounted_) ::umount2(dir_.c_str(), MNT_DETACH);
    ::rmdir(dir_.c_str());
  }
  std::string dir_;
  bool mounted_ = false;
  std::unique_ptr<CacheUnderTest> bed;
};

TEST_F(CacheOnATinyDisk, AFileThatDoesNotFitIsServedFromMemory) {
  const auto truth = put_files(bed->origin(), 1, 20 * kMiB);
  const auto object = bed->blob("f0");
  EXPECT_EQ(bed->read_all(object), truth[0]);
  EXPECT_EQ(object->info().tier, "ram");
  EXPECT_TRUE(bed->until([&] { return bed->cache().stats().memory_cache_bytes == 20 * kMiB; }));
  EXPECT_EQ(bed->cache().stats().disk_cache_bytes, 0u);
}

TEST_F(CacheOnATinyDisk, ADiskThatFillsUpUnderSeveralFetchesKeepsTheAccountsRight) {
  const auto truth = put_files(bed->origin(), 1, 16 * kMiB);
  const auto object = bed->blob("f0");
  bed->origin().hold();
  std::vector<Answer<void>> answers;
  for (uint64_t i = 0; i < 8; ++i) answers.push_back(bed->fetch(object, 2 * i * kMiB, kMiB));
  bed->origin().reads(8);
  bed->origin().release();
  for (auto& answer : answers) EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(bed->read_all(object), truth[0]);
  EXPECT_TRUE(bed->until([&] { return bed->cache().stats().memory_cache_bytes == 16 * kMiB; }))
      << bed->cache().stats().memory_cache_bytes;
  EXPECT_EQ(bed->cache().stats().disk_cache_bytes, 0u);
  bed->cache().drop(object);
  bed->settle();
  EXPECT_EQ(bed->cache().stats().memory_cache_bytes, 0u);
}

TEST_F(CacheOnATinyDisk, AnArchiveThatDoesNotFitIsServedFromMemory) {
  put_files(bed->origin(), 1, 20 * kMiB);
  const std::vector<TensorInfo> tensors = {tensor_at("l.0.a", 0, 100, 12 * kMiB)};
  const auto object = bed->view("pt", *torch_layer_layout("layer_0", tensors));
  EXPECT_EQ(check_zip(bed->read_all(object)), 4);
  EXPECT_EQ(object->info().tier, "ram");
}

TEST_F(CacheOnATinyDisk, IdleObjectsInMemoryMakeRoomForTheNext) {
  const auto truth = put_files(bed->origin(), 5, 30 * kMiB);
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(bed->read(bed->blob("f" + std::to_string(i)), 20 * kMiB, 9 * kMiB),
              truth[static_cast<size_t>(i)].substr(20 * kMiB, 9 * kMiB));
    pass_a_millisecond();
  }
  EXPECT_LE(bed->cache().stats().memory_cache_bytes, 64 * kMiB);
}

TEST(CacheConcurrent, ReadersSeeTrueBytesWhileObjectsAreEvictedAndDropped) {
  CacheUnderTest bed(disk(6 * kMiB));
  const auto truth = put_files(bed.origin(), 3, 3 * kMiB + 11);
  std::vector<std::shared_ptr<Object>> objects;
  std::vector<std::string> expected;
  for (int i = 0; i < 3; ++i) {
    objects.push_back(bed.blob("f" + std::to_string(i)));
    expected.push_back(truth[static_cast<size_t>(i)]);
    const std::vector<TensorInfo> tensors = {
        tensor_at("x.0.a", static_cast<uint32_t>(i), 1000, 2 * kMiB)};
    objects.push_back(bed.view("st", *safetensors_layer_layout(tensors)));
    expected.push_back(
        expected_bytes(objects.back()->spec().layout, bed.origin().snapshot(), bed.origin()));
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  for (unsigned r = 0; r < 4; ++r) {
    readers.emplace_back([&, r] {
      std::mt19937 random(r);
      for (int i = 0; i < 150; ++i) {
        const size_t which = random() % objects.size();
        const uint64_t offset = random() % expected[which].size();
        const uint64_t length = random() % (300 << 10) + 1;
        if (random() % 32 == 0) bed->drop(objects[which]);
        if (random() % 16 == 0) {  // an impatient one
          uint64_t ticket = 0;
          auto answer = bed.fetch(objects[which], offset, length, &ticket);
          bed->cancel(ticket);
          answer.get();
        }
        // Other readers may drop what this one fetched, time and again.
        const auto bytes = bed.try_to_read(objects[which], offset, length);
        if (!bytes || *bytes != expected[which].substr(offset, length)) ++wrong;
      }
    });
  }
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
}

TEST(CacheConcurrent, StopAmidReadersAnswersThemAll) {
  CacheUnderTest bed;
  put_files(bed.origin(), 1, 4 * kMiB);
  const auto object = bed.blob("f0");
  std::atomic<bool> begun{false};
  std::vector<std::thread> readers;
  for (int r = 0; r < 4; ++r) {
    readers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        bed->drop(object);
        auto answer = bed.fetch(object, static_cast<uint64_t>(i) % 4 * kMiB, 100);
        begun = true;
        if (!answer.get() && i > 50) return;
      }
    });
  }
  while (!begun) std::this_thread::yield();
  bed->stop();
  for (auto& reader : readers) reader.join();
}

}  // namespace
}  // namespace nexus::test
