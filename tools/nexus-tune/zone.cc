#include "tools/nexus-tune/zone.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <system_error>

#include "backend/store/disk_io.h"
#include "backend/store/zones.h"
#include "tools/common/size.h"

namespace nexus::tune {

namespace {

constexpr long kTmpfsMagic = 0x01021994, kRamfsMagic = 0x858458f6, kFuseMagic = 0x65735546;
constexpr long kHugetlbfsMagic = 0x958458f6;

std::string text_of(int error) {
  return std::generic_category().message(error);
}

// An unlinked file in the directory, or the reason why there can be none.
UniqueFd open_scratch(const std::string& path, int* error) {
  UniqueFd file(::open(path.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
    std::string name = path + "/nexus-tune.XXXXXX";
    file.reset(::mkostemp(name.data(), O_CLOEXEC));
    if (file) ::unlink(name.c_str());
  }
  *error = file ? 0 : errno;
  return file;
}

std::string why_not_direct(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const UniqueFd direct(::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
  if (direct) return "";
  return errno == EINVAL ? "the file system does not support it" : text_of(errno);
}

// The largest file below `path`: an object of the cache.
void find_existing(Zone& zone) {
  std::error_code error;
  std::filesystem::recursive_directory_iterator it(
      zone.path, std::filesystem::directory_options::skip_permission_denied, error);
  for (; !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    struct stat st;
    if (::lstat(it->path().c_str(), &st) != 0 || !S_ISREG(st.st_mode)) continue;
    // Holes are not read from the disk.
    const auto size = static_cast<uint64_t>(st.st_size);
    if (size <= zone.existing_bytes || static_cast<uint64_t>(st.st_blocks) * 512 < size) continue;
    zone.existing_file = it->path().string();
    zone.existing_bytes = size;
  }
}

void try_direct(Zone& zone, int fd) {
  zone.direct_reason = why_not_direct(fd);
  zone.direct = zone.direct_reason.empty();
}

// Without touching anything there.
Result<Zone> identify_zone(const std::string& path) {
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) {
    return fail(errno == EACCES ? Code::kAccess : Code::kNotFound,
                "zone " + path + ": " + text_of(errno));
  }
  if (!S_ISDIR(st.st_mode)) return fail(Code::kInvalid, "zone " + path + " is not a directory");
  struct statfs system;
  if (::statfs(path.c_str(), &system) != 0) {
    return fail(Code::kDisk, "zone " + path + ": " + text_of(errno));
  }
  const long magic = static_cast<long>(system.f_type) & 0xffffffff;
  if (magic == kTmpfsMagic || magic == kRamfsMagic || magic == kHugetlbfsMagic) {
    return fail(Code::kUnsupported,
                "zone " + path + " is in memory (" + (magic == kTmpfsMagic ? "tmpfs" : "ramfs") +
                    "): there is no disk to measure; choose a directory on a disk");
  }
  if (magic == kFuseMagic) {
    return fail(Code::kUnsupported,
                "zone " + path + " is a FUSE mount; choose a directory on the disk itself");
  }
  auto device = io::identify_device(path);
  if (!device) return fail(device.error(), "zone");
  Zone zone;
  zone.path = path;
  zone.device = std::move(*device);
  zone.room_bytes = free_above_reserve(path);
  return zone;
}

}  // namespace

Result<Zone> open_zone(const std::string& path, bool read_only) {
  auto identified = identify_zone(path);
  if (!identified) return identified;
  Zone zone = std::move(*identified);
  int error = 0;
  UniqueFd file = open_scratch(path, &error);
  if (!file && error == ENOSPC) {
    return fail(Code::kNoSpace, "zone " + path + " is full: not even an empty file fits");
  }
  if (!file) {
    zone.writable = false;
    zone.read_only_reason = text_of(error);
    if (!read_only) {
      return fail(Code::kAccess, "zone " + path + " cannot be written (" + text_of(error) +
                                     "); --read-only measures reads of a file that is there");
    }
    find_existing(zone);
    if (zone.existing_bytes < kFileBytesMin) {
      return fail(Code::kAccess, "zone " + path + " cannot be written (" + text_of(error) +
                                     ") and holds no file of 64 MiB or more to read");
    }
    file.reset(::open(zone.existing_file.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) {
      return fail(Code::kAccess, zone.existing_file + ": " + text_of(errno));
    }
  }
  try_direct(zone, file.get());
  return zone;
}

Result<Zone> look_at_zone(const std::string& path) {
  auto zone = identify_zone(path);
  if (!zone) return zone;
  int error = 0;
  UniqueFd file = open_scratch(path, &error);
  if (!file) {
    zone->writable = false;
    zone->read_only_reason = text_of(error);
    find_existing(*zone);
    file.reset(::open(zone->existing_file.c_str(), O_RDONLY | O_CLOEXEC));
  }
  if (file) try_direct(*zone, file.get());
  return zone;
}

Result<uint64_t> file_bytes(const Zone& zone, std::optional<uint64_t> wanted, uint64_t usual) {
  constexpr uint64_t kStep = 1 << 20;
  if (!zone.writable) {
    const uint64_t there = zone.existing_bytes - zone.existing_bytes % kStep;
    return std::min(there, wanted.value_or(usual));
  }
  const uint64_t needed = wanted.value_or(kFileBytesMin);
  if (needed > zone.room_bytes) {
    return fail(Code::kNoSpace, "zone " + zone.path + " is full: a test file of " +
                                    tools::format_size(needed) + " does not fit, " +
                                    tools::format_size(zone.room_bytes) +
                                    " are free above the disk's 5 % reserve");
  }
  if (wanted) return *wanted;
  const uint64_t most = zone.room_bytes / 2;  // others use this disk too
  const uint64_t bytes = std::clamp(std::min(usual, most), kFileBytesMin, usual);
  return bytes - bytes % kStep;
}

std::vector<std::string> zone_paths(const tools::Config& config) {
  std::vector<std::string> paths;
  for (const ZoneOptions& zone : config.zones) paths.push_back(zone.path);
  if (!paths.empty()) return paths;
  for (int i = 0; i < config.num_zones; ++i) {
    paths.push_back(config.cache_dir + "/zone_" + std::to_string(i));
  }
  return paths;
}

Result<std::vector<ZoneGroup>> configured_zones(const tools::Config& config) {
  std::error_code error;
  const auto parent = std::filesystem::path(config.cache_dir).parent_path();
  if (!parent.empty()) std::filesystem::create_directories(parent, error);
  if (error) return fail(Code::kInvalid, "cache_dir " + config.cache_dir + ": " + error.message());
  if (auto made = make_private_dir(config.cache_dir); !made) return tl::unexpected(made.error());
  std::vector<ZoneGroup> groups;
  std::map<dev_t, size_t> by_device;
  for (const std::string& path : zone_paths(config)) {
    if (auto made = make_private_dir(path); !made) return tl::unexpected(made.error());
    struct stat st;
    if (::stat(path.c_str(), &st) != 0) return fail(Code::kDisk, path + ": " + text_of(errno));
    const auto [found, fresh] = by_device.emplace(st.st_dev, groups.size());
    if (fresh) groups.push_back({path, {}});
    groups[found->second].zones.push_back(path);
  }
  return groups;
}

}  // namespace nexus::tune
