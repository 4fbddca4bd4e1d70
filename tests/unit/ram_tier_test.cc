// The RAM tier: bounds, what counts as idle, and the copies that the cache keeps in it.
#include "backend/ram/ram_tier.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <thread>

#include "backend/ram/memory_limits.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

std::shared_ptr<RamTier> tier_of(uint64_t bytes, bool tmpfs = true) {
  std::string reason;
  auto tier = RamTier::open({bytes, tmpfs}, &reason);
  EXPECT_TRUE(tier) << reason;
  return tier;
}

// A second opening of the file, as the kernel has for a reader it serves by passthrough.
int open_again(const ObjectFile& file) {
  const auto descriptor = file.descriptor();
  return ::open(("/proc/self/fd/" + std::to_string((*descriptor)->get())).c_str(),
                O_RDONLY | O_CLOEXEC);
}

class RamTierKinds : public ::testing::TestWithParam<bool> {};

TEST_P(RamTierKinds, AFileHasItsExactSizeAndHoldsWhatIsWritten) {
  const auto tier = tier_of(16 * kMiB, GetParam());
  for (const uint64_t size : {uint64_t{1}, uint64_t{4097}, 2 * kMiB, 5 * kMiB + 3}) {
    auto file = tier->create("key", size);
    ASSERT_TRUE(file.has_value()) << file.error().what;
    struct stat st {};
    ASSERT_EQ(::fstat((*file)->fd(), &st), 0);
    EXPECT_EQ(static_cast<uint64_t>(st.st_size), size);
    EXPECT_FALSE((*file)->complete());
    auto mapping = RamMapping::map(**file);
    ASSERT_TRUE(mapping.has_value());
    mapping->bytes()[size - 1] = std::byte{7};
    std::byte last{};
    ASSERT_TRUE((*file)->read(size - 1, {&last, 1}).has_value());
    EXPECT_EQ(last, std::byte{7});
  }
}

TEST_P(RamTierKinds, MemoryCanComePieceByPiece) {
  const auto tier = tier_of(16 * kMiB, GetParam());
  const uint64_t size = 5 * kMiB + 3;
  auto file = *tier->create("key", size, RamTier::Memory::kByPopulate);
  EXPECT_GE(tier->used_bytes(), size);
  auto mapping = RamMapping::map(*file);
  ASSERT_TRUE(mapping.has_value());
  for (uint64_t begin = 0; begin < size; begin += 2 * kMiB) {
    const uint64_t length = std::min(2 * kMiB, size - begin);
    const auto populated = mapping->populate(begin, length);
    ASSERT_TRUE(populated.has_value()) << populated.error().what;
    mapping->bytes()[begin] = std::byte{9};
  }
  std::byte read{};
  ASSERT_TRUE(file->read(4 * kMiB, {&read, 1}).has_value());
  EXPECT_EQ(read, std::byte{9});
  struct stat st {};
  ASSERT_EQ(::fstat(file->fd(), &st), 0);
  EXPECT_EQ(static_cast<uint64_t>(st.st_size), size);
}

TEST_P(RamTierKinds, TheLimitHoldsAndWhatIsDestroyedIsFreeAgain) {
  const auto tier = tier_of(8 * kMiB, GetParam());
  auto first = tier->create("a", 5 * kMiB);
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(tier->used_bytes(), tier->charge_of(5 * kMiB));
  EXPECT_GE(tier->used_bytes(), 5 * kMiB);
  const auto second = tier->create("b", 4 * kMiB);
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code, Code::kLimit);
  first->reset();
  EXPECT_EQ(tier->used_bytes(), 0u);
  EXPECT_TRUE(tier->create("b", 8 * kMiB).has_value());
}

TEST_P(RamTierKinds, OpenAndMappedFilesAreNotIdle) {
  const auto tier = tier_of(8 * kMiB, GetParam());
  auto file = *tier->create("a", 3 * kMiB);
  EXPECT_TRUE(RamTier::idle(*file));
  const int reader = open_again(*file);
  ASSERT_GE(reader, 0);
  EXPECT_FALSE(RamTier::idle(*file));
  void* const mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, reader, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ::close(reader);
  EXPECT_FALSE(RamTier::idle(*file));
  ::munmap(mapped, 4096);
  EXPECT_TRUE(RamTier::idle(*file));
}

