// FUSE over io_uring (Linux 6.14): requests of the mount come through the kernel's ring queues
// instead of read(2) of /dev/fuse, replies go back the same way, one system call for both.
//
// It stands between libfuse and the device (libfuse's custom I/O): a request that came through a
// ring is given to libfuse as if it had been read, and what libfuse writes for it is committed to
// its ring. So any thread may reply, later too, and INTERRUPT, which comes by the device as do
// FORGET and INIT, finds its request. libfuse 3.18's own io_uring has neither: it does not note
// requests for interrupts, and commits from the replying thread, to which the kernel then binds the
// next request.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "backend/base/executor.h"
#include "fs/fuse_api.h"
#include "fs/ring_queue.h"

namespace nexus::fs {

struct RingStatus {
  bool on = false;
  std::string reason;     // why it is off; else ""
  uint64_t requests = 0;  // that came through rings
};

class RingChannel {
 public:
  // `payload_bytes`: the most that a request or a reply may carry; `depth`: see RingQueue::Options.
  // `threads` serve what waits behind another request of its queue.
  RingChannel(size_t payload_bytes, unsigned depth, int threads);
  ~RingChannel();  // stop()

  // After the session was mounted, before anything is received. `userdata` of the session must be
  // an Edge, whose ring() this is. What cannot be had is in status(); the device then serves.
  void attach(fuse_session* session, std::string mountpoint);
  // Makes the rings; before anything is received.
  void start();
  // After the edge was closed. No more requests come; replies that are there are given, later ones
  // are dropped. The memory of
  // requests that are not answered stays until the end. Idempotent.
  void stop();
  RingStatus status() const;  // from any thread

  // Where the reply of the request that this thread is processing may be put, so that it needs no
  // copy; empty if that did not come through a ring, or is smaller. Only before the request is
  // parked or answered.
  static std::span<std::byte> reply_space(size_t size);

  // As read(2) and writev(2) of the device, for libfuse.
  ssize_t read(int fd, void* memory, size_t size);
  ssize_t writev(int fd, iovec* parts, int count);

 private:
  struct Active {
    RingEntry* entry;
    bool processed = false;  // libfuse knows it
  };

  void process(RingEntry& entry);
  void reply(RingEntry& entry, const iovec* parts, int count);
  void interrupt_again(uint64_t unique);
  void deliver_interrupt(uint64_t unique);
  void note_init(const void* message, size_t size);
  ssize_t write_init(int fd, const iovec* parts, int count);
  std::string why_not_offered() const;
  void refuse(std::string reason);

  const size_t payload_bytes_;
  const unsigned depth_;
  const int threads_;
  fuse_session* session_ = nullptr;
  std::string mountpoint_;
  bool made_ = false;                // the rings; constant once started
  std::atomic<bool> offered_{false};  // by the kernel, in INIT
  std::atomic<uint64_t> init_{0};     // unique of INIT, until it is answered
  std::atomic<bool> negotiated_{false};
  std::atomic<uint64_t> requests_{0};
  std::vector<std::unique_ptr<RingQueue>> queues_;
  std::unique_ptr<ThreadPool> pool_;

  mutable std::mutex mutex_;  // guards the rest
  std::string reason_ = "not mounted yet";  // why it is off; else ""
  std::unordered_map<uint64_t, Active> active_;  // by unique: not answered yet
  std::deque<uint64_t> early_;  // uniques whose interrupt came before them
};

}  // namespace nexus::fs
