#include "tools/nexus-tune/fast_paths.h"

#include <dlfcn.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "backend/io/engine.h"
#include "backend/io/memory.h"
#include "fs/fuse_api.h"
#include "tools/common/size.h"
#include "tools/nexus-tune/gpu_copy.h"

namespace nexus::tune {

namespace {

constexpr size_t kProbeBytes = 16 << 20;  // more than the usual RLIMIT_MEMLOCK of 8 MiB

bool has_sys_admin() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  return (data[0].effective & (1u << CAP_SYS_ADMIN)) != 0;
}

bool kernel_at_least(const std::string& release, int major_wanted, int minor_wanted) {
  int major_found = 0, minor_found = 0;
  if (std::sscanf(release.c_str(), "%d.%d", &major_found, &minor_found) != 2) return false;
  return std::pair(major_found, minor_found) >= std::pair(major_wanted, minor_wanted);
}

FastPath path(std::string name, bool on, std::string reason, std::string remedy) {
  if (on) return {std::move(name), true, "", ""};
  return {std::move(name), false, std::move(reason), std::move(remedy)};
}

FastPath passthrough_path(const SystemFacts& facts) {
  if (!facts.passthrough_built) {
    return path("passthrough", false, "built with libfuse " + facts.libfuse,
                "build with libfuse 3.17 or newer (packaging/build does)");
  }
  if (!kernel_at_least(facts.kernel, 6, 9)) {
    return path("passthrough", false, "kernel " + facts.kernel + " has none",
                "use Linux 6.9 or newer");
  }
  return path("passthrough", facts.sys_admin, "this user has no CAP_SYS_ADMIN",
              "mount as root; nexusctl status says what a mount uses");
}

FastPath gpudirect_path(const SystemFacts& facts) {
  const char* const name = "GPUDirect Storage";
  if (!facts.cuda_reason.empty()) {
    return path(name, false, "no GPU: " + facts.cuda_reason,
                "install an NVIDIA GPU and its driver");
  }
  if (!facts.cufile_reason.empty()) {
    return path(name, false, facts.cufile_reason, "install libcufile (CUDA's, or nvidia-cufile)");
  }
  return path(name, facts.nvidia_fs, "the kernel module nvidia_fs is not loaded",
              "install nvidia-fs and modprobe nvidia_fs");
}

}  // namespace

SystemFacts system_facts() {
  SystemFacts facts;
  io::EngineSettings settings;
  settings.queue_depth = 2;
  settings.registered = true;
  {
    io::Engine engine(settings, settings);
    facts.io_uring = engine.report().io_uring;
    facts.io_uring_reason = engine.report().reason;
    if (auto memory = io::SharedMemory::make(kProbeBytes)) {
      const auto registered = engine.register_memory(memory->bytes());
      facts.registered = registered.has_value();
      if (!registered) facts.registered_reason = registered.error().what;
      engine.unregister_memory(memory->bytes().data());
    } else {
      facts.registered_reason = memory.error().what;
    }
  }
  if (facts.io_uring) {
    settings.sqpoll = true;
    const io::Engine engine(settings, settings);
    facts.sqpoll_reason = engine.report().ring_reason;
    facts.sqpoll = facts.sqpoll_reason.empty();
  } else {
    facts.sqpoll_reason = "no io_uring";
  }
  utsname system{};
  if (::uname(&system) == 0) facts.kernel = system.release;
  facts.sys_admin = has_sys_admin();
  facts.libfuse = fuse_pkgversion();
  facts.passthrough_built = NEXUS_FUSE_PASSTHROUGH != 0;
  facts.cuda_reason = why_no_gpu();
  if (void* const cufile = ::dlopen("libcufile.so.0", RTLD_NOW | RTLD_LOCAL)) {
    ::dlclose(cufile);
  } else {
    const char* const why = ::dlerror();
    facts.cufile_reason = why ? why : "libcufile.so.0 cannot be loaded";
  }
  facts.nvidia_fs = ::access("/proc/driver/nvidia-fs", F_OK) == 0;
  return facts;
}

std::vector<FastPath> fast_paths(const SystemFacts& facts, const Zone* zone) {
  std::vector<FastPath> paths;
  paths.push_back(path("io_uring", facts.io_uring, facts.io_uring_reason,
                       "allow it: sysctl kernel.io_uring_disabled=0, and in a container a seccomp "
                       "profile that permits io_uring_setup"));
  if (zone != nullptr) {
    paths.push_back(path("O_DIRECT", zone->direct, zone->direct_reason,
                         "put cache_dir on ext4 or xfs; buffered I/O is used meanwhile"));
  }
  paths.push_back(path("registered buffers", facts.registered, facts.registered_reason,
                       "raise the locked-memory limit: ulimit -l unlimited, or LimitMEMLOCK="
                       "infinity in a unit"));
  if (zone != nullptr) {
    paths.push_back(path("IOPOLL", zone->device.poll_queues && facts.io_uring,
                         zone->device.name + " has no poll queues",
                         "for NVMe: boot with nvme.poll_queues=N"));
  }
  paths.push_back(
      path("SQPOLL", facts.sqpoll, facts.sqpoll_reason, "needs Linux 5.11 or newer and io_uring"));
  paths.push_back(passthrough_path(facts));
  paths.push_back(gpudirect_path(facts));
  return paths;
}

std::string fast_paths_text(const std::vector<FastPath>& paths) {
  std::string out;
  for (const FastPath& one : paths) {
    if (one.on) continue;
    out += "off: " + one.name + ": " + tools::printable(one.reason) + "; " + one.remedy + "\n";
  }
  return out;
}

nlohmann::json fast_paths_json(const std::vector<FastPath>& paths) {
  nlohmann::json list = nlohmann::json::array();
  for (const FastPath& one : paths) {
    nlohmann::json entry = {{"name", one.name}, {"on", one.on}};
    if (!one.on) {
      entry["reason"] = one.reason;
      entry["remedy"] = one.remedy;
    }
    list.push_back(std::move(entry));
  }
  return list;
}

Features features_of(const SystemFacts& facts, const Zone& zone) {
  return {facts.io_uring, zone.direct, facts.registered && facts.io_uring,
          zone.device.poll_queues && zone.direct && facts.io_uring, facts.sqpoll};
}

}  // namespace nexus::tune
