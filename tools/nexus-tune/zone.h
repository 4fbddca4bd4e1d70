// The directory that is measured, looked at before anything is written there.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/io/device.h"
#include "tools/common/config.h"

namespace nexus::tune {

struct Zone {
  std::string path;
  io::DeviceIdentity device;
  bool writable = true;
  std::string read_only_reason;  // when it is not
  bool direct = true;
  std::string direct_reason;    // why there is no O_DIRECT
  uint64_t room_bytes = 0;      // free above the reserve that the cache leaves
  std::string existing_file{};  // on a zone that cannot be written: a file there to read
  uint64_t existing_bytes = 0;
};

// The smallest test file that says anything.
inline constexpr uint64_t kFileBytesMin = 64 << 20;

// Errors name the zone and the remedy: kNotFound (missing), kInvalid (no directory), kUnsupported
// (in memory: tmpfs, ramfs; or a FUSE mount), kAccess (cannot be written, and `read_only` was not
// asked for or nothing is there to read).
Result<Zone> open_zone(const std::string& path, bool read_only);
// The same for asking what it can do alone: it may be full, or read-only and empty.
Result<Zone> look_at_zone(const std::string& path);

// How large the test file may be: `wanted` when it was asked for and fits, else (kNoSpace) an
// error; when nothing was asked for, the most of `usual` that fits.
Result<uint64_t> file_bytes(const Zone& zone, std::optional<uint64_t> wanted, uint64_t usual);

// The directories of the configured cache, which need not be there.
std::vector<std::string> zone_paths(const tools::Config& config);
// Those directories, made as the mount would where they are missing; one for each device that they
// lie on, with those that share it.
struct ZoneGroup {
  std::string measured;
  std::vector<std::string> zones;
};
Result<std::vector<ZoneGroup>> configured_zones(const tools::Config& config);

}  // namespace nexus::tune
