// What nexus-tune keeps for a zone, and when a mount may use it.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "backend/io/tuning.h"

namespace nexus::io {
namespace {

namespace fs = std::filesystem;

class Directory {
 public:
  Directory() {
    std::string name = (fs::temp_directory_path() / "nexus-tuning-XXXXXX").string();
    path_ = ::mkdtemp(name.data());
  }
  ~Directory() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories(fs::path(path_ + "/" + name).parent_path());
    std::ofstream(path_ + "/" + name) << text;
  }

 private:
  std::string path_;
};

DeviceIdentity disk() {
  DeviceIdentity device;
  device.name = "nvme0n1";
  device.model = "Fast 900";
  device.serial = "S1";
  device.size_bytes = 1'000'000'000'000;
  device.file_system = "ext4";
  device.kernel = "6.12.1";
  return device;
}

Tuning measured(const DeviceIdentity& device) {
  Tuning tuning;
  tuning.measured_at = "2026-01-31T12:00:00Z";
  tuning.device = device;
  EngineSettings read;
  read.block_size = 512 << 10;
  read.queue_depth = 32;
  read.threads = 2;
  read.single_submit = true;
  EngineSettings write;
  write.direct = false;
  write.overlap = false;
  tuning.read = TunedDirection{read, 6.5, 0.02};
  tuning.write = TunedDirection{write, 3.25, 0.1};
  return tuning;
}

TEST(IoTuning, WhatIsStoredIsUsedOnTheSameDevice) {
  Directory zone;
  ASSERT_TRUE(store_tuning(zone.path(), measured(disk())));
  const LoadedTuning loaded = load_tuning(zone.path(), disk());
  EXPECT_EQ(loaded.state, TuningState::kFresh) << loaded.reason;
  EXPECT_EQ(loaded.reason, "");
  EXPECT_EQ(loaded.read_settings(), measured(disk()).read->settings);
  EXPECT_EQ(loaded.write_settings(), measured(disk()).write->settings);
  EXPECT_EQ(loaded.tuning.measured_at, "2026-01-31T12:00:00Z");
  EXPECT_DOUBLE_EQ(loaded.tuning.read->throughput_gbps, 6.5);
}

TEST(IoTuning, AnotherDeviceFileSystemOrKernelMakesItStaleAndUnused) {
  Directory zone;
  ASSERT_TRUE(store_tuning(zone.path(), measured(disk())));
  DeviceIdentity other = disk();
  other.serial = "S2";
  LoadedTuning loaded = load_tuning(zone.path(), other);
  EXPECT_EQ(loaded.state, TuningState::kStale);
  EXPECT_EQ(loaded.reason, "measured on another device, nvme0n1 Fast 900 (1.0 TB, ext4)");
  EXPECT_EQ(loaded.read_settings(), EngineSettings{});
  other = disk();
  other.file_system = "xfs";
  EXPECT_EQ(load_tuning(zone.path(), other).reason, "measured on ext4, this is xfs");
  other = disk();
  other.kernel = "6.18.0";
  EXPECT_EQ(load_tuning(zone.path(), other).reason, "measured under kernel 6.12.1, this is 6.18.0");
  other = disk();
  other.name = "nvme1n1";  // the same disk in another slot
  EXPECT_EQ(load_tuning(zone.path(), other).state, TuningState::kFresh);
}

TEST(IoTuning, ADeviceWithoutModelAndSerialIsKnownByNameAndSize) {
  DeviceIdentity then = disk();
  then.model = then.serial = "";
  DeviceIdentity now = then;
  EXPECT_EQ(difference(then, now), "");
  now.name = "vdb";
  EXPECT_NE(difference(then, now), "");
  now = then;
  now.size_bytes += 512;
  EXPECT_NE(difference(then, now), "");
}

TEST(IoTuning, NothingMeasuredMeansDefaults) {
  Directory zone;
  const LoadedTuning loaded = load_tuning(zone.path(), disk());
  EXPECT_EQ(loaded.state, TuningState::kAbsent);
  EXPECT_EQ(loaded.read_settings(), EngineSettings{});
  EXPECT_EQ(loaded.write_settings(), EngineSettings{});
}

TEST(IoTuning, ABadFileSaysWhatIsWrongAndIsNotUsed) {
  Directory zone;
  ASSERT_TRUE(store_tuning(zone.path(), measured(disk())));
  std::ifstream in(zone / kTuningFile);
  const nlohmann::json good = nlohmann::json::parse(in);
  const auto state_of = [&](const std::string& text) {
    zone.write(kTuningFile, text);
    return load_tuning(zone.path(), disk());
  };
  const auto with = [&](const char* path, nlohmann::json value) {
    nlohmann::json changed = good;
    changed[nlohmann::json::json_pointer(path)] = std::move(value);
    return changed.dump();
  };
  EXPECT_EQ(state_of(good.dump()).state, TuningState::kFresh);
  const std::pair<std::string, const char*> bad[] = {
      {"", "not a JSON object"},
      {"[]", "not a JSON object"},
      {"{\"version\": 1", "not a JSON object"},
      {with("/version", 2), "version"},
      {with("/device", "vda"), "device"},
      {with("/read", 5), "read: must be an object"},
      {with("/read/block_size", 5000), "block_size: must be a multiple of 4096"},
      {with("/read/block_size", -4096), "block_size"},
      {with("/read/block_size", 1ull << 40), "block_size"},
      {with("/read/queue_depth", 0), "queue_depth: must be 1 to 1024"},
      {with("/read/queue_depth", 1e9), "queue_depth"},
      {with("/write/threads", "many"), "threads"},
      {with("/write/overlap", 1), "overlap: must be true or false"},
  };
  for (const auto& [text, named] : bad) {
    const LoadedTuning loaded = state_of(text);
    EXPECT_EQ(loaded.state, TuningState::kBad) << text;
    EXPECT_NE(loaded.reason.find(named), std::string::npos) << loaded.reason;
    EXPECT_EQ(loaded.read_settings(), EngineSettings{});
  }
  EXPECT_EQ(state_of(std::string(2 << 20, ' ')).state, TuningState::kBad);
  fs::remove(zone / kTuningFile);
  fs::create_directory(zone / kTuningFile);
  EXPECT_EQ(load_tuning(zone.path(), disk()).state, TuningState::kBad);
}

TEST(IoTuning, MeasuringReadsAloneKeepsWhatIsKnownOfWrites) {
  Directory zone;
  ASSERT_TRUE(store_tuning(zone.path(), measured(disk())));
  Tuning reads = measured(disk());
  reads.write.reset();
  reads.read->settings.queue_depth = 7;
  ASSERT_TRUE(store_tuning(zone.path(), reads));
  LoadedTuning loaded = load_tuning(zone.path(), disk());
  EXPECT_EQ(loaded.read_settings().queue_depth, 7u);
  EXPECT_EQ(loaded.write_settings(), measured(disk()).write->settings);
  // But not those of another disk.
  DeviceIdentity other = disk();
  other.serial = "S2";
  reads.device = other;
  ASSERT_TRUE(store_tuning(zone.path(), reads));
  loaded = load_tuning(zone.path(), other);
  EXPECT_EQ(loaded.state, TuningState::kFresh);
  EXPECT_EQ(loaded.write_settings(), EngineSettings{});
}

TEST(IoTuning, ADiskIsIdentifiedBehindItsPartition) {
  Directory sys;
  struct stat st;
  ASSERT_EQ(::stat(sys.path().c_str(), &st), 0);
  const std::string number =
      std::to_string(major(st.st_dev)) + ":" + std::to_string(minor(st.st_dev));
  sys.write("devices/nvme0n1/queue/io_poll", "1\n");
  sys.write("devices/nvme0n1/queue/rotational", "0\n");
  sys.write("devices/nvme0n1/device/model", "Fast 900   \n");
  sys.write("devices/nvme0n1/device/serial", "  S1\n");
  sys.write("devices/nvme0n1/size", "2000000\n");
  sys.write("devices/nvme0n1/nvme0n1p2/size", "1000\n");
  fs::create_directories(sys / "dev/block");
  fs::create_symlink("../../devices/nvme0n1/nvme0n1p2", sys / ("dev/block/" + number));
  sys.write("mountinfo", "1 0 0:1 / /elsewhere rw - tmpfs none rw\n22 1 " + number +
                             " / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n");
  auto found = identify_device(sys.path(), sys.path(), sys / "mountinfo");
  ASSERT_TRUE(found) << found.error().what;
  EXPECT_EQ(found->name, "nvme0n1");
  EXPECT_EQ(found->model, "Fast 900");
  EXPECT_EQ(found->serial, "S1");
  EXPECT_EQ(found->size_bytes, 1'024'000'000u);
  EXPECT_EQ(found->file_system, "ext4");
  EXPECT_TRUE(found->poll_queues);
  EXPECT_FALSE(found->rotational);
  EXPECT_FALSE(found->kernel.empty());
}

TEST(IoTuning, AFileSystemWithoutADeviceIsKnownByItsSource) {
  Directory sys;
  struct stat st;
  ASSERT_EQ(::stat(sys.path().c_str(), &st), 0);
  sys.write("mountinfo", "22 1 " + std::to_string(major(st.st_dev)) + ":" +
                             std::to_string(minor(st.st_dev)) + " / / rw - nfs4 server:/data rw\n");
  auto found = identify_device(sys.path(), sys / "absent", sys / "mountinfo");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->name, "server:/data");
  EXPECT_EQ(found->file_system, "nfs4");
  EXPECT_FALSE(identify_device(sys / "absent"));
}

TEST(IoTuning, TheMachinesFileTakesWhateverWasThere) {
  Directory cache;
  EXPECT_EQ(load_machine(cache.path()), nlohmann::json::object());
  ASSERT_TRUE(store_machine(cache.path(), {{"link", {{"hub", 1}}}}));
  EXPECT_EQ(load_machine(cache.path())["link"]["hub"], 1);
  cache.write(kMachineFile, "[1");
  EXPECT_EQ(load_machine(cache.path()), nlohmann::json::object());
}

}  // namespace
}  // namespace nexus::io
