#include "fs/mountpoint.h"

#include <dirent.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <sstream>

extern char** environ;

namespace nexus::fs {

namespace {

// Stale mounts may lie on each other when a daemon died more than once.
constexpr int kStaleMountsMax = 8;
constexpr char kFsType[] = "fuse.nexusfs";

// The type of the topmost mount at exactly this path, "" when it is no mountpoint. Does not touch
// the mount itself: a stat could hang on one whose daemon is stuck.
std::string mounted_type(const std::string& path) {
  std::ifstream mounts("/proc/self/mountinfo");
  std::string line, type;
  while (std::getline(mounts, line)) {
    std::istringstream fields(line);
    std::string skip, root, point, field;
    fields >> skip >> skip >> skip >> root >> point;
    // Octal escapes for blanks, as in fstab.
    std::string plain;
    for (size_t i = 0; i < point.size(); ++i) {
      if (point[i] == '\\' && i + 3 < point.size()) {
        plain += static_cast<char>(std::strtol(point.substr(i + 1, 3).c_str(), nullptr, 8));
        i += 3;
      } else {
        plain += point[i];
      }
    }
    if (plain != path) continue;
    while (fields >> field && field != "-") {
    }
    fields >> type;
  }
  return type;
}

// Absolute, without a trailing slash; the last component is not resolved, since a stale one cannot
// be.
Result<std::string> absolute(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path.empty()) return fail(Code::kInvalid, "no mountpoint was given");
  char resolved[PATH_MAX];
  if (::realpath(path.c_str(), resolved)) return std::string(resolved);
  const int error = errno;
  if (error != ENOTCONN && error != EIO && error != EACCES) {
    return fail(Code::kInvalid, "mountpoint " + path + ": " + std::strerror(error));
  }
  const size_t slash = path.rfind('/');
  const std::string parent = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (!::realpath(parent.c_str(), resolved)) {
    return fail(Code::kInvalid, "mountpoint " + path + ": " + std::strerror(errno));
  }
  const std::string base = resolved;
  return base == "/" ? base + name : base + "/" + name;
}

bool is_empty(const std::string& path, int* error) {
  std::unique_ptr<DIR, int (*)(DIR*)> directory(::opendir(path.c_str()), &::closedir);
  *error = directory ? 0 : errno;
  if (!directory) return false;
  while (const dirent* entry = ::readdir(directory.get())) {
    if (std::strcmp(entry->d_name, ".") != 0 && std::strcmp(entry->d_name, "..") != 0) return false;
  }
  return true;
}

// 0 when the directory answers. The kernel remembers attributes of a dead mount's root for a while,
// so stat alone does not show that its daemon is gone; statfs always asks it.
int probe(const std::string& path) {
  struct stat st;
  struct statfs fs;
  if (::stat(path.c_str(), &st) != 0) return errno;
  if (mounted_type(path) == kFsType && ::statfs(path.c_str(), &fs) != 0) {
    return errno == ECONNABORTED ? ENOTCONN : errno;
  }
  return 0;
}

int run_fusermount(const std::string& mountpoint) {
  const char* arguments[] = {"fusermount3", "-u", "-z", "-q", "--", mountpoint.c_str(), nullptr};
  pid_t pid;
  if (::posix_spawnp(&pid, arguments[0], nullptr, nullptr, const_cast<char* const*>(arguments),
                     environ) != 0) {
    return -1;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

Result<void> detach_mount(const std::string& mountpoint) {
  // Whoever still waits for it is answered: a daemon that was killed while it told the kernel what
  // to forget may wait for a page of a reader who waits for the daemon, and neither can be killed.
  ::umount2(mountpoint.c_str(), MNT_FORCE | UMOUNT_NOFOLLOW);
  if (::umount2(mountpoint.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) return {};
  const int error = errno;
  if (error == EINVAL) return {};  // it was not busy, so that the first has taken it off
  if (error == EPERM && run_fusermount(mountpoint) == 0) return {};
  return fail(Code::kInvalid, "unmount " + mountpoint + ": " + std::strerror(error));
}

Result<std::string> prepare_mountpoint(const std::string& path) {
  auto mountpoint = absolute(path);
  if (!mountpoint) return mountpoint;
  for (int i = 0; i < kStaleMountsMax && probe(*mountpoint) == ENOTCONN; ++i) {
    auto detached = detach_mount(*mountpoint);
    if (!detached) return fail(detached.error(), "left by a daemon that died");
  }
  struct stat st;
  if (::stat(mountpoint->c_str(), &st) != 0) {
    return fail(Code::kInvalid, "mountpoint " + *mountpoint + ": " + std::strerror(errno));
  }
  if (!S_ISDIR(st.st_mode)) {
    return fail(Code::kInvalid, "mountpoint " + *mountpoint + " is not a directory");
  }
  if (mounted_type(*mountpoint) == kFsType) {
    return fail(Code::kInvalid, "a NexusFS is mounted on " + *mountpoint +
                                    " already; end it with " + "'nexusfs unmount " + *mountpoint +
                                    "'");
  }
  int error = 0;
  if (!is_empty(*mountpoint, &error)) {
    return fail(Code::kInvalid, "mountpoint " + *mountpoint +
                                    (error ? std::string(": ") + std::strerror(error)
                                           : " is not empty; its files would be hidden"));
  }
  return mountpoint;
}

}  // namespace nexus::fs
