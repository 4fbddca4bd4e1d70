#include "fs/ring_channel.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "fs/edge.h"

namespace nexus::fs {

namespace {

constexpr size_t kEarlyMax = 1024;  // interrupts that are kept for requests to come
constexpr const char* kParameter = "/sys/module/fuse/parameters/enable_uring";

thread_local RingEntry* processing = nullptr;

// CPUs that the kernel may ever have: it waits for entries in the queues of all of them.
int possible_cpus() {
  std::ifstream file("/sys/devices/system/cpu/possible");
  std::string text;
  std::getline(file, text);
  int count = 0;
  const char* at = text.c_str();
  int first = 0, last = 0, length = 0;
  while (std::sscanf(at, "%d%n", &first, &length) == 1) {
    at += length;
    last = first;
    if (std::sscanf(at, "-%d%n", &last, &length) == 1) at += length;
    count += last - first + 1;
    if (*at == ',') ++at;
  }
  return count;
}

size_t size_of(const iovec* parts, int count) {
  size_t size = 0;
  for (int i = 0; i < count; ++i) size += parts[i].iov_len;
  return size;
}

}  // namespace

RingChannel::RingChannel(size_t payload_bytes, unsigned depth, int threads)
    : payload_bytes_(payload_bytes), depth_(depth), threads_(threads) {}

RingChannel::~RingChannel() {
  stop();
}

void RingChannel::attach(fuse_session* session, std::string mountpoint) {
  session_ = session;
  mountpoint_ = std::move(mountpoint);
  fuse_custom_io io{};
  io.read = [](int fd, void* memory, size_t size, void* edge) {
    return static_cast<Edge*>(edge)->ring()->read(fd, memory, size);
  };
  io.writev = [](int fd, iovec* parts, int count, void* edge) {
    return static_cast<Edge*>(edge)->ring()->writev(fd, parts, count);
  };
  if (fuse_session_custom_io(session, &io, fuse_session_fd(session)) != 0) {
    session_ = nullptr;
    refuse(std::string("libfuse ") + fuse_pkgversion() + " was built without custom I/O");
  }
}

void RingChannel::start() {
  if (!session_) return;
  const int count = possible_cpus();
  if (count <= 0) return refuse("the number of CPUs is unknown: /sys is not mounted");
  pool_ = std::make_unique<ThreadPool>("fuse-work", threads_);
  for (int i = 0; i < count; ++i) {
    RingQueue::Options options;
    options.fuse_fd = fuse_session_fd(session_);
    options.queue = static_cast<uint16_t>(i);
    options.mountpoint = mountpoint_;
    options.payload_bytes = payload_bytes_;
    options.depth = depth_;
    options.on_request = [this](RingEntry& entry, bool more) {
      ++requests_;
      // One that may read from a disk holds up none behind it.
      if (more) {
        pool_->post([this, &entry] { process(entry); });
      } else {
        process(entry);
      }
    };
    options.on_refused = [this](int error) {
      refuse(std::string("the kernel refuses the queues: ") + std::strerror(error));
    };
    queues_.push_back(std::make_unique<RingQueue>(std::move(options)));
  }
  int error = 0;
  for (auto& queue : queues_) {
    if (const int failed = queue->wait_until_started()) error = failed;
  }
  if (error != 0) return refuse(std::string("io_uring is refused: ") + std::strerror(error));
  made_ = true;
}

void RingChannel::stop() {
  for (auto& queue : queues_) queue->stop();
  if (pool_) pool_->stop();
}

RingStatus RingChannel::status() const {
  RingStatus status;
  status.requests = requests_;
  std::lock_guard lock(mutex_);
  status.reason = reason_;
  status.on = reason_.empty();
  return status;
}

void RingChannel::refuse(std::string reason) {
  spdlog::warn("FUSE over io_uring is off: {}; requests come through /dev/fuse", reason);
  std::lock_guard lock(mutex_);
  reason_ = std::move(reason);
}

std::span<std::byte> RingChannel::reply_space(size_t size) {
  if (!processing || processing->payload.size() < size) return {};
  return processing->payload.first(size);
}

ssize_t RingChannel::read(int fd, void* memory, size_t size) {
  const ssize_t received = ::read(fd, memory, size);
  if (received > 0) note_init(memory, static_cast<size_t>(received));
  return received;
}

void RingChannel::note_init(const void* message, size_t size) {
  abi::InHeader header;
  if (size < sizeof header) return;
  std::memcpy(&header, message, sizeof header);
  abi::InitIn init;
  if (header.opcode != abi::kInit || size < sizeof header + sizeof init) return;
  std::memcpy(&init, static_cast<const std::byte*>(message) + sizeof header, sizeof init);
  offered_ = (init.flags & abi::kFlagInitExt) && (init.flags2 & abi::kFlag2OverUring);
  init_ = header.unique;
}

std::string RingChannel::why_not_offered() const {
  if (::access(kParameter, F_OK) != 0) return "the kernel has none (Linux 6.14 and newer)";
  return std::string("switched off in the kernel; as root: echo 1 > ") + kParameter +
         ", and mount again";
}

// Adds our wish to libfuse's answer to INIT, which knows nothing of it.
ssize_t RingChannel::write_init(int fd, const iovec* parts, int count) {
  init_ = 0;
  std::vector<std::byte> message(size_of(parts, count));
  size_t at = 0;
  for (int i = 0; i < count; ++i) {
    std::memcpy(message.data() + at, parts[i].iov_base, parts[i].iov_len);
    at += parts[i].iov_len;
  }
  abi::OutHeader header;
  abi::InitOut init;
  bool wanted = false;
  std::memcpy(&header, message.data(), sizeof header);
  if (header.error == 0 && made_ && message.size() >= sizeof header + sizeof init) {
    std::memcpy(&init, message.data() + sizeof header, sizeof init);
    const size_t pages = init.flags & abi::kFlagMaxPages ? init.max_pages : 32;
    const size_t payload = std::max<size_t>(
        {8192, init.max_write, pages * static_cast<size_t>(::sysconf(_SC_PAGESIZE))});
    if (!offered_) {
      refuse(why_not_offered());
    } else if (payload > payload_bytes_) {
      refuse("requests are too large");
    } else {
      wanted = true;
      init.flags |= abi::kFlagInitExt;
      init.flags2 |= abi::kFlag2OverUring;
      std::memcpy(message.data() + sizeof header, &init, sizeof init);
    }
  }
  if (wanted) {
    negotiated_ = true;
    std::lock_guard lock(mutex_);
    reason_.clear();
  }
  const ssize_t written = ::write(fd, message.data(), message.size());
  // From now on the kernel holds back requests until every queue has entries, or one was refused.
  if (wanted) {
    for (auto& queue : queues_) queue->begin();
  }
  return written;
}

ssize_t RingChannel::writev(int fd, iovec* parts, int count) {
  abi::OutHeader header;
  if (count == 0 || parts[0].iov_len < sizeof header) return ::writev(fd, parts, count);
  std::memcpy(&header, parts[0].iov_base, sizeof header);
  if (header.unique != 0 && header.unique == init_) return write_init(fd, parts, count);
  if (!negotiated_) return ::writev(fd, parts, count);
  const auto size = static_cast<ssize_t>(size_of(parts, count));
  if ((header.unique & abi::kInterruptBit) && header.error == -EAGAIN) {
    // libfuse does not know the request yet. The kernel looks for it among the device's alone.
    interrupt_again(header.unique & ~abi::kInterruptBit);
    return size;
  }
  RingEntry* entry = nullptr;
  {
    std::lock_guard lock(mutex_);
    const auto it = active_.find(header.unique);
    if (it != active_.end()) {
      entry = it->second.entry;
      active_.erase(it);
    }
  }
  if (!entry) return ::writev(fd, parts, count);
  reply(*entry, parts, count);
  return size;
}

void RingChannel::reply(RingEntry& entry, const iovec* parts, int count) {
  abi::OutHeader header;
  std::memcpy(&header, parts[0].iov_base, sizeof header);
  const size_t size = size_of(parts + 1, count - 1);
  size_t at = 0;
  if (size > entry.payload.size()) {
    header.error = -EIO;
  } else {
    for (int i = 1; i < count; ++i) {
      std::byte* const to = entry.payload.data() + at;
      if (parts[i].iov_base != to) std::memcpy(to, parts[i].iov_base, parts[i].iov_len);
      at += parts[i].iov_len;
    }
  }
  header.len = static_cast<uint32_t>(sizeof header + at);
  std::memcpy(entry.header->in_out, &header, sizeof header);
  entry.header->entry.payload_size = static_cast<uint32_t>(at);
  entry.queue->commit(entry);
}

// Once the request is answered, its entry may hold the next one: then no more of `entry`.
void RingChannel::process(RingEntry& entry) {
  abi::InHeader header;
  std::memcpy(&header, entry.header->in_out, sizeof header);
  const size_t payload = entry.header->entry.payload_size;
  const size_t fixed = sizeof header + payload;
  const uint64_t unique = header.unique;
  {
    std::lock_guard lock(mutex_);
    active_[unique] = {&entry, false};
  }
  if (payload > entry.payload.size() || header.len < fixed ||
      header.len - fixed > sizeof entry.header->op_in) {
    spdlog::error("a malformed request in a FUSE queue: {} bytes", header.len);
    abi::OutHeader answer{sizeof answer, -EIO, unique};
    iovec part{&answer, sizeof answer};
    writev(fuse_session_fd(session_), &part, 1);
    return;
  }
  // As it would have been read from the device.
  thread_local std::vector<std::byte> message;
  const size_t own = header.len - fixed;
  message.resize(header.len);
  std::memcpy(message.data(), &header, sizeof header);
  std::memcpy(message.data() + sizeof header, entry.header->op_in, own);
  std::memcpy(message.data() + sizeof header + own, entry.payload.data(), payload);
  fuse_buf buffer{};
  buffer.size = message.size();
  buffer.mem = message.data();
  processing = &entry;
  fuse_session_process_buf(session_, &buffer);
  processing = nullptr;
  {
    std::lock_guard lock(mutex_);
    const auto it = active_.find(unique);
    if (it == active_.end()) return;
    it->second.processed = true;
    if (early_.empty() || std::erase(early_, unique) == 0) return;
  }
  deliver_interrupt(unique);
}

void RingChannel::interrupt_again(uint64_t unique) {
  {
    std::lock_guard lock(mutex_);
    const auto it = active_.find(unique);
    if (it == active_.end() || !it->second.processed) {
      // For a request to come, or of one that has gone.
      early_.push_back(unique);
      if (early_.size() > kEarlyMax) early_.pop_front();
      return;
    }
  }
  deliver_interrupt(unique);
}

void RingChannel::deliver_interrupt(uint64_t unique) {
  struct {
    abi::InHeader header;
    abi::InterruptIn interrupt;
  } message{};
  message.header.len = sizeof message;
  message.header.opcode = abi::kInterrupt;
  message.header.unique = unique | abi::kInterruptBit;
  message.interrupt.unique = unique;
  fuse_buf buffer{};
  buffer.size = sizeof message;
  buffer.mem = &message;
  fuse_session_process_buf(session_, &buffer);
}

}  // namespace nexus::fs
