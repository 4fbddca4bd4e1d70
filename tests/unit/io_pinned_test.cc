// Reads and writes whose memory is registered for the call alone: it happens where the settings say
// so, what is refused goes without, and nothing of it outlasts the call.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/io/engine.h"
#include "backend/store/disk_io.h"
#include "tests/unit/fake_origin.h"

namespace nexus {
namespace {

using test::kMiB;

std::byte pattern(uint64_t at) {
  return static_cast<std::byte>((at * 2654435761u) >> 13);
}

// Memory as the RAM tier's: a memfd, mapped.
class Shared {
 public:
  explicit Shared(size_t size) : fd_(::memfd_create("pinned-test", MFD_CLOEXEC)), size_(size) {
    if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) std::abort();
    void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0);
    if (at == MAP_FAILED) std::abort();
    data_ = static_cast<std::byte*>(at);
  }
  ~Shared() { ::munmap(data_, size_); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  std::span<std::byte> bytes() const { return {data_, size_}; }
  bool holds(uint64_t offset, size_t length) const {
    for (size_t i = 0; i < length; ++i) {
      if (data_[i] != pattern(offset + i)) return false;
    }
    return true;
  }

 private:
  UniqueFd fd_;
  size_t size_;
  std::byte* data_ = nullptr;
};

// An unnamed file of `size` pattern bytes.
UniqueFd pattern_file(size_t size) {
  std::string path = (std::filesystem::temp_directory_path() / "nexus-pinned-XXXXXX").string();
  UniqueFd file(::mkstemp(path.data()));
  ::unlink(path.c_str());
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = pattern(i);
  if (::pwrite(file.get(), bytes.data(), size, 0) != static_cast<ssize_t>(size)) std::abort();
  return file;
}

io::EngineSettings settings(bool registered, unsigned threads = 1) {
  io::EngineSettings made;
  made.block_size = 512 << 10;
  made.queue_depth = 4;
  made.threads = threads;
  made.registered = registered;
  return made;
}

// Whether this machine lets memory be registered at all; else why not.
std::string refusal(const io::Engine& engine) {
  const io::EngineReport report = engine.report();
  return report.io_uring ? report.registered_reason : report.reason;
}

TEST(IoPinned, TheMemoryIsRegisteredForTheCallAlone) {
  const size_t size = 8 * kMiB + 123;
  const UniqueFd file = pattern_file(size);
  for (const unsigned threads : {1u, 3u}) {
    io::Engine engine(settings(true, threads), settings(true, threads));
    const Shared memory(9 * kMiB);
    ASSERT_TRUE(engine.read_pinned(file.get(), 0, memory.bytes().first(size)));
    EXPECT_TRUE(memory.holds(0, size));
    if (const std::string why = refusal(engine); !why.empty()) GTEST_SKIP() << why;
    EXPECT_EQ(engine.report().pinned_calls, 1u);
    EXPECT_GE(engine.report().fixed_requests, 16u);
    EXPECT_EQ(engine.report().registered_bytes, 0u);
    // The same memory for another read, as of another object: by plain requests now.
    const uint64_t fixed = engine.report().fixed_requests;
    ASSERT_TRUE(engine.read(file.get(), 4096, memory.bytes().first(4 * kMiB)));
    EXPECT_TRUE(memory.holds(4096, 4 * kMiB));
    EXPECT_EQ(engine.report().fixed_requests, fixed);
    const UniqueFd copy = pattern_file(0);
    ASSERT_TRUE(engine.write_pinned(copy.get(), 0, memory.bytes().first(4 * kMiB)));
    EXPECT_GT(engine.report().fixed_requests, fixed);
    const Shared again(4 * kMiB);
    ASSERT_TRUE(engine.read_pinned(copy.get(), 0, again.bytes()));
    EXPECT_TRUE(again.holds(4096, 4 * kMiB));
  }
}

TEST(IoPinned, NotWhereTheSettingsSayPlainNorForAFewBytes) {
  const UniqueFd file = pattern_file(4 * kMiB);
  const Shared memory(4 * kMiB);
  io::Engine plain(settings(false), settings(false));
  ASSERT_TRUE(plain.read_pinned(file.get(), 0, memory.bytes()));
  EXPECT_TRUE(memory.holds(0, 4 * kMiB));
  io::Engine engine(settings(true), settings(true));
  ASSERT_TRUE(engine.read_pinned(file.get(), 4096, memory.bytes().first(io::kPinBytesMin - 4096)));
  EXPECT_TRUE(memory.holds(4096, io::kPinBytesMin - 4096));
  for (const io::Engine* one : {&plain, &engine}) {
    EXPECT_EQ(one->report().pinned_calls, 0u);
    EXPECT_EQ(one->report().fixed_requests, 0u);
    EXPECT_EQ(one->report().registered_reason, "");
  }
}

TEST(IoPinned, WhatTheKernelRefusesGoesPlainAndIsNotAskedForAgain) {
  io::Engine engine(settings(true), settings(true));
  if (!engine.report().io_uring) GTEST_SKIP() << engine.report().reason;
  const Shared memory(4 * kMiB);
  for (size_t i = 0; i < memory.bytes().size(); ++i) memory.bytes()[i] = pattern(i);
  // Registered memory has to be writable, which a write does not need.
  ASSERT_EQ(::mprotect(memory.bytes().data(), memory.bytes().size(), PROT_READ), 0);
  const UniqueFd file = pattern_file(0);
  ASSERT_TRUE(engine.write_pinned(file.get(), 0, memory.bytes()));
  EXPECT_NE(engine.report().registered_reason, "");
  const Shared other(4 * kMiB);
  ASSERT_TRUE(engine.read_pinned(file.get(), 0, other.bytes()));
  EXPECT_TRUE(other.holds(0, 4 * kMiB));
  EXPECT_EQ(engine.report().pinned_calls, 0u);
  EXPECT_EQ(engine.report().fixed_requests, 0u);
}

TEST(IoPinned, AnErrorEndsTheRegistrationToo) {
  const UniqueFd file = pattern_file(3 * kMiB);
  io::Engine engine(settings(true), settings(true));
  const Shared memory(4 * kMiB);
  EXPECT_FALSE(engine.read_pinned(file.get(), 0, memory.bytes()));  // the file ends before
  const uint64_t fixed = engine.report().fixed_requests;
  ASSERT_TRUE(engine.read(file.get(), 0, memory.bytes().first(3 * kMiB)));
  EXPECT_TRUE(memory.holds(0, 3 * kMiB));
  EXPECT_EQ(engine.report().fixed_requests, fixed);
}

// Mappings come and go at the same addresses: none may be taken for one that was there before.
TEST(IoPinnedConcurrent, MemoryThatComesAndGoesIsNeverMistaken) {
  const size_t size = 3 * kMiB;
  const UniqueFd file = pattern_file(2 * size);
  for (const unsigned threads : {1u, 2u}) {
    io::Engine engine(settings(true, threads), settings(true, threads));
    std::vector<std::thread> callers;
    for (unsigned id = 0; id < 4; ++id) {
      callers.emplace_back([&, id] {
        for (uint64_t round = 0; round < 12; ++round) {
          const Shared memory(size);
          const uint64_t offset = (id + round) % 16 * 4096;
          const bool pinned = (id + round) % 3 != 0;
          auto read = pinned ? engine.read_pinned(file.get(), offset, memory.bytes())
                             : engine.read(file.get(), offset, memory.bytes());
          ASSERT_TRUE(read) << read.error().what;
          ASSERT_TRUE(memory.holds(offset, size));
        }
      });
    }
    for (auto& caller : callers) caller.join();
  }
}

// ---- copies in the RAM tier ----

CacheOptions with_engine(const std::shared_ptr<io::Engine>& engine) {
  CacheOptions options;
  std::string reason;
  options.ram = RamTier::open({64 * kMiB}, &reason);
  EXPECT_TRUE(options.ram) << reason;
  options.bulk_read = [engine](const ObjectFile& file, uint64_t offset,
                               std::span<std::byte> into) -> Result<void> {
    auto descriptor = file.descriptor();
    if (!descriptor) return tl::unexpected<Error>(descriptor.error());
    return engine->read_pinned((*descriptor)->get(), offset, into);
  };
  return options;
}

std::string content(const ObjectFile& file) {
  std::string bytes(file.size(), '\0');
  EXPECT_TRUE(file.read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  return bytes;
}

TEST(CachePinned, ACopyInMemoryIsReadByRegisteredBuffers) {
  const auto engine = std::make_shared<io::Engine>(settings(true), settings(true));
  const std::string truth = test::random_bytes(20 * kMiB + 5, 7);
  test::CacheUnderTest bed(with_engine(engine));
  bed.origin().put("f", truth);
  EXPECT_EQ(bed.read_all(bed.blob("f")), truth);
  bed.restart();
  const auto file = bed.prepare(bed.blob("f"));
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ((*file)->zone(), -1);
  EXPECT_EQ(content(**file), truth);
  if (const std::string why = refusal(*engine); !why.empty()) GTEST_SKIP() << why;
  EXPECT_GE(engine->report().pinned_calls, 2u);  // steps of 8 MiB
  EXPECT_GT(engine->report().fixed_requests, 0u);
}

// The read that hangs has its memory to itself: when the disk answers it still registers, reads
// into and unregisters a mapping that is there.
TEST(CachePinnedConcurrent, ACopyWhoseDiskHangsKeepsItsMemoryUntilItAnswers) {
  struct Gate {
    std::atomic<bool> shut{false};
    std::atomic<int> waiting{0}, reads{0};  // reads: that have ended
  };
  const auto gate = std::make_shared<Gate>();
  const auto engine = std::make_shared<io::Engine>(settings(true), settings(true));
  const std::string truth = test::random_bytes(9 * kMiB, 8);
  CacheOptions options = with_engine(engine);
  options.bulk_read = [gate, by = options.bulk_read](const ObjectFile& file, uint64_t offset,
                                                     std::span<std::byte> into) {
    auto read = by(file, offset, into);
    ++gate->reads;
    return read;
  };
  test::CacheUnderTest bed(options, "", {{"one", 0, "ssd", 0}, {"two", 0, "ssd", 0}},
                           [gate](int zone) {
                             if (zone != 0) return;
                             ++gate->waiting;
                             while (gate->shut) {
                               std::this_thread::sleep_for(std::chrono::milliseconds(1));
                             }
                             --gate->waiting;
                           });
  bed.origin().put("f", truth);
  const auto object = bed.blob("f");
  EXPECT_EQ(bed.read_all(object), truth);
  ASSERT_EQ(object->info().zone, 0);
  gate->shut = true;
  bed->promote(object);
  // Given up: the object comes from elsewhere, and what there is of the copy is not used.
  EXPECT_TRUE(bed.until([&] { return gate->waiting > 0; }));
  EXPECT_TRUE(bed.until([&] { return object->file() == nullptr || object->file()->hung(); }));
  EXPECT_EQ(bed.read_all(object), truth);
  EXPECT_EQ(gate->reads, 0);
  gate->shut = false;
  EXPECT_TRUE(bed.until([&] { return gate->reads > 0; }));
  EXPECT_EQ(bed.read_all(object), truth);
}

}  // namespace
}  // namespace nexus
