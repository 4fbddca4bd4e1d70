// The few file-system calls that the store's parts share, with errors as values.
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "backend/base/error.h"

namespace nexus {

// Owns a descriptor. -1 is none.
class UniqueFd {
 public:
  explicit UniqueFd(int fd = -1) : fd_(fd) {}
  ~UniqueFd() { reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_;
};

// What a failed call on the cache disk means: kNoSpace for a full disk or quota, else kDisk.
tl::unexpected<Error> disk_error(int err, const std::string& context);
bool is_no_space(int err);

// Makes a directory of ours, or takes over one that exists: mode 0700 whatever the umask says.
Result<void> make_private_dir(const std::string& path);

// `path` holds `bytes` durably or what it held before, never a mixture: written to `path`.tmp
// (0600), synced, renamed. The rename itself is durable after sync_dir().
Result<void> replace_file(const std::string& path, std::string_view bytes);

Result<void> sync_dir(const std::string& path);

// The whole file, at most `max_bytes` (kCorrupt beyond).
Result<std::string> read_file(int dir_fd, const std::string& path, size_t max_bytes);

}  // namespace nexus
