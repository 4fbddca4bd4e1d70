// The io_uring engine: bytes arrive whole and in place whatever the settings, the alignment and
// what the kernel refuses.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "backend/io/engine.h"
#include "backend/io/histogram.h"
#include "backend/store/disk_io.h"

namespace nexus::io {
namespace {

constexpr size_t kKiB = 1024, kMiB = 1024 * kKiB;

std::byte pattern(uint64_t at) {
  return static_cast<std::byte>((at * 2654435761u) >> 13);
}

// Page-aligned anonymous memory, or a mapping of a memfd.
class Memory {
 public:
  explicit Memory(size_t size, bool shared = false) : size_(size) {
    if (shared) {
      fd_ = UniqueFd(::memfd_create("engine-test", MFD_CLOEXEC));
      if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) std::abort();
    }
    void* at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd_.get(), 0);
    if (at == MAP_FAILED) std::abort();
    data_ = static_cast<std::byte*>(at);
  }
  ~Memory() { ::munmap(data_, size_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  std::span<std::byte> span(size_t offset = 0, size_t length = SIZE_MAX) {
    return {data_ + offset, std::min(length, size_ - offset)};
  }
  void fill(uint64_t from) {
    for (size_t i = 0; i < size_; ++i) data_[i] = pattern(from + i);
  }

 private:
  UniqueFd fd_{-1};
  size_t size_;
  std::byte* data_ = nullptr;
};

// A file of `size` pattern bytes that is gone when the test is.
class File {
 public:
  explicit File(size_t size) {
    std::string path = (std::filesystem::temp_directory_path() / "nexus-io-XXXXXX").string();
    fd_ = UniqueFd(::mkstemp(path.data()));
    ::unlink(path.c_str());
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = pattern(i);
    if (::pwrite(fd_.get(), bytes.data(), size, 0) != static_cast<ssize_t>(size)) std::abort();
  }
  int get() const { return fd_.get(); }

 private:
  UniqueFd fd_;
};

void expect_pattern(std::span<const std::byte> bytes, uint64_t from) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_EQ(bytes[i], pattern(from + i)) << "byte " << i << " of a read at " << from;
  }
}

int refuse_rings(unsigned, io_uring*, io_uring_params*) {
  return -EPERM;
}

EngineSettings small(uint64_t block = 64 * kKiB, unsigned depth = 4) {
  EngineSettings settings;
  settings.block_size = block;
  settings.queue_depth = depth;
  settings.registered = true;  // of use to those that register memory
  return settings;
}

std::vector<EngineSettings> many_settings() {
  std::vector<EngineSettings> all;
  for (const bool overlap : {false, true}) {
    for (const bool single : {false, true}) {
      for (const unsigned threads : {1u, 3u}) {
        for (const bool direct : {false, true}) {
          EngineSettings settings = small(threads == 1 ? 64 * kKiB : 12 * kKiB);
          settings.overlap = overlap;
          settings.single_submit = single;
          settings.threads = threads;
          settings.direct = direct;
          all.push_back(settings);
        }
      }
    }
  }
  EngineSettings one = small(4 * kKiB, 1);
  one.overlap = false;
  all.push_back(one);
  EngineSettings polled = small();
  polled.iopoll = true;  // the ring or the request may be refused: the bytes come nevertheless
  all.push_back(polled);
  EngineSettings kernel_thread = small();
  kernel_thread.sqpoll = true;
  all.push_back(kernel_thread);
  return all;
}

TEST(IoEngine, ReadsExactlyTheRangeUnderAllSettings) {
  const size_t size = 3 * kMiB + 123;
  File file(size);
  for (const EngineSettings& settings : many_settings()) {
    Engine engine(settings, settings);
    Memory memory(4 * kMiB);
    memory.fill(1);
    ASSERT_TRUE(engine.read(file.get(), 0, memory.span(0, size)));
    expect_pattern(memory.span(0, size), 0);
    expect_pattern(memory.span(size), size + 1);  // nothing behind it was touched
    ASSERT_TRUE(engine.read(file.get(), 8192, memory.span(4096, 5000)));
    expect_pattern(memory.span(4096, 5000), 8192);
    ASSERT_TRUE(engine.read(file.get(), 777, memory.span(5, 100 * kKiB)));  // nothing is aligned
    expect_pattern(memory.span(5, 100 * kKiB), 777);
    ASSERT_TRUE(engine.read(file.get(), 0, memory.span(0, 0)));
  }
}

