#include "tools/nexusfs/mountpoint.h"

#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "fs/mountpoint.h"
#include "tools/common/control_client.h"
#include "tools/common/mount_table.h"

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

namespace nexus::tools {
namespace {

constexpr int kStackedMax = 16;

// Detaches what dead daemons left. The socket is asked first, because a daemon that lives but hangs
// would keep statfs() waiting; statfs() and not stat(), which the kernel still answers for a dead
// one.
Result<void> recover(const std::string& mountpoint, const Environment& environment) {
  for (int i = 0; i < kStackedMax; ++i) {
    const auto mounted = find_mount(mountpoint);
    if (!mounted || !mounted->is_nexus()) return {};
    if (auto client = connect_mount(mountpoint, environment)) {
      return fail(Code::kInvalid, mountpoint + ": is mounted already, by pid " +
                                      std::to_string(client->peer().pid));
    }
    struct statfs status {};
    if (statfs(mountpoint.c_str(), &status) == 0) {
      return fail(Code::kInvalid, mountpoint + ": is mounted already");
    }
    if (errno != ENOTCONN) return fail(Code::kInvalid, mountpoint + ": " + std::strerror(errno));
    if (auto ok = fs::detach_mount(mountpoint); !ok) {
      return fail(ok.error(), "a dead daemon's mount is in the way");
    }
  }
  return fail(Code::kLimit, mountpoint + ": more dead mounts than are plausible lie there");
}

bool is_below(const std::string& path, const std::string& directory) {
  return path == directory || path.rfind(directory == "/" ? "/" : directory + "/", 0) == 0;
}

}  // namespace

Result<std::string> prepare_mountpoint(const std::string& path, const Environment& environment) {
  auto mountpoint = canonical_mountpoint(path);
  if (!mountpoint) return fail(mountpoint.error(), "mountpoint");
  if (auto ok = recover(*mountpoint, environment); !ok) return tl::unexpected(ok.error());
  if (mkdir(mountpoint->c_str(), 0755) != 0 && errno != EEXIST) {
    return fail(Code::kInvalid, "mountpoint " + *mountpoint +
                                    ": does not exist and cannot be made: " + std::strerror(errno));
  }
  return fs::prepare_mountpoint(*mountpoint);
}

Result<void> check_outside(const std::string& mountpoint, const Config& config) {
  std::vector<std::pair<std::string, std::string>> used = {{"cache_dir", config.cache_dir},
                                                           {"hub cache", config.hub_cache},
                                                           {"token file", config.token_file},
                                                           {"log file", config.log_file},
                                                           {"config file", config.file}};
  for (const auto& [alias, directory] : config.locals)
    used.emplace_back("local model '" + alias + "'", directory);
  for (const auto& [what, path] : used) {
    if (path.empty()) continue;
    std::error_code ignored;
    const std::string real = std::filesystem::weakly_canonical(path, ignored).string();
    if (is_below(path, mountpoint) || is_below(real, mountpoint)) {
      return fail(Code::kInvalid, what + " " + path + ": lies below the mountpoint");
    }
  }
  return {};
}

Result<void> mount_answers(const std::string& mountpoint) {
  struct stat status {};
  struct statfs file_system {};
  if (stat(mountpoint.c_str(), &status) != 0 || statfs(mountpoint.c_str(), &file_system) != 0) {
    return fail(Code::kInvalid,
                mountpoint + ": mounted, but does not answer: " + std::strerror(errno));
  }
  if (file_system.f_type != FUSE_SUPER_MAGIC) {
    return fail(Code::kInvalid, mountpoint + ": the mount ended at once");
  }
  return {};
}

}  // namespace nexus::tools
