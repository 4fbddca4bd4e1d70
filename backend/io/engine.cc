#include "backend/io/engine.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <system_error>

#include "backend/io/lane.h"

namespace nexus::io {

namespace {

bool aligned(uint64_t value) {
  return value % kDirectAlign == 0;
}

// The same file, opened anew for O_DIRECT: flags of an open file cannot be had by one call alone.
UniqueFd open_direct(int fd, bool write) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return UniqueFd(::open(path.c_str(), (write ? O_WRONLY : O_RDONLY) | O_DIRECT | O_CLOEXEC));
}

tl::unexpected<Error> call_error(bool write, uint64_t offset, int error) {
  const std::string context =
      (write ? std::string("write at ") : std::string("read at ")) + std::to_string(offset);
  if (error == 0) return fail(Code::kDisk, context + ": the file ends there");
  return disk_error(error, context);
}

// pread/pwrite of all of it, in blocks.
Result<void> move_synchronously(bool write, int fd, uint64_t offset, std::byte* data, size_t length,
                                uint64_t block) {
  while (length > 0) {
    const size_t now = std::min<size_t>(length, block);
    const ssize_t moved = write ? ::pwrite(fd, data, now, static_cast<off_t>(offset))
                                : ::pread(fd, data, now, static_cast<off_t>(offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return call_error(write, offset, errno);
    if (moved == 0) return call_error(write, offset, write ? ENOSPC : 0);
    offset += static_cast<uint64_t>(moved);
    data += moved;
    length -= static_cast<size_t>(moved);
  }
  return {};
}

}  // namespace

EngineSettings clamped(EngineSettings settings) {
  settings.block_size = std::clamp(settings.block_size, kBlockMin, kBlockMax);
  settings.block_size -= settings.block_size % kDirectAlign;
  settings.queue_depth = std::clamp(settings.queue_depth, 1u, kDepthMax);
  settings.threads = std::clamp(settings.threads, 1u, kThreadsMax);
  return settings;
}

Engine::Engine(EngineSettings read, EngineSettings write, EngineOptions options)
    : read_settings_(clamped(read)), write_settings_(clamped(write)) {
  read_lane_ = Lane::start(read_settings_, options, &report_.reason);
  if (read_lane_) write_lane_ = Lane::start(write_settings_, options, &report_.reason);
  if (!write_lane_) read_lane_.reset();
  report_.io_uring = read_lane_ != nullptr;
  if (!report_.io_uring) return;
  report_.reason.clear();
  report_.ring_reason =
      read_lane_->ring_reason().empty() ? write_lane_->ring_reason() : read_lane_->ring_reason();
}

Engine::~Engine() = default;

Result<void> Engine::read(int fd, uint64_t offset, std::span<std::byte> into) {
  return run(read_lane_.get(), false, fd, offset, into.data(), into.size());
}

Result<void> Engine::write(int fd, uint64_t offset, std::span<const std::byte> from) {
  // Only ever read from; one type serves both directions inside.
  return run(write_lane_.get(), true, fd, offset, const_cast<std::byte*>(from.data()), from.size());
}

Result<void> Engine::run(Lane* lane, bool write, int fd, uint64_t offset, std::byte* data,
                         size_t length) {
  if (length == 0) return {};
  const EngineSettings& settings = write ? write_settings_ : read_settings_;
  UniqueFd direct;
  size_t body = length;  // what goes by the ring
  if (settings.direct) {
    std::string reason;
    const size_t whole_pages = length - length % kDirectAlign;
    if (!aligned(offset) || !aligned(reinterpret_cast<uintptr_t>(data))) {
      reason = "the offset or the memory is not aligned to 4096";
    } else if (whole_pages > 0) {
      direct = open_direct(fd, write);
      if (!direct) reason = "open with O_DIRECT: " + std::generic_category().message(errno);
      if (direct) body = whole_pages;
    }
    std::lock_guard lock(mutex_);
    if (direct) {
      ++report_.direct_calls;
    } else if (!reason.empty()) {
      ++report_.buffered_calls;
      report_.direct_reason = reason;
    }
  }
  const int body_fd = direct ? direct.get() : fd;
  if (lane && (direct || !settings.iopoll)) {
    Call call;
    call.write = write;
    call.fd = body_fd;
    call.buffered_fd = fd;
    call.offset = offset;
    call.data = data;
    call.length = body;
    lane->run(call);
    if (call.direct_refused) {
      std::lock_guard lock(mutex_);
      report_.direct_reason = "a request was refused or cut short, and went on buffered";
    }
    if (call.error != 0 || call.ended) return call_error(write, call.error_offset, call.error);
  } else {
    auto moved = move_synchronously(write, body_fd, offset, data, body, settings.block_size);
    // O_DIRECT may be granted at open and refused at use.
    if (!moved && direct) {
      moved = move_synchronously(write, fd, offset, data, body, settings.block_size);
    }
    if (!moved) return moved;
  }
  return move_synchronously(write, fd, offset + body, data + body, length - body,
                            settings.block_size);
}

Result<void> Engine::register_memory(std::span<std::byte> memory) {
  const auto refuse = [&](const Error& error) -> Result<void> {
    std::lock_guard lock(mutex_);
    report_.registered_reason = error.what;
    return tl::unexpected(error);
  };
  if (memory.empty() || !aligned(reinterpret_cast<uintptr_t>(memory.data())) ||
      !aligned(memory.size())) {
    return refuse({Code::kInvalid, "memory to register is not whole pages"});
  }
  if (!read_lane_) return refuse({Code::kUnsupported, "no io_uring"});
  if (!read_settings_.registered && !write_settings_.registered) {
    return refuse({Code::kUnsupported, "the settings say unregistered"});
  }
  Result<void> done;
  if (read_settings_.registered) done = read_lane_->register_memory(memory);
  if (done && write_settings_.registered) {
    done = write_lane_->register_memory(memory);
    if (!done) read_lane_->unregister_memory(memory.data(), memory.size());
  }
  if (!done) return refuse(done.error());
  std::lock_guard lock(mutex_);
  registered_[memory.data()] = memory.size();
  report_.registered_bytes += memory.size();
  return {};
}

void Engine::unregister_memory(const std::byte* start) {
  size_t length = 0;
  {
    std::lock_guard lock(mutex_);
    const auto found = registered_.find(start);
    if (found == registered_.end()) return;
    length = found->second;
    report_.registered_bytes -= length;
    registered_.erase(found);
  }
  read_lane_->unregister_memory(start, length);
  write_lane_->unregister_memory(start, length);
}

Result<void> Engine::read_pinned(int fd, uint64_t offset, std::span<std::byte> into) {
  return run_pinned(read_lane_.get(), false, fd, offset, into);
}

Result<void> Engine::write_pinned(int fd, uint64_t offset, std::span<const std::byte> from) {
  return run_pinned(write_lane_.get(), true, fd, offset,
                    {const_cast<std::byte*>(from.data()), from.size()});
}

Result<void> Engine::run_pinned(Lane* lane, bool write, int fd, uint64_t offset,
                                std::span<std::byte> memory) {
  // A tail of less than a page goes by no ring when the rest is direct; else it goes unregistered.
  const auto pages = memory.first(memory.size() - memory.size() % kDirectAlign);
  const bool pinned = lane && pin(*lane, pages);
  auto moved = run(lane, write, fd, offset, memory.data(), memory.size());
  // Before the caller may unmap it: another mapping at this address would be taken for it.
  if (pinned) lane->unregister_memory(pages.data(), pages.size());
  return moved;
}

bool Engine::pin(Lane& lane, std::span<std::byte> memory) {
  if (!lane.settings().registered || memory.size() < kPinBytesMin || pin_refused_) return false;
  if (!aligned(reinterpret_cast<uintptr_t>(memory.data()))) return false;
  const auto registered = lane.register_memory(memory);
  std::lock_guard lock(mutex_);
  if (registered) {
    ++report_.pinned_calls;
  } else {
    pin_refused_ = true;
    report_.registered_reason = registered.error().what;
  }
  return registered.has_value();
}

EngineReport Engine::report() const {
  std::lock_guard lock(mutex_);
  EngineReport report = report_;
  for (const auto& lane : {read_lane_.get(), write_lane_.get()}) {
    if (lane) report.fixed_requests += lane->fixed_requests();
  }
  return report;
}

Measured Engine::measured(bool write) const {
  const auto& lane = write ? write_lane_ : read_lane_;
  return lane ? lane->measured() : Measured{};
}

}  // namespace nexus::io
