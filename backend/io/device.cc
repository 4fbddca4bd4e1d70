#include "backend/io/device.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>

namespace nexus::io {

namespace {

namespace fs = std::filesystem;

// The first line of a sysfs file without blanks around it; "" when there is none.
std::string line_of(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  const size_t first = line.find_first_not_of(" \t");
  if (first == std::string::npos) return "";
  return line.substr(first, line.find_last_not_of(" \t\r") - first + 1);
}

struct Mounted {
  std::string type, source;
};

// The entry of the file system with this device number: the kernel's "major:minor" of a btrfs or
// overlay is no block device's, but its source may be.
Mounted find_mounted(dev_t device, const std::string& mountinfo) {
  const std::string number = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::ifstream in(mountinfo);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string id, parent, found, word;
    words >> id >> parent >> found;
    if (found != number) continue;
    while (words >> word && word != "-") {
    }
    Mounted mounted;
    words >> mounted.type >> mounted.source;
    return mounted;
  }
  return {};
}

std::string decimal_size(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes >= 1'000'000'000'000 ? "%.1f TB" : "%.0f GB",
                static_cast<double>(bytes) / (bytes >= 1'000'000'000'000 ? 1e12 : 1e9));
  return text;
}

}  // namespace

std::string DeviceIdentity::describe() const {
  std::string text = name;
  if (!model.empty()) text += " " + model;
  text += " (";
  if (size_bytes > 0) text += decimal_size(size_bytes) + ", ";
  return text + file_system + ")";
}

std::string difference(const DeviceIdentity& then, const DeviceIdentity& now) {
  const bool named_only = then.model.empty() && then.serial.empty();
  if (then.model != now.model || then.serial != now.serial || then.size_bytes != now.size_bytes ||
      (named_only && then.name != now.name)) {
    return "measured on another device, " + then.describe();
  }
  if (then.file_system != now.file_system) {
    return "measured on " + then.file_system + ", this is " + now.file_system;
  }
  if (then.kernel != now.kernel) {
    return "measured under kernel " + then.kernel + ", this is " + now.kernel;
  }
  return "";
}

Result<DeviceIdentity> identify_device(const std::string& directory, const std::string& sys,
                                       const std::string& mountinfo) {
  struct stat st;
  if (::stat(directory.c_str(), &st) != 0) {
    return fail(errno == EACCES ? Code::kAccess : Code::kNotFound,
                directory + ": " + std::generic_category().message(errno));
  }
  DeviceIdentity identity;
  utsname system{};
  if (::uname(&system) == 0) identity.kernel = system.release;
  const Mounted mounted = find_mounted(st.st_dev, mountinfo);
  identity.file_system = mounted.type.empty() ? "unknown" : mounted.type;
  dev_t device = st.st_dev;
  struct stat source;
  if (major(device) == 0 && mounted.source.starts_with("/") &&
      ::stat(mounted.source.c_str(), &source) == 0 && S_ISBLK(source.st_mode)) {
    device = source.st_rdev;
  }
  const std::string number = std::to_string(major(device)) + ":" + std::to_string(minor(device));
  std::error_code none;
  fs::path dir = fs::canonical(fs::path(sys) / "dev/block" / number, none);
  if (none) {
    identity.name = mounted.source.empty() ? number : mounted.source;
    return identity;
  }
  if (!fs::exists(dir / "queue", none)) dir = dir.parent_path();  // a partition's disk
  identity.name = dir.filename().string();
  identity.model = line_of(dir / "device/model");
  identity.serial = line_of(dir / "device/serial");
  if (identity.serial.empty()) identity.serial = line_of(dir / "serial");  // virtio
  if (identity.serial.empty()) identity.serial = line_of(dir / "wwid");
  if (identity.serial.empty()) identity.serial = line_of(dir / "dm/uuid");
  uint64_t sectors = 0;
  std::istringstream(line_of(dir / "size")) >> sectors;
  identity.size_bytes = sectors * 512;
  identity.rotational = line_of(dir / "queue/rotational") == "1";
  identity.poll_queues = line_of(dir / "queue/io_poll") == "1";
  return identity;
}

}  // namespace nexus::io
