// Which disk and file system a directory lies on: what a measurement is valid for.
#pragma once

#include <cstdint>
#include <string>

#include "backend/base/error.h"

namespace nexus::io {

struct DeviceIdentity {
  std::string name;         // "nvme0n1", or the mount's source where there is no block device
  std::string model;        // "" where the device has none, as virtual disks
  std::string serial;       // the same
  uint64_t size_bytes = 0;  // of the whole disk
  std::string file_system;  // "ext4"
  bool rotational = false;
  bool poll_queues = false;  // IOPOLL has queues to poll
  std::string kernel;        // release

  // "nvme0n1 Samsung SSD 980 (1.0 TB, ext4)"
  std::string describe() const;
};

// Why a measurement on `then` says nothing about `now`; "" when it does. Names come and go
// (/dev/sda today is /dev/sdb tomorrow) and are not compared where model and serial say more.
std::string difference(const DeviceIdentity& then, const DeviceIdentity& now);

// kNotFound, kAccess. `sys` and `mountinfo` stand for the kernel's in tests.
Result<DeviceIdentity> identify_device(const std::string& directory,
                                       const std::string& sys = "/sys",
                                       const std::string& mountinfo = "/proc/self/mountinfo");

}  // namespace nexus::io
