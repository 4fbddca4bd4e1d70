// What the kernel has mounted where, read from /proc/self/mountinfo: unlike stat() it never waits
// for a file system that hangs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"

namespace nexus::tools {

struct MountEntry {
  std::string device;  // "0:58", major and minor
  std::string mountpoint;
  std::string type;    // "fuse.nexusfs"
  std::string source;  // "nexusfs"
  bool is_nexus() const { return type == "fuse.nexusfs" || source == "nexusfs"; }
};

// In mount order: of several on one path the last is on top. Broken lines are left out.
std::vector<MountEntry> parse_mountinfo(std::string_view text);
std::vector<MountEntry> mount_table();
// The topmost mount on exactly this path.
std::optional<MountEntry> find_mount(const std::string& mountpoint);

// The absolute path by which the kernel would list a mount on `path`: its directory resolved, its
// last component resolved only when that is a symbolic link. Does not look inside a mount on it.
Result<std::string> canonical_mountpoint(const std::string& path);

}  // namespace nexus::tools
