// One of the kernel's queues of FUSE over io_uring: it has one for each CPU, for the requests of the
// tasks that run there. A thread owns the io_uring; an entry is a pair of buffers in which a request
// lies from its arrival until its reply is committed.
#pragma once

#include <liburing.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/disk_io.h"
#include "fs/uring_abi.h"

namespace nexus::fs {

class RingQueue;

struct RingEntry {
  RingQueue* queue = nullptr;
  abi::RequestHeader* header = nullptr;
  std::span<std::byte> payload;
  iovec buffers[2] = {};
  uint64_t commit_id = 0;    // of the request that lies in it
  uint32_t command = 0;      // the last one that was given
  unsigned tries = 0;        // of a registration that came too early
};

// Thread safety: begin(), commit() and stop() may be called from any thread, the rest from the one
// that made it.
class RingQueue {
 public:
  struct Options {
    int fuse_fd = -1;
    uint16_t queue = 0;          // the CPU's number
    std::string mountpoint;
    size_t payload_bytes = 0;    // of an entry, a multiple of the page size
    unsigned depth = 0;          // entries at the start; more come as requests are parked
    // A request has arrived; the entry is the callee's until commit(). Called on the queue's thread;
    // `more`: others wait behind it.
    std::function<void(RingEntry&, bool more)> on_request;
    // The kernel takes none of its entries: errno. Called on the queue's thread.
    std::function<void(int)> on_refused;
  };

  explicit RingQueue(Options options);
  ~RingQueue();  // stop()
  RingQueue(const RingQueue&) = delete;
  RingQueue& operator=(const RingQueue&) = delete;

  // 0 once the thread has its io_uring, else errno: io_uring is refused here.
  int wait_until_started();
  // The connection is negotiated: entries are registered.
  void begin();
  // Gives the reply that lies in the entry to the kernel, soon. Afterwards it may hold the next
  // request already.
  void commit(RingEntry& entry);
  // Commits what was answered and joins. Later commits are dropped. Idempotent; not from the
  // queue's own thread.
  void stop();

 private:
  struct Block {
    Block(RingQueue& queue, unsigned entries, size_t payload_bytes);
    ~Block();
    Block(const Block&) = delete;
    std::vector<RingEntry> entries;
    void* memory = nullptr;
    size_t bytes = 0;
  };

  void run();
  int make_ring();
  bool wait_for_begin();
  void serve();
  void grow();
  void look();
  void arm_wake();
  void reap();
  void completed(RingEntry& entry, int result);
  void prepare(RingEntry& entry, uint32_t command);
  void prepare_answered();
  io_uring_sqe* next_sqe();
  void wake();

  const Options options_;
  io_uring ring_{};
  uint64_t wakes_ = 0;  // where the read of the eventfd goes
  bool wake_armed_ = false;
  bool ended_ = false;  // the connection is gone
  size_t registered_ = 0, held_ = 0;  // entries; those of them that hold a request
  size_t looks_ = 0, held_at_look_ = 0;  // under way; what was held when the last began
  struct statx looked_ {};               // not looked at
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<RingEntry*> arrived_;
  std::vector<RingEntry*> committing_;

  std::mutex mutex_;  // guards the next five
  std::condition_variable changed_;
  bool started_ = false, begun_ = false, stopping_ = false;
  bool asleep_ = false;  // the thread waits, or is about to, for the kernel
  int start_error_ = 0;
  std::vector<RingEntry*> answered_;

  UniqueFd event_;
  std::thread thread_;
};

}  // namespace nexus::fs
