// nexus-tune and the machine: zones that cannot be measured, paths that are off, copies to a GPU
// that a test plays.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tools/nexus-tune/disk_bench.h"
#include "tools/nexus-tune/fast_paths.h"
#include "tools/nexus-tune/gpu_copy.h"
#include "tools/nexus-tune/link.h"
#include "tools/nexus-tune/load.h"
#include "tools/nexus-tune/zone.h"

namespace nexus::tune {
namespace {

namespace fs = std::filesystem;

// A directory on the build's disk: /tmp may be memory.
class Directory {
 public:
  Directory() {
    std::string name = (fs::current_path() / "nexus-tune-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Directory() { fs::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

SystemFacts all_on() {
  SystemFacts facts;
  facts.io_uring = facts.registered = facts.sqpoll = true;
  facts.kernel = "6.12.1-cloud";
  facts.sys_admin = true;
  facts.libfuse = "3.17.2";
  facts.passthrough_built = true;
  facts.nvidia_fs = true;
  return facts;
}

Zone fast_zone() {
  Zone zone;
  zone.path = "/data";
  zone.device.name = "nvme0n1";
  zone.device.poll_queues = true;
  zone.room_bytes = uint64_t{1} << 40;
  return zone;
}

TEST(TuneZone, WhatCannotBeMeasuredIsNamed) {
  Directory directory;
  auto missing = open_zone(directory.path() + "/absent", false);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Code::kNotFound);
  EXPECT_NE(missing.error().what.find("/absent"), std::string::npos);
  std::ofstream(directory.path() + "/file") << "x";
  EXPECT_EQ(open_zone(directory.path() + "/file", false).error().code, Code::kInvalid);
  EXPECT_EQ(look_at_zone(directory.path() + "/absent").error().code, Code::kNotFound);
  if (::access("/dev/shm", W_OK) == 0) {
    auto memory = open_zone("/dev/shm", false);
    ASSERT_FALSE(memory);
    EXPECT_EQ(memory.error().code, Code::kUnsupported);
    EXPECT_NE(memory.error().what.find("tmpfs"), std::string::npos);
  }
}

TEST(TuneZone, TheTestFileNeverFillsTheDisk) {
  Zone zone = fast_zone();
  EXPECT_EQ(*file_bytes(zone, std::nullopt, 512 << 20), 512u << 20);
  EXPECT_EQ(*file_bytes(zone, 2ull << 30, 512 << 20), 2ull << 30);
  zone.room_bytes = 400 << 20;
  EXPECT_EQ(*file_bytes(zone, std::nullopt, 512 << 20), 200u << 20);
  auto refused = file_bytes(zone, 2ull << 30, 512 << 20);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kNoSpace);
  EXPECT_NE(refused.error().what.find("is full"), std::string::npos);
  zone.room_bytes = 1 << 20;
  EXPECT_EQ(file_bytes(zone, std::nullopt, 512 << 20).error().code, Code::kNoSpace);
  zone.writable = false;
  zone.existing_bytes = (100 << 20) + 5;
  EXPECT_EQ(*file_bytes(zone, std::nullopt, 512 << 20), 100u << 20);
}

TEST(TunePaths, EachThatIsOffHasAReasonAndARemedyInOneLine) {
  const Zone zone = fast_zone();
  EXPECT_EQ(fast_paths_text(fast_paths(all_on(), &zone)), "");
  SystemFacts facts;
  facts.io_uring_reason = "io_uring_setup: Operation not permitted";
  facts.registered_reason = "no io_uring";
  facts.sqpoll_reason = "no io_uring";
  facts.kernel = "6.1.0";
  facts.libfuse = "3.14.0";
  facts.cuda_reason = "libcuda.so.1: not\nthere";
  Zone slow = fast_zone();
  slow.direct = false;
  slow.direct_reason = "the file system does not support it";
  slow.device.poll_queues = false;
  const auto paths = fast_paths(facts, &slow);
  const std::string text = fast_paths_text(paths);
  EXPECT_EQ(paths.size(), 7u);
  EXPECT_EQ(static_cast<size_t>(std::count(text.begin(), text.end(), '\n')), paths.size());
  for (const FastPath& one : paths) {
    EXPECT_FALSE(one.on) << one.name;
    EXPECT_FALSE(one.reason.empty() || one.remedy.empty()) << one.name;
  }
  EXPECT_NE(text.find("io_uring_disabled=0"), std::string::npos);
  EXPECT_NE(text.find("libfuse 3.17"), std::string::npos);
  EXPECT_FALSE(fast_paths_json(paths)[0]["on"].get<bool>());
  // An old kernel, no privilege: other reasons.
  facts = all_on();
  facts.kernel = "6.8.0";
  EXPECT_NE(fast_paths_text(fast_paths(facts, nullptr)).find("Linux 6.9"), std::string::npos);
  facts = all_on();
  facts.sys_admin = false;
  EXPECT_NE(fast_paths_text(fast_paths(facts, nullptr)).find("CAP_SYS_ADMIN"), std::string::npos);
  facts = all_on();
  facts.nvidia_fs = false;
  EXPECT_NE(fast_paths_text(fast_paths(facts, nullptr)).find("nvidia_fs"), std::string::npos);
}

TEST(TunePaths, FeaturesFollowTheFacts) {
  Zone zone = fast_zone();
  EXPECT_TRUE(features_of(all_on(), zone).iopoll);
  zone.direct = false;
  const Features features = features_of(all_on(), zone);
  EXPECT_FALSE(features.direct || features.iopoll);
  EXPECT_TRUE(features.registered);
  const Features none = features_of(SystemFacts{}, fast_zone());
  EXPECT_FALSE(none.io_uring || none.registered || none.iopoll || none.sqpoll);
}

TEST(TunePaths, TheSystemAnswersForItself) {
  const SystemFacts facts = system_facts();
  EXPECT_FALSE(facts.kernel.empty());
  EXPECT_EQ(facts.io_uring, facts.io_uring_reason.empty());
  EXPECT_EQ(facts.registered, facts.registered_reason.empty());
}

TEST(TuneBench, ReadsAndWritesTheTestFileThroughTheEngine) {
  Directory directory;
  auto zone = open_zone(directory.path(), false);
  if (!zone) GTEST_SKIP() << zone.error().what;
  const uint64_t bytes = 8 << 20;
  const std::string scratch = directory.path() + "/scratch";
  auto bench = DiskBench::make(*zone, {bytes, scratch});
  ASSERT_TRUE(bench) << bench.error().what;
  EXPECT_EQ(fs::file_size(scratch), bytes);
  io::EngineSettings settings;
  settings.registered = false;
  settings.direct = zone->direct;
  settings.queue_depth = 4;
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    for (int run = 0; run < 3; ++run) {  // the second and third go round the file's end
      auto sample = bench->run(direction, settings, 5 << 20);
      ASSERT_TRUE(sample) << sample.error().what;
      EXPECT_EQ(sample->bytes, 5u << 20);
      EXPECT_GT(sample->seconds, 0);
    }
  }
  EXPECT_EQ(fs::file_size(scratch), bytes);
  // Registered for each call, as a mount's copies are; or the point says why not.
  settings.registered = true;
  for (const Direction direction : {Direction::kRead, Direction::kWrite}) {
    auto sample = bench->run(direction, settings, 5 << 20);
    EXPECT_TRUE(sample || sample.error().code == Code::kUnsupported) << sample.error().what;
  }
  const std::atomic<bool> stop{true};
  EXPECT_EQ(DiskBench::make(*zone, {bytes, "", 0, &stop}).error().code, Code::kCancelled);
  auto loaded = load_file({scratch, "", false});
  ASSERT_TRUE(loaded) << loaded.error().what;
  EXPECT_EQ((*loaded)["bytes"], bytes);
  EXPECT_EQ((*loaded)["settings_from"], "defaults");
  EXPECT_FALSE(load_file({directory.path() + "/absent", "", false}));
  EXPECT_FALSE(load_file({directory.path(), "", false}));
}

TEST(TuneLink, TheCheapestOfTheFastConnectionsWins) {
  std::vector<LinkPoint> points(4);
  points[0] = {1, 1 << 20, 0.5, 1, ""};
  points[1] = {8, 4 << 20, 1.00, 1, ""};
  points[2] = {4, 16 << 20, 0.98, 1, ""};
  points[3] = {2, 4 << 20, 5.0, 1, "refused"};
  EXPECT_EQ(pick_link(points), 2);
  EXPECT_EQ(pick_link({}), -1);
}

// ---- a CUDA driver that keeps count ----

const std::atomic<bool> never{false};

struct FakeGpu {
  int devices = 1;
  int init_result = 0;
  size_t memory = SIZE_MAX;  // of the device
  size_t used = 0;
  uint64_t copied = 0;
  int in_flight = 0, most_in_flight = 0;
  std::set<void*> hosts, streams, events;
  std::map<void*, int> pending;  // by event
  int fail_copy_at = -1, copies = 0;
  bool context_held = false;
} gpu;

CudaDriver fake_driver() {
  gpu = FakeGpu{};
  CudaDriver driver;
  driver.init = [](unsigned) { return gpu.init_result; };
  driver.device_count = [](int* count) {
    *count = gpu.devices;
    return 0;
  };
  driver.device_get = [](int* device, int) {
    *device = 0;
    return 0;
  };
  driver.device_name = [](char* name, int length, int) {
    std::snprintf(name, static_cast<size_t>(length), "Fake 9000");
    return 0;
  };
  driver.context_retain = [](void** context, int) {
    *context = &gpu;
    gpu.context_held = true;
    return 0;
  };
  driver.context_release = [](int) {
    gpu.context_held = false;
    return 0;
  };
  driver.context_set = [](void*) { return 0; };
  driver.alloc = [](unsigned long long* pointer, size_t bytes) {
    if (gpu.used + bytes > gpu.memory) return 2;  // CUDA_ERROR_OUT_OF_MEMORY
    gpu.used += bytes;
    *pointer = bytes;
    return 0;
  };
  driver.free = [](unsigned long long bytes) {
    gpu.used -= bytes;
    return 0;
  };
  driver.host_alloc = [](void** pointer, size_t, unsigned) {
    *pointer = std::malloc(16);
    gpu.hosts.insert(*pointer);
    return 0;
  };
  driver.host_free = [](void* pointer) {
    gpu.hosts.erase(pointer);
    std::free(pointer);
    return 0;
  };
  driver.stream_create = [](void** stream, unsigned) {
    *stream = std::malloc(1);
    gpu.streams.insert(*stream);
    return 0;
  };
  driver.stream_destroy = [](void* stream) {
    gpu.streams.erase(stream);
    std::free(stream);
    return 0;
  };
  driver.copy_async = [](unsigned long long, const void*, size_t bytes, void*) {
    if (gpu.copies++ == gpu.fail_copy_at) return 700;
    gpu.copied += bytes;
    gpu.most_in_flight = std::max(gpu.most_in_flight, ++gpu.in_flight);
    return 0;
  };
  driver.event_create = [](void** event, unsigned) {
    *event = std::malloc(1);
    gpu.events.insert(*event);
    return 0;
  };
  driver.event_destroy = [](void* event) {
    gpu.events.erase(event);
    std::free(event);
    return 0;
  };
  driver.event_record = [](void* event, void*) {
    gpu.pending[event] = 1;
    return 0;
  };
  driver.event_wait = [](void* event) {
    gpu.in_flight -= gpu.pending[event];
    gpu.pending[event] = 0;
    return 0;
  };
  driver.error_string = [](int, const char** text) {
    *text = "made up";
    return 0;
  };
  return driver;
}

TEST(TuneGpu, EveryRingIsMeasuredAndGivenBack) {
  const CudaDriver driver = fake_driver();
  auto result = measure_copies(driver, 64 << 20, never);
  ASSERT_TRUE(result) << result.error().what;
  EXPECT_EQ(result->device, "Fake 9000");
  EXPECT_EQ(result->points.size(), 25u);
  ASSERT_GE(result->best, 0);
  EXPECT_EQ(gpu.most_in_flight, 8);  // as deep as the deepest ring
  EXPECT_EQ(gpu.in_flight, 0);
  EXPECT_GE(gpu.copied, 25ull * (64 << 20));
  EXPECT_EQ(gpu.used, 0u);
  EXPECT_TRUE(gpu.hosts.empty() && gpu.streams.empty() && gpu.events.empty());
  EXPECT_FALSE(gpu.context_held);
  const auto json = copy_json(*result);
  EXPECT_EQ(json["points"].size(), 25u);
  EXPECT_TRUE(json["best"]["ring_depth"].is_number());
}

TEST(TuneGpu, WithoutADeviceItSaysSo) {
  const CudaDriver driver = fake_driver();
  gpu.devices = 0;
  auto none = measure_copies(driver, 1 << 20, never);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().what, "the CUDA driver sees no device");
  gpu.devices = 1;
  gpu.init_result = 100;
  EXPECT_EQ(measure_copies(driver, 1 << 20, {}).error().what, "cuInit: made up (100)");
}

TEST(TuneGpu, WhatItHasNoMemoryForIsLeftOut) {
  const CudaDriver driver = fake_driver();
  gpu.memory = 20 << 20;
  auto result = measure_copies(driver, 1 << 20, never);
  ASSERT_TRUE(result);
  EXPECT_GE(result->points.size(), 5u);
  EXPECT_LT(result->points.size(), 25u);
  EXPECT_EQ(gpu.used, 0u);
  gpu.memory = 0;
  auto nothing = measure_copies(driver, 1 << 20, never);
  ASSERT_FALSE(nothing);
  EXPECT_EQ(nothing.error().what, "cuMemAlloc: made up (2)");
  EXPECT_FALSE(gpu.context_held);
}

TEST(TuneGpu, ACopyThatFailsEndsTheMeasurementWithWhatThereIs) {
  const CudaDriver driver = fake_driver();
  gpu.fail_copy_at = 50;
  auto result = measure_copies(driver, 8 << 20, never);
  ASSERT_TRUE(result);
  EXPECT_GE(result->points.size(), 1u);
  EXPECT_EQ(gpu.used, 0u);
  EXPECT_TRUE(gpu.hosts.empty() && gpu.events.empty());
}

TEST(TuneGpu, TheRealDriverIsThereOrItsAbsenceHasAReason) {
  auto driver = load_cuda_driver();
  if (!driver) {
    EXPECT_EQ(why_no_gpu(), driver.error().what);
    EXPECT_FALSE(driver.error().what.empty());
  }
}

TEST(TuneGpu, NeedsAGpuCopiesToARealDevice) {
  if (const std::string why = why_no_gpu(); !why.empty()) GTEST_SKIP() << "needs a GPU: " << why;
  auto driver = load_cuda_driver();
  ASSERT_TRUE(driver) << driver.error().what;
  auto result = measure_copies(*driver, 256 << 20, never);
  ASSERT_TRUE(result) << result.error().what;
  EXPECT_FALSE(result->device.empty());
  ASSERT_GE(result->best, 0);
  EXPECT_GT(result->points[static_cast<size_t>(result->best)].gbps, 0);
}

}  // namespace
}  // namespace nexus::tune