TEST(IoEngine, WritesExactlyTheRangeUnderAllSettings) {
  for (const EngineSettings& settings : many_settings()) {
    File file(0);
    Engine engine(settings, settings);
    Memory memory(kMiB + 4096);
    memory.fill(0);
    ASSERT_TRUE(engine.write(file.get(), 0, memory.span(0, kMiB + 77)));
    memory.fill(kMiB + 77);
    ASSERT_TRUE(engine.write(file.get(), kMiB + 77, memory.span(0, 200 * kKiB)));
    std::vector<std::byte> bytes(kMiB + 77 + 200 * kKiB + 1);
    ASSERT_EQ(::pread(file.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()) - 1);
    expect_pattern(std::span(bytes).first(bytes.size() - 1), 0);
  }
}

TEST(IoEngine, AReadBeyondTheEndNamesTheOffset) {
  File file(kMiB);
  for (const bool ring : {true, false}) {
    EngineOptions options;
    if (!ring) options.queue_init = refuse_rings;
    Engine engine(small(), small(), options);
    Memory memory(2 * kMiB);
    auto read = engine.read(file.get(), 0, memory.span());
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, Code::kDisk);
    EXPECT_EQ(read.error().what, "read at 1048576: the file ends there");
    // A file that ends inside a block: what is there was read, then the end is told.
    File odd(kMiB + 100);
    read = engine.read(odd.get(), 0, memory.span());
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, Code::kDisk);
    EXPECT_NE(read.error().what.find("the file ends there"), std::string::npos);
    // And the engine goes on.
    ASSERT_TRUE(engine.read(file.get(), 0, memory.span(0, kMiB)));
    expect_pattern(memory.span(0, kMiB), 0);
  }
}

TEST(IoEngine, ErrorsNameDirectionOffsetAndCause) {
  Engine engine(small(), small());
  Memory memory(256 * kKiB);
  auto read = engine.read(-1, 4096, memory.span());
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Code::kDisk);
  EXPECT_NE(read.error().what.find("read at 4096: "), std::string::npos) << read.error().what;
  EXPECT_NE(read.error().what.find("Bad file descriptor"), std::string::npos) << read.error().what;
  UniqueFd full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full);
  auto write = engine.write(full.get(), 0, memory.span());
  ASSERT_FALSE(write);
  EXPECT_EQ(write.error().code, Code::kNoSpace) << write.error().what;
}

TEST(IoEngine, WithoutRingsTheCallerReadsAndTheReportSaysWhy) {
  EngineOptions options;
  options.queue_init = refuse_rings;
  Engine engine(small(), small(), options);
  EXPECT_FALSE(engine.report().io_uring);
  EXPECT_EQ(engine.report().reason, "io_uring_setup: Operation not permitted");
  File file(kMiB + 5);
  Memory memory(2 * kMiB);
  ASSERT_TRUE(engine.read(file.get(), 0, memory.span(0, kMiB + 5)));
  expect_pattern(memory.span(0, kMiB + 5), 0);
  ASSERT_TRUE(engine.write(file.get(), kMiB + 5, memory.span(0, 9000)));
  auto refused = engine.register_memory(memory.span());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().what, "no io_uring");
  EXPECT_EQ(engine.report().registered_reason, "no io_uring");
  engine.unregister_memory(memory.span().data());
}

TEST(IoEngine, AKernelWithoutNewRingFlagsIsUsedWithout) {
  EngineOptions options;
  options.queue_init = [](unsigned entries, io_uring* ring, io_uring_params* params) {
    return params->flags == 0 ? io_uring_queue_init_params(entries, ring, params) : -EINVAL;
  };
  Engine engine(small(), small(), options);
  if (!engine.report().io_uring) GTEST_SKIP() << engine.report().reason;
  File file(kMiB);
  Memory memory(kMiB);
  ASSERT_TRUE(engine.read(file.get(), 0, memory.span()));
  expect_pattern(memory.span(), 0);
}

TEST(IoEngine, RegisteredMemoryTakesTheSameBytes) {
  File file(2 * kMiB);
  Engine engine(small(), small());
  Memory memory(2 * kMiB, true);
  if (auto registered = engine.register_memory(memory.span()); !registered) {
    EXPECT_EQ(engine.report().registered_reason, registered.error().what);
    GTEST_SKIP() << registered.error().what;  // RLIMIT_MEMLOCK
  }
  EXPECT_EQ(engine.report().registered_bytes, 2 * kMiB);
  ASSERT_TRUE(engine.read(file.get(), 0, memory.span()));
  expect_pattern(memory.span(), 0);
  File copy(0);
  ASSERT_TRUE(engine.write(copy.get(), 0, memory.span()));
  engine.unregister_memory(memory.span().data());
  EXPECT_EQ(engine.report().registered_bytes, 0u);
  Memory other(2 * kMiB);
  ASSERT_TRUE(engine.read(copy.get(), 0, other.span()));
  expect_pattern(other.span(), 0);
  ASSERT_TRUE(engine.read(copy.get(), 0, memory.span()));  // no longer registered
}

