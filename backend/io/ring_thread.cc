#include <pthread.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

#include "backend/io/lane.h"

namespace nexus::io {

namespace {

constexpr uint64_t kWake = UINT64_MAX;  // user_data of the read on the eventfd; else a slot
constexpr unsigned kTableSize = 1024;   // registered pieces at a time
constexpr unsigned kTriesMax = 8;       // of one block by the ring, before pread and pwrite
constexpr unsigned kSqpollIdleMs = 50;

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::nanoseconds(now).count());
}

}  // namespace

RingThread::RingThread(Lane& lane, const EngineOptions& options)
    : lane_(lane),
      settings_(lane.settings()),
      options_(options),
      event_(::eventfd(0, EFD_CLOEXEC)),
      thread_([this] { run(); }) {}

RingThread::~RingThread() {
  wake();
  thread_.join();
}

int RingThread::wait_until_started() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return started_; });
  return start_error_;
}

void RingThread::wake() {
  const uint64_t one = 1;
  // Full (2^64 - 1 wakes unread) cannot be; anything else would show at the thread's start.
  while (::write(event_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void RingThread::run() {
  pthread_setname_np(pthread_self(), "nx-ring");
  const int error = event_ ? make_ring() : EMFILE;
  {
    std::lock_guard lock(mutex_);
    started_ = true;
    start_error_ = error;
    changed_.notify_all();
  }
  if (error != 0) return;
  work();
  io_uring_queue_exit(&ring_);
}

// The fewest interrupts and the least locking that the kernel has; older kernels answer EINVAL to a
// flag they do not know.
int RingThread::make_ring() {
  const auto init = options_.queue_init ? options_.queue_init : io_uring_queue_init_params;
  std::vector<unsigned> flags;
  const unsigned polls = (settings_.iopoll && settings_.direct ? IORING_SETUP_IOPOLL : 0u) |
                         (settings_.sqpoll ? IORING_SETUP_SQPOLL : 0u);
  if (polls != 0) flags.push_back(polls);
  flags.insert(flags.end(), {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
                             IORING_SETUP_COOP_TASKRUN, 0u});
  int error = 0;
  for (const unsigned flag : flags) {
    io_uring_params params{};
    params.flags = flag;
    params.sq_thread_idle = kSqpollIdleMs;
    // One more for the wake.
    error = -init(settings_.queue_depth + 1, &ring_, &params);
    if (error == 0) {
      iopoll_ = (flag & IORING_SETUP_IOPOLL) != 0;
      error = check_ring();
      if (error == 0) break;
      io_uring_queue_exit(&ring_);
    }
    if (flag == polls && polls != 0) {
      polling_reason_ = "polled ring: " + std::generic_category().message(error);
    } else if (error != EINVAL) {
      return error;  // it is not about the flags
    }
  }
  if (error != 0) return error;
  slots_.resize(settings_.queue_depth);
  for (unsigned i = settings_.queue_depth; i > 0; --i) free_.push_back(i - 1);
  return 0;
}

// A filter may let a ring be made and forbid its use.
int RingThread::check_ring() {
  if (iopoll_) return 0;  // such a ring takes no operation that is not polled
  io_uring_sqe* const nop = io_uring_get_sqe(&ring_);
  io_uring_prep_nop(nop);
  if (const int sent = io_uring_submit(&ring_); sent < 0) return -sent;
  io_uring_cqe* cqe = nullptr;
  int waited = 0;
  do {
    waited = io_uring_wait_cqe(&ring_, &cqe);
  } while (waited == -EINTR);
  if (waited < 0) return -waited;
  io_uring_cqe_seen(&ring_, cqe);
  return 0;
}

void RingThread::work() {
  while (true) {
    run_commands();
    if (settings_.overlap || in_flight_ == 0) fill();
    if (in_flight_ == 0 && lane_.stopping()) return;
    if (iopoll_ && in_flight_ == 0) {
      // A polled ring cannot wait for the eventfd.
      if (::read(event_.get(), &wake_count_, sizeof wake_count_) < 0 && errno != EINTR) return;
      continue;
    }
    arm_wake();
    submit();
    const bool held_back = io_uring_sq_ready(&ring_) > 0;  // for lack of memory
    wait(settings_.overlap || in_flight_ == 0 || held_back ? 1 : in_flight_);
    reap();
  }
}

void RingThread::fill() {
  Block block;
  while (!free_.empty() && lane_.take(block)) {
    const unsigned slot = free_.back();
    free_.pop_back();
    slots_[slot] = Slot{block, block.call->fd, 0, 0};
    ++in_flight_;
    queue(slot);
  }
}

io_uring_sqe* RingThread::sqe() {
  io_uring_sqe* found = io_uring_get_sqe(&ring_);
  while (found == nullptr) {  // only a polling kernel thread can be behind: the queue holds all
    submit();
    found = io_uring_get_sqe(&ring_);
  }
  return found;
}

int RingThread::fixed_index(const Block& block) const {
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const Piece& piece = pieces_[i];
    if (piece.length > 0 && block.data >= piece.start &&
        block.data + block.length <= piece.start + piece.length) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

void RingThread::queue(unsigned index) {
  const Slot& slot = slots_[index];
  const Block& block = slot.block;
  io_uring_sqe* const entry = sqe();
  const int fixed = fixed_index(block);
  if (fixed >= 0) lane_.count_fixed();
  if (block.call->write) {
    if (fixed >= 0) {
      io_uring_prep_write_fixed(entry, slot.fd, block.data, block.length, block.offset, fixed);
    } else {
      io_uring_prep_write(entry, slot.fd, block.data, block.length, block.offset);
    }
  } else if (fixed >= 0) {
    io_uring_prep_read_fixed(entry, slot.fd, block.data, block.length, block.offset, fixed);
  } else {
    io_uring_prep_read(entry, slot.fd, block.data, block.length, block.offset);
  }
  io_uring_sqe_set_data64(entry, index);
  fresh_.push_back(index);
  if (settings_.single_submit) submit();
}

void RingThread::arm_wake() {
  if (wake_armed_ || iopoll_) return;
  io_uring_sqe* const entry = sqe();
  io_uring_prep_read(entry, event_.get(), &wake_count_, sizeof wake_count_, 0);
  io_uring_sqe_set_data64(entry, kWake);
  wake_armed_ = true;
}

void RingThread::submit() {
  const bool measure = options_.measure && !fresh_.empty();
  const uint64_t before = measure ? now_ns() : 0;
  if (measure) {
    for (const unsigned slot : fresh_) slots_[slot].submitted_ns = before;
  }
  fresh_.clear();
  while (true) {
    const int sent = io_uring_submit(&ring_);
    if (sent >= 0) break;
    // Out of memory, or the completion queue is full: both pass when completions are reaped, which
    // work() does next; with nothing in flight, wait for memory.
    if (sent == -EBUSY && io_uring_cq_ready(&ring_) > 0) break;
    if (sent != -EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (measure) measured_.submit.record(now_ns() - before);
}

void RingThread::wait(unsigned count) {
  io_uring_cqe* cqe = nullptr;
  // An error (EINTR, or EAGAIN while the system lacks memory) only makes work() look again.
  io_uring_wait_cqe_nr(&ring_, &cqe, count);
}

void RingThread::reap() {
  const uint64_t now = options_.measure ? now_ns() : 0;
  io_uring_cqe* cqes[64];
  while (true) {
    const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes, 64);
    if (count == 0) return;
    struct Done {
      uint64_t data;
      int result;
    } done[64];
    for (unsigned i = 0; i < count; ++i) done[i] = {cqes[i]->user_data, cqes[i]->res};
    // Before anything is queued again: the completion queue has its room back.
    io_uring_cq_advance(&ring_, count);
    for (unsigned i = 0; i < count; ++i) {
      if (done[i].data == kWake) {
        wake_armed_ = false;
        continue;
      }
      const auto slot = static_cast<unsigned>(done[i].data);
      if (options_.measure) measured_.complete.record(now - slots_[slot].submitted_ns);
      completed(slot, done[i].result);
    }
  }
}

void RingThread::completed(unsigned index, int result) {
  Slot& slot = slots_[index];
  Block& block = slot.block;
  if (result > 0 && static_cast<uint32_t>(result) >= block.length) return end(index, 0);
  if (result == 0) return end(index, block.call->write ? ENOSPC : 0, !block.call->write);
  if (result > 0) {
    block.offset += static_cast<uint32_t>(result);
    block.data += result;
    block.length -= static_cast<uint32_t>(result);
    // What is left may no longer be aligned.
    if (static_cast<uint32_t>(result) % kDirectAlign != 0) slot.fd = block.call->buffered_fd;
  } else if (result == -EINVAL || result == -EOPNOTSUPP) {
    // O_DIRECT that the file system let us open but not use, or a device that cannot be polled.
    if (slot.fd == block.call->buffered_fd) return end(index, -result);
    slot.fd = block.call->buffered_fd;
    slot.tries = 0;
  } else if (result != -EINTR && result != -EAGAIN && result != -ECANCELED) {
    return end(index, -result);
  }
  // Kept at it by the ring, then by this thread, which waits as long as the disk does.
  const bool polled_buffered = iopoll_ && slot.fd == block.call->buffered_fd;
  if (++slot.tries > kTriesMax || polled_buffered) {
    if (!synchronously(slot)) return end(index, errno == 0 ? EIO : errno, errno == 0);
    return end(index, 0);
  }
  queue(index);
}

// False with errno; errno 0: the file ended.
bool RingThread::synchronously(Slot& slot) {
  Block& block = slot.block;
  while (block.length > 0) {
    const int fd = block.call->buffered_fd;
    const ssize_t moved =
        block.call->write ? ::pwrite(fd, block.data, block.length, static_cast<off_t>(block.offset))
                          : ::pread(fd, block.data, block.length, static_cast<off_t>(block.offset));
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return false;
    if (moved == 0) {
      errno = block.call->write ? ENOSPC : 0;
      return false;
    }
    block.offset += static_cast<uint64_t>(moved);
    block.data += moved;
    block.length -= static_cast<uint32_t>(moved);
  }
  return true;
}

void RingThread::end(unsigned index, int error, bool ended) {
  const Block block = slots_[index].block;
  const bool refused = slots_[index].fd != block.call->fd;
  slots_[index] = Slot{};
  free_.push_back(index);
  --in_flight_;
  lane_.finish(block, error, ended, refused);  // the call may be gone now
}

int RingThread::register_piece(std::span<std::byte> piece) {
  return run_command({true, piece});
}

void RingThread::unregister_from(const std::byte* start, size_t length) {
  run_command({false, {const_cast<std::byte*>(start), length}});
}

int RingThread::run_command(Command command) {
  std::unique_lock lock(mutex_);
  commands_.push_back(&command);
  wake();
  changed_.wait(lock, [&] { return command.done; });
  return command.result;
}

void RingThread::run_commands() {
  while (true) {
    Command* command = nullptr;
    {
      std::lock_guard lock(mutex_);
      if (commands_.empty()) return;
      command = commands_.front();
      commands_.pop_front();
    }
    const int result = execute(*command);
    std::lock_guard lock(mutex_);
    command->result = result;
    command->done = true;
    changed_.notify_all();
  }
}

int RingThread::execute(const Command& command) {
  if (command.add) {
    if (!table_made_) {
      if (const int made = io_uring_register_buffers_sparse(&ring_, kTableSize); made < 0) {
        return -made;
      }
      table_made_ = true;
      pieces_.resize(kTableSize);
    }
    const auto place = std::find_if(pieces_.begin(), pieces_.end(),
                                    [](const Piece& piece) { return piece.length == 0; });
    if (place == pieces_.end()) return ENOSPC;
    const iovec vector{command.piece.data(), command.piece.size()};
    const __u64 tag = 0;
    const auto index = static_cast<unsigned>(place - pieces_.begin());
    const int set = io_uring_register_buffers_update_tag(&ring_, index, &vector, &tag, 1);
    if (set < 0) return -set;
    *place = {command.piece.data(), command.piece.size()};
    return 0;
  }
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Piece& piece = pieces_[i];
    if (piece.length == 0 || piece.start < command.piece.data() ||
        piece.start >= command.piece.data() + command.piece.size()) {
      continue;
    }
    const iovec none{nullptr, 0};
    const __u64 tag = 0;
    io_uring_register_buffers_update_tag(&ring_, static_cast<unsigned>(i), &none, &tag, 1);
    piece = {};
  }
  return 0;
}

}  // namespace nexus::io
