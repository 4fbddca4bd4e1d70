#include "fs/ring_queue.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <new>
#include <string>
#include <utility>

namespace nexus::fs {

namespace {

constexpr size_t kHeaderBytes = 4096;   // a page of its own
constexpr size_t kEntriesMax = 4096;    // of one queue
constexpr unsigned kRingEntries = 128;  // what is submitted at once
constexpr unsigned kTriesMax = 1000;    // of a registration, a millisecond apart

thread_local const RingQueue* serving = nullptr;  // the queue whose thread this is

}  // namespace

// Not touched: an entry costs memory from the first reply on that lay in it.
RingQueue::Block::Block(RingQueue& queue, unsigned count, size_t payload_bytes)
    : entries(count), bytes(count * (kHeaderBytes + payload_bytes)) {
  memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* next = static_cast<std::byte*>(memory);
  for (RingEntry& entry : entries) {
    entry.queue = &queue;
    entry.header = reinterpret_cast<abi::RequestHeader*>(next);
    entry.payload = {next + kHeaderBytes, payload_bytes};
    entry.buffers[0] = {entry.header, sizeof(abi::RequestHeader)};
    entry.buffers[1] = {entry.payload.data(), payload_bytes};
    next += kHeaderBytes + payload_bytes;
  }
}

RingQueue::Block::~Block() {
  ::munmap(memory, bytes);
}

RingQueue::RingQueue(Options options)
    : options_(std::move(options)),
      event_(::eventfd(0, EFD_CLOEXEC)),
      thread_([this] { run(); }) {}

RingQueue::~RingQueue() {
  stop();
}

int RingQueue::wait_until_started() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return started_; });
  return start_error_;
}

void RingQueue::begin() {
  std::lock_guard lock(mutex_);
  begun_ = true;
  changed_.notify_all();
}

void RingQueue::commit(RingEntry& entry) {
  if (serving == this) {
    committing_.push_back(&entry);
    return;
  }
  bool asleep;
  {
    std::lock_guard lock(mutex_);
    answered_.push_back(&entry);
    asleep = std::exchange(asleep_, false);
  }
  if (asleep) wake();
}

void RingQueue::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    asleep_ = false;
    changed_.notify_all();
  }
  wake();
  if (thread_.joinable()) thread_.join();
}

void RingQueue::wake() {
  const uint64_t one = 1;
  while (::write(event_.get(), &one, sizeof one) < 0 && errno == EINTR) {
  }
}

void RingQueue::run() {
  ::pthread_setname_np(::pthread_self(), "fuse-ring");
  sigset_t blocked;
  sigfillset(&blocked);
  // Faults stay with the thread that causes them.
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
    sigdelset(&blocked, fault);
  }
  ::pthread_sigmask(SIG_SETMASK, &blocked, nullptr);
  // Where its requests are made: handing one over then needs no other CPU. One that is offline has
  // none.
  cpu_set_t own;
  CPU_ZERO(&own);
  CPU_SET(options_.queue, &own);
  ::pthread_setaffinity_np(::pthread_self(), sizeof own, &own);
  const int error = event_ ? make_ring() : EMFILE;
  {
    std::lock_guard lock(mutex_);
    started_ = true;
    start_error_ = error;
    changed_.notify_all();
  }
  if (error != 0) return;
  if (wait_for_begin()) {
    serving = this;
    serve();
  }
  io_uring_queue_exit(&ring_);
}

// Only this thread submits: the kernel hands a request over in the context of the task that gave the
// entry's last command, so that task must be one that waits for nothing else, and must not end.
int RingQueue::make_ring() {
  io_uring_params params{};
  params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE |
                 IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  params.cq_entries = 4 * kRingEntries;
  if (const int made = io_uring_queue_init_params(kRingEntries, &ring_, &params); made != 0) {
    return -made;
  }
  cpu_set_t own;  // of look()
  CPU_ZERO(&own);
  CPU_SET(options_.queue, &own);
  io_uring_register_iowq_aff(&ring_, sizeof own, &own);
  const int registered = io_uring_register_files(&ring_, &options_.fuse_fd, 1);
  if (registered != 0) io_uring_queue_exit(&ring_);
  return -registered;
}

bool RingQueue::wait_for_begin() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return begun_ || stopping_; });
  return begun_ && !stopping_;
}

void RingQueue::serve() {
  grow();
  while (!ended_) {
    arm_wake();
    bool stopping;
    {
      std::lock_guard lock(mutex_);
      committing_.insert(committing_.end(), answered_.begin(), answered_.end());
      answered_.clear();
      stopping = stopping_;
      asleep_ = true;
    }
    prepare_answered();
    // One of our own requests would wait for us. Parking is closed, so all before it is answered.
    if (stopping && looks_ == 0) {
      io_uring_submit(&ring_);
      return;
    }
    const int submitted = io_uring_submit_and_wait(&ring_, 1);
    {
      std::lock_guard lock(mutex_);
      asleep_ = false;
    }
    if (submitted < 0 && submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) {
      spdlog::error("io_uring of the FUSE queue {}: {}", options_.queue, std::strerror(-submitted));
      return;
    }
    reap();
  }
}

