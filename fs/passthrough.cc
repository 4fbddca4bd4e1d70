#include "fs/passthrough.h"

#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace nexus::fs {

namespace {

// linux/fuse.h of Debian 12 does not have these yet. libfuse's own calls need a request at hand,
// which an open that was interrupted no longer has.
struct BackingMap {
  int32_t fd;
  uint32_t flags;
  uint64_t padding;
};
constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
constexpr unsigned long kBackingClose = _IOW(229, 2, uint32_t);

std::string refusal(int error) {
  const std::string text = std::strerror(error);
  switch (error) {
    case EPERM:
      return "the kernel asks for CAP_SYS_ADMIN";
    case ELOOP:
      return "the file system of the cache is layered too deep (" + text + ")";
    case ENOTTY:
    case EOPNOTSUPP:
      return "the kernel does not offer it (" + text + ")";
    default:
      return "registration failed: " + text;
  }
}

bool device_of(const ObjectFile& file, dev_t* device) {
  struct stat st;
  const auto descriptor = file.descriptor();
  if (!descriptor || ::fstat((*descriptor)->get(), &st) != 0) return false;
  *device = st.st_dev;
  return true;
}

}  // namespace

void Passthrough::set_negotiated(bool on, int session_fd, std::string reason) {
  std::lock_guard lock(mutex_);
  on_ = on;
  session_fd_ = session_fd;
  reason_ = std::move(reason);
}

bool Passthrough::on() const {
  std::lock_guard lock(mutex_);
  return on_;
}

std::string Passthrough::reason() const {
  std::lock_guard lock(mutex_);
  if (!on_ || refused_.empty()) return reason_;
  return "refused for some files: " + refused_.begin()->second;
}

uint64_t Passthrough::registered() const {
  std::lock_guard lock(mutex_);
  return registered_;
}

bool Passthrough::may_serve(const ObjectFile& file) const {
  // Errors of such a disk would be the reader's; through the daemon they lead to the origin.
  if (file.unwell()) return false;
  std::lock_guard lock(mutex_);
  if (!on_) return false;
  if (refused_.empty()) return true;
  dev_t device;
  return device_of(file, &device) && !refused_.count(device);
}

bool Passthrough::acquire(InodeIo& io, const std::shared_ptr<ObjectFile>& file) {
  if (io.backing_id > 0) return true;
  if (!file) return false;
  int session_fd;
  {
    std::lock_guard lock(mutex_);
    if (!on_) return false;
    session_fd = session_fd_;
  }
  // The kernel keeps a reference of its own, so the descriptor is needed for the call alone.
  const auto descriptor = file->descriptor();
  if (!descriptor) {
    spdlog::warn("passthrough: {}", descriptor.error().what);
    return false;
  }
  BackingMap map{(*descriptor)->get(), 0, 0};
  const int id = ::ioctl(session_fd, kBackingOpen, &map);
  if (id <= 0) {
    refuse(*file, id < 0 ? errno : EIO);
    return false;
  }
  io.backing_id = id;
  io.backing = file;
  std::lock_guard lock(mutex_);
  ++registered_;
  return true;
}

void Passthrough::drop(InodeIo& io) {
  if (io.backing_id > 0) {
    int session_fd;
    {
      std::lock_guard lock(mutex_);
      session_fd = session_fd_;
      --registered_;
    }
    uint32_t id = static_cast<uint32_t>(io.backing_id);
    if (::ioctl(session_fd, kBackingClose, &id) != 0) {
      spdlog::debug("backing {} could not be closed: {}", id, std::strerror(errno));
    }
  }
  io.backing_id = 0;
  io.backing.reset();
}

void Passthrough::refuse(const ObjectFile& file, int error) {
  const std::string why = refusal(error);
  spdlog::warn("passthrough of {} is refused: {}; reads go through the daemon", file.path(), why);
  if (error == ENOMEM || error == EMFILE || error == ENFILE) return;  // may work next time
  std::lock_guard lock(mutex_);
  dev_t device;
  if (error == EPERM || error == ENOTTY || error == EOPNOTSUPP || !device_of(file, &device)) {
    on_ = false;
    reason_ = why;
  } else {
    refused_[device] = why;
  }
}

}  // namespace nexus::fs
