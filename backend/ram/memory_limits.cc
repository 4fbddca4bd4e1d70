#include "backend/ram/memory_limits.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>

namespace nexus {

namespace {

// A limit at or above this is cgroup v1's way to say that there is none.
constexpr uint64_t kNoLimit = uint64_t{1} << 62;

// 0: the file is not there, or holds no number ("max").
uint64_t read_number(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string text;
  uint64_t value = 0;
  if (!(file >> text)) return 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? value : 0;
}

// Inside a container the group's path is seen from outside, while the file system shows the inside:
// what is not there is skipped, and its root is always looked at.
uint64_t least_limit(const std::filesystem::path& root, std::string group,
                     std::initializer_list<const char*> files) {
  uint64_t least = 0;
  while (true) {
    for (const char* file : files) {
      const uint64_t limit = read_number(std::filesystem::path(root.string() + group) / file);
      if (limit > 0 && limit < kNoLimit) least = least == 0 ? limit : std::min(least, limit);
    }
    if (group.empty()) return least;
    group.resize(group.find_last_of('/') == std::string::npos ? 0 : group.find_last_of('/'));
  }
}

}  // namespace

uint64_t cgroup_memory_limit(const std::string& proc, const std::string& sys_fs_cgroup) {
  std::ifstream groups(proc + "/self/cgroup");
  uint64_t least = 0;
  // Lines "id:controllers:path"; v2 has no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    uint64_t limit = 0;
    if (controllers == ",,") {
      limit = least_limit(sys_fs_cgroup, path, {"memory.max", "memory.high"});
    } else if (controllers.find(",memory,") != std::string::npos) {
      limit = least_limit(sys_fs_cgroup + "/memory", path, {"memory.limit_in_bytes"});
    }
    if (limit > 0) least = least == 0 ? limit : std::min(least, limit);
  }
  return least;
}

SystemMemory system_memory(const std::string& proc) {
  SystemMemory memory;
  std::ifstream file(proc + "/meminfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    uint64_t kib = 0;
    if (!(words >> name >> kib)) continue;
    if (name == "MemTotal:") memory.total_bytes = kib * 1024;
    if (name == "MemAvailable:") memory.available_bytes = kib * 1024;
  }
  return memory;
}

}  // namespace nexus
