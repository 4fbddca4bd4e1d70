#include "backend/store/disk_io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace nexus {

void UniqueFd::reset(int fd) {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

bool is_no_space(int err) {
  return err == ENOSPC || err == EDQUOT;
}

tl::unexpected<Error> disk_error(int err, const std::string& context) {
  return fail(is_no_space(err) ? Code::kNoSpace : Code::kDisk,
              context + ": " + std::generic_category().message(err));
}

Result<void> make_private_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return disk_error(errno, "make directory " + path);
  }
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) return disk_error(errno, "stat " + path);
  if (!S_ISDIR(st.st_mode)) return fail(Code::kInvalid, path + " is not a directory");
  if ((st.st_mode & 07777) != 0700 && ::chmod(path.c_str(), 0700) != 0) {
    return disk_error(errno, "chmod 0700 " + path);
  }
  return {};
}

namespace {
Result<void> write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return disk_error(errno, "write " + path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}
}  // namespace

Result<void> replace_file(const std::string& path, std::string_view bytes) {
  const std::string temporary = path + ".tmp";
  UniqueFd fd(
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd) return disk_error(errno, "create " + temporary);
  auto result = [&]() -> Result<void> {
    if (::fchmod(fd.get(), 0600) != 0) return disk_error(errno, "chmod " + temporary);
    if (auto written = write_all(fd.get(), bytes, temporary); !written) return written;
    if (::fdatasync(fd.get()) != 0) return disk_error(errno, "sync " + temporary);
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
      return disk_error(errno, "rename to " + path);
    }
    return {};
  }();
  if (!result) ::unlink(temporary.c_str());
  return result;
}

Result<void> sync_dir(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return disk_error(errno, "open directory " + path);
  if (::fsync(fd.get()) != 0) return disk_error(errno, "sync directory " + path);
  return {};
}

Result<std::string> read_file(int dir_fd, const std::string& path, size_t max_bytes) {
  UniqueFd fd(::openat(dir_fd, path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return disk_error(errno, "open " + path);
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return disk_error(errno, "stat " + path);
  if (!S_ISREG(st.st_mode) || static_cast<uint64_t>(st.st_size) > max_bytes) {
    return fail(Code::kCorrupt,
                path + ": not a file of at most " + std::to_string(max_bytes) + " bytes");
  }
  std::string bytes(static_cast<size_t>(st.st_size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::read(fd.get(), bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return disk_error(errno, "read " + path);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace nexus
