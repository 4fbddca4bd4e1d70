#include "backend/store/cache_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <vector>

namespace nexus {

namespace {

std::string text_of(int err) {
  return std::generic_category().message(err);
}

Result<void> make_and_check(const std::string& path) {
  if (path.empty()) return fail(Code::kInvalid, "cache_dir is empty");
  std::error_code ec;
  // The directories that get a name in them here.
  std::vector<std::filesystem::path> named = {std::filesystem::path(path).parent_path()};
  while (!named.back().empty() && !std::filesystem::exists(named.back(), ec)) {
    named.push_back(named.back().parent_path());
  }
  const std::filesystem::path& parent = named.front();
  if (!parent.empty()) std::filesystem::create_directories(parent, ec);
  if (ec) return fail(Code::kInvalid, "cache_dir " + path + ": " + ec.message());
  if (::mkdir(path.c_str(), 0700) == 0) {
    // What the store makes durable in it must not go with its name. A parent that is not ours may
    // not be readable, and then the file system's own order has to do.
    for (const auto& directory : named) (void)sync_dir(directory);
  } else if (errno != EEXIST) {
    return fail(Code::kInvalid, "cache_dir " + path + ": cannot be made: " + text_of(errno));
  }
  UniqueFd dir(::open(path.c_str(), O_PATH | O_CLOEXEC));
  struct stat st;
  if (!dir || ::fstat(dir.get(), &st) != 0) {
    return fail(Code::kInvalid, "cache_dir " + path + ": " + text_of(errno));
  }
  if (!S_ISDIR(st.st_mode)) {
    return fail(Code::kInvalid, "cache_dir " + path + " is not a directory");
  }
  if (st.st_uid != ::geteuid()) {
    return fail(Code::kInvalid, "cache_dir " + path + " belongs to uid " +
                                    std::to_string(st.st_uid) + ", and this is uid " +
                                    std::to_string(::geteuid()));
  }
  if ((st.st_mode & 07777) != 0700 && ::chmod(path.c_str(), 0700) != 0) {
    return fail(Code::kInvalid,
                "cache_dir " + path + ": cannot be made private (0700): " + text_of(errno));
  }
  return {};
}

}  // namespace

Result<CacheDir> CacheDir::open(const std::string& path) {
  if (auto usable = make_and_check(path); !usable) return tl::unexpected(usable.error());
  const std::string lock_path = path + "/lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock) {
    return fail(Code::kInvalid, "cache_dir " + path + " is not writable: " + text_of(errno));
  }
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return fail(Code::kInvalid, "cache_dir " + path + ": cannot be locked: " + text_of(errno));
    }
    char text[32] = {};
    const ssize_t n = ::pread(lock.get(), text, sizeof text - 1, 0);
    const long pid = n > 0 ? std::strtol(text, nullptr, 10) : 0;
    return fail(Code::kLimit,
                "cache_dir " + path + " is in use by " +
                    (pid > 0 ? "process " + std::to_string(pid) : std::string("another process")));
  }
  const std::string pid = std::to_string(::getpid()) + "\n";
  // On a full disk the pid may not fit; the lock holds without it.
  if (::fchmod(lock.get(), 0600) != 0 || ::ftruncate(lock.get(), 0) != 0 ||
      ::pwrite(lock.get(), pid.data(), pid.size(), 0) < 0) {
    if (errno == EROFS) {
      return fail(Code::kInvalid, "cache_dir " + path + " is not writable: " + text_of(errno));
    }
  }
  return CacheDir(std::move(lock));
}

void raise_descriptor_limit() {
  struct rlimit limit;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace nexus