TEST_P(RamTierKinds, WhatIsDestroyedWhileMappedCountsUntilItIsUnmapped) {
  const auto tier = tier_of(8 * kMiB, GetParam());
  auto file = *tier->create("a", 3 * kMiB);
  const int reader = open_again(*file);
  const auto* mapped =
      static_cast<const char*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, reader, 0));
  ::close(reader);
  file.reset();
  EXPECT_GE(tier->used_bytes(), 3 * kMiB);
  EXPECT_EQ(mapped[0], 0);  // still there
  ::munmap(const_cast<char*>(mapped), 4096);
  EXPECT_EQ(tier->used_bytes(), 0u);
}

INSTANTIATE_TEST_SUITE_P(All, RamTierKinds, ::testing::Bool(), [](const auto& param) {
  return param.param ? std::string("Tmpfs") : std::string("Memfd");
});

TEST(RamTierOff, ALimitOfNothingIsNoTier) {
  std::string reason;
  EXPECT_EQ(RamTier::open({0}, &reason), nullptr);
  EXPECT_FALSE(reason.empty());
}

TEST(RamTierLimit, StaysBelowTheMachinesMemory) {
  EXPECT_LT(tier_of(uint64_t{1} << 60)->limit_bytes(), system_memory().total_bytes);
}

// A /proc and a /sys/fs/cgroup of the test's own.
class MemoryLimits : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/nexus-limits-XXXXXX";
    dir_ = ::mkdtemp(name);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(dir_ + path).parent_path());
    std::ofstream(dir_ + path) << text;
  }
  uint64_t limit() { return cgroup_memory_limit(dir_ + "/proc", dir_ + "/cg"); }
  std::string dir_;
};

TEST_F(MemoryLimits, TheLeastLimitOnTheWayUpCounts) {
  write("/proc/self/cgroup", "0::/a/b\n");
  EXPECT_EQ(limit(), 0u);
  write("/cg/a/b/memory.max", "max\n");
  EXPECT_EQ(limit(), 0u);
  write("/cg/a/memory.max", "3000\n");
  EXPECT_EQ(limit(), 3000u);
  write("/cg/memory.max", "2000\n");
  write("/cg/a/b/memory.max", "2500\n");
  EXPECT_EQ(limit(), 2000u);
  write("/cg/a/memory.high", "1500\n");
  EXPECT_EQ(limit(), 1500u);
}

