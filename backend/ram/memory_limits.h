// How much memory this machine and this process's control group have.
#pragma once

#include <cstdint>
#include <string>

namespace nexus {

// The least memory limit on the way from this process's group up to the root, of cgroup v2
// (memory.max, and memory.high, above which processes are held up) or v1 (memory.limit_in_bytes); 0
// where there is none. `proc` and `sys_fs_cgroup` are
// /proc and /sys/fs/cgroup but for tests.
uint64_t cgroup_memory_limit(const std::string& proc = "/proc",
                             const std::string& sys_fs_cgroup = "/sys/fs/cgroup");

struct SystemMemory {
  uint64_t total_bytes = 0, available_bytes = 0;  // MemTotal, MemAvailable; 0 when not known
};
SystemMemory system_memory(const std::string& proc = "/proc");

}  // namespace nexus
