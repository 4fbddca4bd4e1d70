#include "backend/store/object_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "backend/store/disk_io.h"
#include "backend/store/zones.h"

namespace nexus {

namespace {

// One megabyte a thread that ever sealed or verified a chunk: the network thread and the hash pool.
std::span<std::byte> chunk_buffer(uint64_t length) {
  thread_local std::unique_ptr<std::byte[]> buffer(new std::byte[kChunkBytes]);
  return {buffer.get(), length};
}

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

std::string hex(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

namespace {
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
  const auto opened = std::make_shared<Opened>();
  const bool answered = guarded([opened, path = path_] {
    opened->fd.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    // A disk that went read-only can still be read.
    if (!opened->fd && errno == EROFS) {
      opened->fd.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    }
    opened->error = errno;
    struct stat st;
    if (!opened->fd || ::fstat(opened->fd.get(), &st) != 0) return;
    opened->size = static_cast<uint64_t>(st.st_size);
    if ((st.st_mode & 07777) != 0600) ::fchmod(opened->fd.get(), 0600);
  });
  if (!answered) return hang_error("open");
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

uint64_t ObjectFile::chunk_length(uint64_t chunk) const {
  if (chunk >= chunks_) return 0;
  return std::min(kChunkBytes, size_ - chunk * kChunkBytes);
}

bool ObjectFile::has(uint64_t chunk) const {
  if (chunk >= chunks_) return false;
  return (present_[chunk / 64].load(std::memory_order_acquire) >> (chunk % 64) & 1) != 0;
}

bool ObjectFile::has(ByteRange range) const {
  if (range.length == 0) return true;
  if (range.offset >= size_ || range.length > size_ - range.offset) return false;
  if (complete()) return true;
  const uint64_t last = (range.end() - 1) / kChunkBytes;
  for (uint64_t chunk = range.offset / kChunkBytes; chunk <= last; ++chunk) {
    if (!has(chunk)) return false;
  }
  return true;
}

uint64_t ObjectFile::present_bytes() const {
  if (chunks_ == 0) return 0;
  const uint64_t count = present_chunks();
  if (count == 0) return 0;
  const uint64_t missing_from_last = kChunkBytes - chunk_length(chunks_ - 1);
  return count * kChunkBytes - (has(chunks_ - 1) ? missing_from_last : 0);
}

Result<std::shared_ptr<const Descriptor>> ObjectFile::admit_write(uint64_t offset, uint64_t bytes) {
  if (offset > size_ || bytes > size_ - offset) {
    return fail(Code::kInvalid, key_ + ": write past the end");
  }
  if (failed()) return fail(Code::kDisk, key_ + ": the disk lost bytes of this object");
  auto fd = descriptor();
  if (!fd) return fail(fd.error(), "write");
  if (accounting_ && !preallocated_) {
    if (auto room = accounting_->admit(bytes); !room) return tl::unexpected<Error>(room.error());
  }
  return fd;
}

Result<void> ObjectFile::write_by(uint64_t offset, std::span<const std::byte> bytes,
                                  const WriteBy& by) {
  auto fd = admit_write(offset, bytes.size());
  if (!fd) return tl::unexpected<Error>(fd.error());
  auto written = by((*fd)->get(), offset, bytes);
  if (!written) {
    if (accounting_ && written.error().code == Code::kDisk) accounting_->note_error();
    return fail(written.error(), path_);
  }
  if (accounting_) {
    accounting_->add_written(bytes.size());
    accounting_->note_success();
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
  auto fd = admit_write(offset, bytes.size());
  if (!fd) return tl::unexpected<Error>(fd.error());
  if (!accounting_) {
    const Moved moved = write_all((*fd)->get(), offset, bytes);
    return moved.error == 0 ? Result<void>() : io_error(moved.error, "write");
  }
  const auto moved = std::make_shared<Moved>();
  const bool answered = guarded([moved, owner, descriptor = *fd, offset, bytes] {
    *moved = write_all(descriptor->get(), offset, bytes);
  });
  if (!answered) return hang_error("write");
  accounting_->add_written(moved->bytes);
  if (moved->error != 0) return io_error(moved->error, "write");
  accounting_->note_success();
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
  struct Job {
    std::unique_ptr<std::byte[]> bytes;
    Moved moved;
  };
  const auto job = std::make_shared<Job>();
  job->bytes.reset(new std::byte[into.size()]);
  const bool answered = guarded([job, descriptor = *fd, offset, size = into.size()] {
    job->moved = read_all(descriptor->get(), offset, {job->bytes.get(), size});
  });
  if (!answered) return hang_error("read");
  std::memcpy(into.data(), job->bytes.get(), std::min(job->moved.bytes, into.size()));
  return outcome(job->moved);
}

bool ObjectFile::hung() const {
  return accounting_ && accounting_->hung();
}

bool ObjectFile::guarded(std::function<void()> call) const {
  if (accounting_) return accounting_->guard().run(std::move(call));
  call();
  return true;
}

tl::unexpected<Error> ObjectFile::hang_error(const char* what) const {
  return fail(Code::kDisk, std::string(what) + " " + path_ + ": the disk hangs");
}

Result<uint64_t> ObjectFile::hash_chunk(uint64_t chunk) const {
  if (chunk >= chunks_) return fail(Code::kInvalid, key_ + ": no such chunk");
  const std::span<std::byte> buffer = chunk_buffer(chunk_length(chunk));
  if (auto done = read(chunk * kChunkBytes, buffer); !done) return tl::unexpected(done.error());
  return XXH3_64bits(buffer.data(), buffer.size());
}

Result<void> ObjectFile::seal_chunk(uint64_t chunk) {
  auto hash = hash_chunk(chunk);
  if (!hash) return fail(hash.error(), "seal chunk " + std::to_string(chunk));
  mark_present(chunk, *hash);
  return {};
}

void ObjectFile::seal_chunk(uint64_t chunk, std::span<const std::byte> bytes) {
  mark_present(chunk, XXH3_64bits(bytes.data(), bytes.size()));
}

void ObjectFile::mark_present(uint64_t chunk, uint64_t hash) {
  hashes_[chunk].store(hash, std::memory_order_relaxed);
  const uint64_t bit = uint64_t{1} << (chunk % 64);
  // Release: who sees the bit sees the hash and the bytes. Of two threads that seal the same chunk
  // only the one that turned the bit counts it.
  const uint64_t before = present_[chunk / 64].fetch_or(bit, std::memory_order_acq_rel);
  if ((before & bit) != 0) return;
  charge(chunk_length(chunk));
  present_count_.fetch_add(1, std::memory_order_acq_rel);
}

Result<void> ObjectFile::verify_chunk(uint64_t chunk) const {
  if (!has(chunk)) {
    return fail(Code::kInvalid, key_ + ": chunk " + std::to_string(chunk) + " is not present");
  }
  auto hash = hash_chunk(chunk);
  if (!hash) return fail(hash.error(), "verify chunk " + std::to_string(chunk));
  if (*hash != chunk_hash(chunk)) {
    return fail(Code::kCorrupt, key_ + ": chunk " + std::to_string(chunk) + " of " + path_ +
                                    " has hash " + hex(*hash) + ", not " + hex(chunk_hash(chunk)));
  }
  return {};
}

void ObjectFile::restore(const std::vector<uint64_t>& bitmap, const std::vector<uint64_t>& hashes) {
  for (uint64_t chunk = 0; chunk < chunks_; ++chunk) {
    if (chunk / 64 >= bitmap.size() || (bitmap[chunk / 64] >> (chunk % 64) & 1) == 0) continue;
    hashes_[chunk].store(chunk < hashes.size() ? hashes[chunk] : 0, std::memory_order_relaxed);
    present_[chunk / 64].fetch_or(uint64_t{1} << (chunk % 64), std::memory_order_acq_rel);
    present_count_.fetch_add(1, std::memory_order_acq_rel);
  }
  charge(present_bytes());
}

std::vector<uint64_t> ObjectFile::bitmap() const {
  std::vector<uint64_t> words;
  words.reserve(present_.size());
  for (const auto& word : present_) words.push_back(word.load(std::memory_order_acquire));
  return words;
}

std::vector<uint64_t> ObjectFile::hashes() const {
  std::vector<uint64_t> values;
  values.reserve(hashes_.size());
  for (const auto& hash : hashes_) values.push_back(hash.load(std::memory_order_relaxed));
  return values;
}

void ObjectFile::promise(uint64_t bytes, bool preallocated) {
  preallocated_ = preallocated;
  if (!accounting_) return;
  std::lock_guard lock(charge_mutex_);
  promised_bytes_ += bytes;
  accounting_->add_promised(static_cast<int64_t>(bytes));
}

void ObjectFile::charge(uint64_t bytes) {
  if (!accounting_) return;
  std::lock_guard lock(charge_mutex_);
  if (retired()) return;
  charged_bytes_ += bytes;
  accounting_->add_used(static_cast<int64_t>(bytes));
  const uint64_t kept = std::min(bytes, promised_bytes_);
  promised_bytes_ -= kept;
  accounting_->add_promised(-static_cast<int64_t>(kept));
}

void ObjectFile::retire() {
  std::lock_guard lock(charge_mutex_);
  if (retired_.exchange(true) || !accounting_) return;
  accounting_->add_used(-static_cast<int64_t>(charged_bytes_));
  accounting_->add_promised(-static_cast<int64_t>(promised_bytes_));
  charged_bytes_ = promised_bytes_ = 0;
}

Result<void> ObjectFile::sync() {
  if (failed()) return fail(Code::kDisk, key_ + ": the disk lost bytes of this object");
  auto fd = descriptor();
  if (!fd) return fail(fd.error(), "sync");
  const auto result = std::make_shared<std::atomic<int>>(0);
  const auto call = [result, descriptor = *fd] {
    if (::fdatasync(descriptor->get()) != 0) *result = errno;
  };
  bool answered = true;
  if (accounting_) {
    answered = accounting_->guard().run_slow(call);
  } else {
    call();
  }
  if (!answered) return hang_error("sync");  // nothing is known; it is tried again
  const int err = *result;
  if (err == 0) return {};
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
