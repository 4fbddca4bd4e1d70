#include "backend/io/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "backend/io/settings.h"
#include "backend/store/disk_io.h"

namespace nexus::io {

namespace {

// A file in a tmpfs that no path leads to; -1 without the privilege or the kernel.
UniqueFd private_tmpfs_file(size_t bytes) {
  UniqueFd context(::fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context) return UniqueFd();
  const std::string size = std::to_string(bytes);
  if (::fsconfig(context.get(), FSCONFIG_SET_STRING, "size", size.c_str(), 0) != 0 ||
      ::fsconfig(context.get(), FSCONFIG_SET_STRING, "huge", "always", 0) != 0 ||
      ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return UniqueFd();
  }
  UniqueFd mount(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount) return UniqueFd();
  return UniqueFd(::openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

}  // namespace

Result<SharedMemory> SharedMemory::make(size_t bytes) {
  bytes = (bytes + kDirectAlign - 1) / kDirectAlign * kDirectAlign;
  const auto refused = [&](const char* what, int error) {
    return fail(Code::kLimit, std::to_string(bytes) + " bytes of memory: " + what + ": " +
                                  std::generic_category().message(error));
  };
  UniqueFd file = private_tmpfs_file(bytes);
  const bool huge = static_cast<bool>(file);
  if (!huge) file.reset(::memfd_create("nexus", MFD_CLOEXEC));
  if (!file) return refused("memfd_create", errno);
  // Reserved before it is mapped: a write beyond what there is would be a SIGBUS.
  int reserved = 0;
  do {
    reserved = ::posix_fallocate(file.get(), 0, static_cast<off_t>(bytes));
  } while (reserved == EINTR);
  if (reserved != 0) return refused("fallocate", reserved);
  void* at =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (at == MAP_FAILED) return refused("mmap", errno);
  return SharedMemory(static_cast<std::byte*>(at), bytes, huge);
}

SharedMemory::~SharedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

SharedMemory::SharedMemory(SharedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      huge_(other.huge_) {}

}  // namespace nexus::io