TEST(IoEngine, MemoryThatCannotBeRegisteredIsRefusedWithAReason) {
  Engine engine(small(), small());
  Memory memory(kMiB);
  EXPECT_FALSE(engine.register_memory(memory.span(16, 4096)));
  EXPECT_FALSE(engine.report().registered_reason.empty());
  EXPECT_FALSE(engine.register_memory({}));
}

TEST(IoEngine, LatenciesAreMeasuredWhenAskedFor) {
  EngineOptions options;
  options.measure = true;
  Engine engine(small(), small(), options);
  if (!engine.report().io_uring) GTEST_SKIP() << engine.report().reason;
  File file(kMiB);
  Memory memory(kMiB);
  ASSERT_TRUE(engine.read(file.get(), 0, memory.span()));
  EXPECT_GE(engine.measured(false).complete.count(), 16u);
  EXPECT_GT(engine.measured(false).submit.count(), 0u);
  EXPECT_EQ(engine.measured(true).complete.count(), 0u);
}

TEST(IoEngine, SettingsOutOfBoundsAreBroughtInside) {
  EngineSettings wild;
  wild.block_size = 5000;
  wild.queue_depth = 0;
  wild.threads = 1000;
  EXPECT_EQ(clamped(wild).block_size, 4096u);
  EXPECT_EQ(clamped(wild).queue_depth, 1u);
  EXPECT_EQ(clamped(wild).threads, kThreadsMax);
}

TEST(IoHistogram, PercentilesHaveThreeDigits) {
  Histogram histogram;
  for (uint64_t i = 1; i <= 100'000; ++i) histogram.record(i * 1000);
  EXPECT_EQ(histogram.count(), 100'000u);
  EXPECT_NEAR(static_cast<double>(histogram.percentile(50)), 50'000e3, 50e3);
  EXPECT_NEAR(static_cast<double>(histogram.percentile(99)), 99'000e3, 99e3);
  EXPECT_EQ(histogram.percentile(100), 100'000'000u);
  EXPECT_EQ(histogram.max(), 100'000'000u);
  EXPECT_NEAR(histogram.mean(), 50'000.5e3, 1);
  for (uint64_t value = 1; value < (1ull << 41); value = value * 3 / 2 + 1) {
    Histogram one;
    one.record(value);
    one.record(UINT64_MAX);
    const double found = static_cast<double>(one.percentile(50));
    const double wanted = static_cast<double>(std::min<uint64_t>(value, 1ull << 40));
    EXPECT_NEAR(found, wanted, wanted / 1000);
  }
}

TEST(IoHistogram, EmptyAndMerged) {
  Histogram a, b;
  EXPECT_EQ(a.percentile(99), 0u);
  EXPECT_EQ(a.mean(), 0);
  b.record(5);
  a.merge(b);
  b.merge(Histogram{});
  EXPECT_EQ(a.count(), 1u);
  EXPECT_EQ(a.percentile(50), 5u);
}

TEST(IoEngineConcurrent, CallsOfManyThreadsShareTheRings) {
  File file(kMiB + 99);
  EngineSettings settings = small(16 * kKiB, 4);
  settings.threads = 2;
  Engine engine(settings, settings);
  std::vector<std::thread> callers;
  for (unsigned id = 0; id < 6; ++id) {
    callers.emplace_back([&, id] {
      Memory memory(kMiB + 4096);
      File own(0);
      for (unsigned round = 0; round < 8; ++round) {
        const uint64_t from = (id * 8192 + round * 4096) % (512 * kKiB);
        const size_t length = kMiB + 99 - from;
        ASSERT_TRUE(engine.read(file.get(), from, memory.span(0, length)));
        expect_pattern(memory.span(0, length), from);
        ASSERT_TRUE(engine.write(own.get(), 0, memory.span(0, length)));
        auto failed = engine.read(file.get(), 2 * kMiB, memory.span(0, 64 * kKiB));
        ASSERT_FALSE(failed);
      }
    });
  }
  for (auto& caller : callers) caller.join();
}

TEST(IoEngineConcurrent, MemoryIsRegisteredWhileOthersRead) {
  File file(512 * kKiB);
  Engine engine(small(16 * kKiB), small(16 * kKiB));
  std::vector<std::thread> callers;
  for (unsigned id = 0; id < 4; ++id) {
    callers.emplace_back([&] {
      for (unsigned round = 0; round < 10; ++round) {
        Memory memory(512 * kKiB, true);
        const bool registered = engine.register_memory(memory.span()).has_value();
        ASSERT_TRUE(engine.read(file.get(), 0, memory.span()));
        expect_pattern(memory.span(), 0);
        if (registered) engine.unregister_memory(memory.span().data());
      }
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(engine.report().registered_bytes, 0u);
}

}  // namespace
}  // namespace nexus::io