TEST_F(MemoryLimits, TheFirstVersionsFileIsReadToo) {
  write("/proc/self/cgroup", "9:cpu:/x\n4:memory,hugetlb:/x/y\n0::/\n");
  write("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  EXPECT_EQ(limit(), 0u);
  write("/cg/memory/x/y/memory.limit_in_bytes", "4096\n");
  EXPECT_EQ(limit(), 4096u);
}

TEST_F(MemoryLimits, MeminfoIsInKibibytes) {
  write("/proc/meminfo", "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n");
  EXPECT_EQ(system_memory(dir_ + "/proc").total_bytes, 102400u);
  EXPECT_EQ(system_memory(dir_ + "/proc").available_bytes, 40960u);
}

CacheOptions with_tier(uint64_t bytes) {
  CacheOptions options;
  options.ram = tier_of(bytes);
  return options;
}

bool in_ram(Object& object) {
  return object.info().tier == "ram";
}

std::string content(const ObjectFile& file) {
  std::string bytes(file.size(), '\0');
  EXPECT_TRUE(file.read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  return bytes;
}

// An object that an earlier run left.
struct Restored {
  explicit Restored(CacheOptions options, std::vector<uint64_t> sizes) : bed(options) {
    for (size_t i = 0; i < sizes.size(); ++i) {
      truth.push_back(random_bytes(sizes[i], 50 + i));
      bed.origin().put(name(i), truth[i]);
    }
    for (size_t i = 0; i < sizes.size(); ++i) bed.read_all(object(i));
    bed.restart();
  }
  static std::string name(size_t i) { return "f" + std::to_string(i); }
  std::shared_ptr<Object> object(size_t i) { return bed.blob(name(i)); }
  CacheUnderTest bed;
  std::vector<std::string> truth;
};

TEST(CacheRam, WhatAnEarlierRunLeftIsCheckedAndServedInMemory) {
  Restored left(with_tier(64 * kMiB), {20 * kMiB + 5, 100});
  for (const size_t i : {0u, 1u}) {
    const auto object = left.object(i);
    EXPECT_EQ(object->info().tier, "ssd");
    const auto file = left.bed.prepare(object);
    ASSERT_TRUE(file.has_value());
    EXPECT_EQ((*file)->zone(), -1);
    EXPECT_TRUE((*file)->complete());
    EXPECT_EQ(content(**file), left.truth[i]);
    EXPECT_TRUE(in_ram(*object));
    EXPECT_EQ(object->info().zone, 0);  // the truth is on disk still
    EXPECT_EQ(left.bed->ready_file(*object), *file);
  }
  const CacheStats stats = left.bed->stats();
  EXPECT_EQ(stats.memory_cache_entries, 2u);
  EXPECT_EQ(stats.disk_cache_entries, 2u);
  EXPECT_GE(stats.memory_cache_bytes, 20 * kMiB);
  EXPECT_TRUE(left.bed.origin().reads().empty());
}

TEST(CacheRam, ACorruptChunkIsFoundOnTheWayAndFetchedAgain) {
  Restored left(with_tier(64 * kMiB), {9 * kMiB});
  const auto object = left.object(0);
  {
    std::fstream disk(object->file()->path(), std::ios::in | std::ios::out | std::ios::binary);
    disk.seekp(8 * kMiB + 17);
    disk.put(static_cast<char>(left.truth[0][8 * kMiB + 17] ^ 1));
  }
  const auto file = left.bed.prepare(object);
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ(content(**file), left.truth[0]);
  EXPECT_FALSE(left.bed.origin().reads().empty());
}

TEST(CacheRam, TheOldestIdleCopyMakesRoom) {
  Restored left(with_tier(8 * kMiB), {4 * kMiB, 4 * kMiB, 4 * kMiB});
  const auto open = left.object(0);
  ASSERT_TRUE(left.bed.prepare(open).has_value());
  open->add_open();
  pass_a_millisecond();
  ASSERT_TRUE(left.bed.prepare(left.object(1)).has_value());
  pass_a_millisecond();
  ASSERT_TRUE(left.bed.prepare(left.object(2)).has_value());
  EXPECT_TRUE(in_ram(*left.object(0)));
  EXPECT_FALSE(in_ram(*left.object(1)));  // younger, but not open
  EXPECT_TRUE(in_ram(*left.object(2)));
  EXPECT_LE(left.bed->stats().memory_cache_bytes, 8 * kMiB);
  EXPECT_EQ(content(**left.bed.prepare(left.object(1))), left.truth[1]);
  open->drop_open();
}

TEST(CacheRam, AMappedCopyStays) {
  Restored left(with_tier(4 * kMiB), {4 * kMiB, 4 * kMiB});
  const auto mapped_object = left.object(0);
  const int reader = open_again(**left.bed.prepare(mapped_object));
  void* const mapped = ::mmap(nullptr, 4 * kMiB, PROT_READ, MAP_SHARED, reader, 0);
  ::close(reader);
  pass_a_millisecond();
  const auto second = left.bed.prepare(left.object(1));
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ((*second)->zone(), 0);  // no room: from the disk, checked there
  EXPECT_EQ(content(**second), left.truth[1]);
  EXPECT_TRUE(in_ram(*mapped_object));
  ::munmap(mapped, 4 * kMiB);
}

TEST(CacheRam, ACopyGoesWithItsObject) {
  Restored left(with_tier(64 * kMiB), {5 * kMiB});
  const auto object = left.object(0);
  ASSERT_TRUE(left.bed.prepare(object).has_value());
  ASSERT_TRUE(in_ram(*object));
  left.bed->drop(object);
  EXPECT_TRUE(left.bed.until([&] { return object->info().tier == "origin"; }));
  EXPECT_TRUE(left.bed.until([&] { return left.bed->stats().memory_cache_bytes == 0; }));
  EXPECT_EQ(content(**left.bed.prepare(object)), left.truth[0]);
}

TEST(CacheRam, AHintCopiesATrustedObject) {
  CacheUnderTest bed(with_tier(64 * kMiB));
  const std::string truth = random_bytes(3 * kMiB, 9);
  bed.origin().put("f", truth);
  const auto object = bed.blob("f");
  bed.read_all(object);
  bed->promote(object);
  ASSERT_TRUE(bed.until([&] { return in_ram(*object); }));
  EXPECT_EQ(content(**bed.prepare(object)), truth);
  EXPECT_EQ(bed.read_all(object), truth);
}

TEST(CacheRam, AnObjectLargerThanTheTierIsServedFromDisk) {
  Restored left(with_tier(2 * kMiB), {5 * kMiB});
  const auto file = left.bed.prepare(left.object(0));
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ((*file)->zone(), 0);
  EXPECT_EQ(content(**file), left.truth[0]);
}

TEST(CacheRam, ACopyIsReadAsItsDiskWantsIt) {
  struct Seen {
    std::mutex mutex;
    std::vector<ByteRange> reads;
  };
  const auto seen = std::make_shared<Seen>();
  CacheOptions options = with_tier(128 * kMiB);
  options.bulk_shape = [](const ObjectFile&) { return BulkShape{16 * kMiB, 32 * kMiB}; };
  options.bulk_read = [seen](const ObjectFile& file, uint64_t offset, std::span<std::byte> into) {
    {
      std::lock_guard lock(seen->mutex);
      seen->reads.push_back({offset, into.size()});
    }
    return file.read(offset, into);
  };
  Restored left(options, {40 * kMiB + 5});
  const auto file = left.bed.prepare(left.object(0));
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ((*file)->zone(), -1);
  EXPECT_EQ(content(**file), left.truth[0]);
  std::lock_guard lock(seen->mutex);
  std::sort(seen->reads.begin(), seen->reads.end(),
            [](const ByteRange& a, const ByteRange& b) { return a.offset < b.offset; });
  ASSERT_EQ(seen->reads.size(), 3u);
  EXPECT_EQ(seen->reads[0].length, 16 * kMiB);
  EXPECT_EQ(seen->reads[1].offset, 16 * kMiB);
  EXPECT_EQ(seen->reads[2].length, 8 * kMiB + 5);
}

TEST(CacheRam, ADiskThatCannotBeReadIsNotServed) {
  CacheOptions options = with_tier(64 * kMiB);
  options.bulk_read = [](const ObjectFile&, uint64_t, std::span<std::byte>) -> Result<void> {
    return fail(Code::kDisk, "input/output error");
  };
  Restored left(options, {5 * kMiB});
  const auto file = left.bed.prepare(left.object(0));  // from the origin again
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ(content(**file), left.truth[0]);
  EXPECT_FALSE(left.bed.origin().reads().empty());
}

TEST(CacheRamConcurrent, ReadersSeeTrueBytesWhileCopiesComeAndGo) {
  Restored left(with_tier(6 * kMiB), {3 * kMiB + 1, 2 * kMiB, 700, 3 * kMiB});
  std::vector<std::shared_ptr<Object>> objects;
  for (size_t i = 0; i < left.truth.size(); ++i) objects.push_back(left.object(i));
  std::atomic<int> wrong{0};
  std::vector<std::thread> readers;
  for (unsigned r = 0; r < 4; ++r) {
    readers.emplace_back([&, r] {
      std::mt19937 random(r);
      for (int i = 0; i < 60; ++i) {
        const size_t which = random() % objects.size();
        const auto& object = objects[which];
        switch (random() % 8) {
          case 0:
            left.bed->drop(object);
            break;
          case 1:
            left.bed->promote(object);
            break;
          default:
            break;
        }
        object->add_open();
        const auto file = left.bed.prepare(object);
        // Dropped by another reader as often as it was fetched.
        if (file && content(**file) != left.truth[which]) ++wrong;
        const auto bytes = left.bed.try_to_read(object, 0, 500);
        if (bytes && *bytes != left.truth[which].substr(0, 500)) ++wrong;
        object->drop_open();
      }
    });
  }
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(left.bed->stats().memory_cache_bytes, 6 * kMiB);
}

TEST(CacheRamConcurrent, StopAmidPromotionsEndsThem) {
  Restored left(with_tier(64 * kMiB), {9 * kMiB, 9 * kMiB, 9 * kMiB});
  std::vector<Answer<std::shared_ptr<ObjectFile>>> answers(3);
  for (size_t i = 0; i < 3; ++i) left.bed->prepare(left.object(i), answers[i].callback());
  left.bed->stop();
  for (auto& answer : answers) answer.get();  // whatever it says
}

}  // namespace
}  // namespace nexus::test