// More entries as they are taken by requests that wait: with none left, whoever asks from this CPU
// would wait behind them.
void RingQueue::grow() {
  if (registered_ >= kEntriesMax || registered_ - held_ >= (options_.depth + 1) / 2) return;
  const auto count = static_cast<unsigned>(
      std::min<size_t>(registered_ == 0 ? options_.depth : std::max<size_t>(options_.depth, 16),
                       kEntriesMax - registered_));
  try {
    blocks_.push_back(std::make_unique<Block>(*this, count, options_.payload_bytes));
  } catch (const std::bad_alloc&) {
    spdlog::warn("no memory for more entries of the FUSE queue {}", options_.queue);
    if (registered_ == 0) options_.on_refused(ENOMEM);
    return;
  }
  for (RingEntry& entry : blocks_.back()->entries) prepare(entry, abi::kRegister);
  registered_ += count;
}

// Requests that came while all entries were held wait in the kernel, which looks for them when a
// reply is committed, not when entries are added. So a request of our own is made on this CPU, which
// is answered at once: with that reply comes the next one that waits, and so on until one is parked;
// then again. By the io_uring's own threads, as it may have to wait behind the others.
void RingQueue::look() {
  io_uring_sqe* const sqe = next_sqe();
  std::memset(sqe, 0, 2 * sizeof *sqe);
  io_uring_prep_statx(sqe, AT_FDCWD, options_.mountpoint.c_str(), AT_STATX_FORCE_SYNC, STATX_MODE,
                      &looked_);
  sqe->flags |= IOSQE_ASYNC;
  io_uring_sqe_set_data(sqe, &looked_);
  ++looks_;
  held_at_look_ = held_;
}

void RingQueue::arm_wake() {
  if (wake_armed_) return;
  io_uring_sqe* const sqe = next_sqe();
  std::memset(sqe, 0, 2 * sizeof *sqe);
  io_uring_prep_read(sqe, event_.get(), &wakes_, sizeof wakes_, 0);
  io_uring_sqe_set_data(sqe, &wakes_);
  wake_armed_ = true;
}

io_uring_sqe* RingQueue::next_sqe() {
  while (true) {
    if (io_uring_sqe* const sqe = io_uring_get_sqe(&ring_)) return sqe;
    io_uring_submit(&ring_);
  }
}

void RingQueue::prepare(RingEntry& entry, uint32_t command) {
  entry.command = command;
  io_uring_sqe* const sqe = next_sqe();
  std::memset(sqe, 0, 2 * sizeof *sqe);
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->flags = IOSQE_FIXED_FILE;
  sqe->fd = 0;  // of the registered files
  sqe->cmd_op = command;
  abi::Command argument{};
  argument.queue = options_.queue;
  if (command == abi::kRegister) {
    sqe->addr = reinterpret_cast<uint64_t>(entry.buffers);
    sqe->len = 2;
  } else {
    argument.commit_id = entry.commit_id;
  }
  // Offset 48: the command area begins in the first 64 bytes and goes on in the second.
  std::memcpy(reinterpret_cast<std::byte*>(sqe) + 48, &argument, sizeof argument);
  io_uring_sqe_set_data(sqe, &entry);
}

void RingQueue::prepare_answered() {
  for (RingEntry* entry : committing_) prepare(*entry, abi::kCommitAndFetch);
  held_ -= committing_.size();
  committing_.clear();
}

void RingQueue::reap() {
  arrived_.clear();
  unsigned head = 0, seen = 0;
  bool looked = false;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++seen;
    void* const of = io_uring_cqe_get_data(cqe);
    if (of == &wakes_) {
      wake_armed_ = false;
    } else if (of == &looked_) {
      looked = true;
      --looks_;
    } else {
      completed(*static_cast<RingEntry*>(of), cqe->res);
    }
  }
  io_uring_cq_advance(&ring_, seen);
  held_ += arrived_.size();
  const bool full = held_ >= registered_ && !arrived_.empty();
  grow();
  // Behind the new entries.
  if (full || (looked && held_ > held_at_look_)) look();
  for (size_t i = 0; i < arrived_.size(); ++i) {
    options_.on_request(*arrived_[i], i + 1 < arrived_.size());
  }
}

void RingQueue::completed(RingEntry& entry, int result) {
  if (result == 0) {
    entry.commit_id = entry.header->entry.commit_id;
    entry.tries = 0;
    arrived_.push_back(&entry);
  } else if (result == -EINTR || (result == -EAGAIN && ++entry.tries < kTriesMax)) {
    // Too early for a registration: the kernel is still busy with our answer to INIT.
    if (result == -EAGAIN) ::usleep(1000);
    prepare(entry, entry.command);
  } else if (result == -ENOTCONN || result == -ECONNABORTED || result == -ECANCELED) {
    ended_ = true;  // unmounted
  } else if (entry.command == abi::kRegister) {
    if (--registered_ == 0) options_.on_refused(-result);
  } else {
    // The entry is lost, the request had gone.
    --registered_;
    spdlog::debug("a reply in the FUSE queue {}: {}", options_.queue, std::strerror(-result));
  }
}

}  // namespace nexus::fs
