#include "backend/store/new_file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace nexus {

namespace {

std::string random_name() {
  unsigned char raw[16] = {};
  for (size_t done = 0; done < sizeof raw;) {
    const ssize_t n = ::getrandom(raw + done, sizeof raw - done, 0);
    if (n > 0) done += static_cast<size_t>(n);
  }
  std::string name;
  for (unsigned char byte : raw) {
    name += "0123456789abcdef"[byte >> 4];
    name += "0123456789abcdef"[byte & 15];
  }
  return name;
}

}  // namespace

std::string new_object_path(const std::string& zone) {
  const std::string name = random_name();
  return zone + "/objects/" + name.substr(0, 2) + "/" + name;
}

void make_object_file(const std::string& path, uint64_t size, bool whole, NewFile& made) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW;
  const auto failed = [&](const char* what) {
    const int err = errno;
    made.unwell = err == EIO || err == EROFS;
    made.failure = disk_error(err, std::string(what) + " " + path).value();
    if (made.fd) ::unlink(path.c_str());
    made.fd.reset();
  };
  made.fd.reset(::open(path.c_str(), kFlags, 0600));
  if (!made.fd && errno == ENOENT) {  // the first in this directory; the writer syncs its parents
    if (auto dir = make_private_dir(path.substr(0, path.rfind('/'))); !dir) {
      made.unwell = dir.error().code == Code::kDisk;
      made.failure = dir.error();
      return;
    }
    made.fd.reset(::open(path.c_str(), kFlags, 0600));
  }
  if (!made.fd) return failed("open");
  if (::fchmod(made.fd.get(), 0600) != 0) return failed("chmod");
  if (::ftruncate(made.fd.get(), static_cast<off_t>(size)) != 0) return failed("set the size of");
  if (!whole || size == 0) return;
  while (::fallocate(made.fd.get(), 0, 0, static_cast<off_t>(size)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EOPNOTSUPP || errno == ENOSYS) return;  // NFS before 4.2
    return failed("allocate");
  }
  made.preallocated = true;
}

}  // namespace nexus
