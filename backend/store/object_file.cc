#include "backend/store/object_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "backend/store/disk_io.h"
#include "backend/store/room.h"
#include "backend/store/zones.h"

namespace nexus {

namespace {

struct Moved {
  size_t bytes = 0;
  int error = 0;  // an errno
};

Moved write_all(int fd, uint64_t offset, std::span<const std::byte> bytes) {
  Moved moved;
  while (moved.bytes < bytes.size()) {
    const ssize_t n = ::pwrite(fd, bytes.data() + moved.bytes, bytes.size() - moved.bytes,
                               static_cast<off_t>(offset + moved.bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      moved.error = errno;
      break;
    }
    moved.bytes += static_cast<size_t>(n);
  }
  return moved;
}

Moved read_all(int fd, uint64_t offset, std::span<std::byte> into) {
  Moved moved;
  while (moved.bytes < into.size()) {
    const ssize_t n = ::pread(fd, into.data() + moved.bytes, into.size() - moved.bytes,
                              static_cast<off_t>(offset + moved.bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) moved.error = errno;
    if (n <= 0) break;
    moved.bytes += static_cast<size_t>(n);
  }
  return moved;
}

// As much from the beginning as the page cache has; never waits for the disk.
size_t read_cached(int fd, uint64_t offset, std::span<std::byte> into) {
  size_t done = 0;
  while (done < into.size()) {
    const iovec part{into.data() + done, into.size() - done};
    const ssize_t n = ::preadv2(fd, &part, 1, static_cast<off_t>(offset + done), RWF_NOWAIT);
    if (n <= 0) break;  // not there, or the file system does not know the flag
    done += static_cast<size_t>(n);
  }
  return done;
}

std::atomic<int> descriptors{0};

}  // namespace

Descriptor::Descriptor(int fd) : fd_(fd) {
  descriptors.fetch_add(1, std::memory_order_relaxed);
}
Descriptor::~Descriptor() {
  ::close(fd_);
  descriptors.fetch_sub(1, std::memory_order_relaxed);
}
int Descriptor::count() {
  return descriptors.load(std::memory_order_relaxed);
}

ObjectFile::ObjectFile(std::string key, std::string path, int zone, int fd, uint64_t size,
                       std::shared_ptr<Zone> accounting)
    : key_(std::move(key)),
      path_(std::move(path)),
      zone_(zone),
      size_(size),
      chunks_(size / kChunkBytes + (size % kChunkBytes != 0)),
      accounting_(std::move(accounting)),
      present_((chunks_ + 63) / 64),
      hashes_(chunks_),
      descriptor_(fd >= 0 ? std::make_shared<const Descriptor>(fd) : nullptr) {}

ObjectFile::~ObjectFile() {
  // A promise ends with the object; its use of the disk does not, unless it was removed.
  std::lock_guard lock(charge_mutex_);
  if (accounting_ && promised_bytes_ != 0) {
    accounting_->add_promised(-static_cast<int64_t>(promised_bytes_));
  }
}

Result<std::shared_ptr<const Descriptor>> ObjectFile::descriptor() const {
  std::lock_guard lock(fd_mutex_);
  used_ = true;
  if (descriptor_) return descriptor_;
  struct Opened {
    UniqueFd fd;
    int error = 0;
    uint64_t size = 0;
  };
  auto opened = guarded([path = path_] {
    Opened file;
    file.fd.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    // A disk that went read-only can still be read.
    if (!file.fd && errno == EROFS) {
      file.fd.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    }
    file.error = errno;
    struct stat st;
    if (!file.fd || ::fstat(file.fd.get(), &st) != 0) return file;
    file.size = static_cast<uint64_t>(st.st_size);
    if ((st.st_mode & 07777) != 0600) ::fchmod(file.fd.get(), 0600);
    return file;
  });
  if (!opened) return hang_error("open");
  if (!opened->fd) return io_error(opened->error, "open");
  // The kernel serves it up to its end, whatever ours is. A start believes the catalog.
  if (opened->size != size_) {
    return fail(Code::kCorrupt, path_ + ": is " + std::to_string(opened->size) + " bytes, not " +
                                    std::to_string(size_));
  }
  descriptor_ = std::make_shared<const Descriptor>(opened->fd.release());
  return descriptor_;
}

int ObjectFile::fd() const {
  auto opened = descriptor();
  if (!opened) return -1;
  std::lock_guard lock(fd_mutex_);
  // close_idle() may have come between.
  if (!descriptor_) descriptor_ = *opened;
  lent_ = true;
  return descriptor_->get();
}

void ObjectFile::close_idle() {
  std::shared_ptr<const Descriptor> last;  // closed outside the lock
  std::lock_guard lock(fd_mutex_);
  if (std::exchange(used_, false) || lent_ || descriptor_.use_count() > 1) return;
  last = std::move(descriptor_);
  descriptor_.reset();
}

Result<std::shared_ptr<const Descriptor>> ObjectFile::writable(uint64_t offset, uint64_t bytes) {
  if (offset > size_ || bytes > size_ - offset) {
    return fail(Code::kInvalid, key_ + ": write past the end");
  }
  if (failed()) return fail(Code::kDisk, key_ + ": the disk lost bytes of this object");
  auto fd = descriptor();
  if (!fd) return fail(fd.error(), "write");
  return fd;
}

Result<Room> ObjectFile::reserve_room(uint64_t bytes) const {
  if (!accounting_ || preallocated_) return Room();
  auto room = guarded([path = accounting_->path(), bytes] { return Room::reserve(path, bytes); });
  if (!room) return hang_error("write");
  return std::move(*room);
}

Result<void> ObjectFile::write_by(uint64_t offset, std::span<const std::byte> bytes,
                                  const WriteBy& by) {
  auto fd = writable(offset, bytes.size());
  if (!fd) return tl::unexpected<Error>(fd.error());
  auto room = reserve_room(bytes.size());
  if (!room) return tl::unexpected<Error>(room.error());
  auto written = by((*fd)->get(), offset, bytes);
  if (!written) {
    if (accounting_ && written.error().code == Code::kDisk) accounting_->note_error();
    return fail(written.error(), path_);
  }
  if (accounting_) {
    accounting_->add_written(bytes.size());
    accounting_->note_written();
  }
  return {};
}

Result<void> ObjectFile::write(uint64_t offset, std::span<const std::byte> bytes) {
  // A call that hangs outlives the caller's bytes.
  std::shared_ptr<std::byte[]> copy;
  if (accounting_) {
    copy.reset(new std::byte[bytes.size()]);
    std::memcpy(copy.get(), bytes.data(), bytes.size());
    bytes = {copy.get(), bytes.size()};
  }
  return write_kept(offset, bytes, copy);
}

Result<void> ObjectFile::write(uint64_t offset, const std::shared_ptr<std::byte[]>& bytes,
                               uint64_t length) {
  return write_kept(offset, {bytes.get(), length}, bytes);
}

Result<void> ObjectFile::write_kept(uint64_t offset, std::span<const std::byte> bytes,
                                    const std::shared_ptr<const std::byte[]>& owner) {
  auto fd = writable(offset, bytes.size());
  if (!fd) return tl::unexpected<Error>(fd.error());
  if (!accounting_) {
    const Moved moved = write_all((*fd)->get(), offset, bytes);
    return moved.error == 0 ? Result<void>() : io_error(moved.error, "write");
  }
  struct Written {
    std::optional<Error> refused;
    Moved moved;
  };
  const uint64_t needed = preallocated_ ? 0 : bytes.size();
  const auto written =
      guarded([owner, descriptor = *fd, offset, bytes, needed, zone = accounting_->path()] {
        Result<Room> room;
        if (needed > 0) room = Room::reserve(zone, needed);
        if (!room) return Written{room.error(), {}};
        return Written{std::nullopt, write_all(descriptor->get(), offset, bytes)};
      });
  if (!written) return hang_error("write");
  if (written->refused) return tl::unexpected<Error>(*written->refused);
  accounting_->add_written(written->moved.bytes);
  if (written->moved.error != 0) return io_error(written->moved.error, "write");
  accounting_->note_written();
  return {};
}

Result<void> ObjectFile::read(uint64_t offset, std::span<std::byte> into) const {
  if (offset > size_ || into.size() > size_ - offset) {
    return fail(Code::kInvalid, key_ + ": read past the end");
  }
  if (failed()) return fail(Code::kDisk, key_ + ": the disk lost bytes of this object");
  auto fd = descriptor();
  if (!fd) return fail(fd.error(), "read");
  const auto outcome = [&](const Moved& moved) -> Result<void> {
    if (moved.error != 0) return io_error(moved.error, "read");
    if (moved.bytes < into.size()) return fail(Code::kDisk, path_ + ": shorter than its object");
    return {};
  };
  if (!accounting_) return outcome(read_all((*fd)->get(), offset, into));
  // What is in the page cache is read here and now; for the rest the disk has to answer.
  const size_t there = read_cached((*fd)->get(), offset, into);
  if (there == into.size()) return {};
  offset += there;
  into = into.subspan(there);
  const std::shared_ptr<std::byte[]> bytes(new std::byte[into.size()]);
  const auto moved = guarded([bytes, descriptor = *fd, offset, size = into.size()] {
    return read_all(descriptor->get(), offset, {bytes.get(), size});
  });
  if (!moved) return hang_error("read");
  std::memcpy(into.data(), bytes.get(), std::min(moved->bytes, into.size()));
  return outcome(*moved);
}

bool ObjectFile::hung() const {
  return accounting_ && accounting_->hung();
}

bool ObjectFile::unwell() const {
  return accounting_ && !accounting_->healthy();
}

void ObjectFile::note_io_error() const {
  if (accounting_) accounting_->note_error();
}

HangGuard* ObjectFile::guard() const {
  return accounting_ ? &accounting_->guard() : nullptr;
}

tl::unexpected<Error> ObjectFile::hang_error(const char* what) const {
  return nexus::hang_error(std::string(what) + " " + path_);
}

Result<void> ObjectFile::sync() {
  if (failed()) return fail(Code::kDisk, key_ + ": the disk lost bytes of this object");
  auto fd = descriptor();
  if (!fd) return fail(fd.error(), "sync");
  const auto call = [descriptor = *fd] { return ::fdatasync(descriptor->get()) == 0 ? 0 : errno; };
  if (accounting_) accounting_->expect_syncs();
  const auto answer = accounting_ ? accounting_->guard().get_slow(call) : call();
  if (!answer) return hang_error("sync");  // nothing is known; it is tried again
  const int err = *answer;
  if (err == 0) {
    if (accounting_) accounting_->note_success();
    return {};
  }
  // Linux reports a failed write-back once and then calls the pages clean, so a second sync that
  // succeeds would prove nothing.
  if (err != EINTR && err != EROFS) failed_.store(true, std::memory_order_release);
  return io_error(err, "sync");
}

tl::unexpected<Error> ObjectFile::io_error(int err, const char* what) const {
  // A full disk, a missing file or too many descriptors say nothing about the device's health.
  if (accounting_ && (err == EIO || err == ENODEV || err == ESTALE || err == EROFS)) {
    accounting_->note_error();
  }
  return disk_error(err, std::string(what) + " " + path_);
}

}  // namespace nexus
