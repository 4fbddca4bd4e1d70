// Requests that wait. A serving thread parks a request and goes on; whoever finishes it first
// answers: the completion, an interrupt, or the closing mount.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "backend/base/executor.h"
#include "fs/cancellation.h"
#include "fs/fuse_api.h"
#include "fs/limits.h"

namespace nexus::fs {

class Parking;

struct Parked {
  fuse_req_t request = nullptr;  // valid for the one who won Parking::finish()
  uint64_t id = 0;
  uid_t uid = 0;
  pid_t tid = 0;
  const std::shared_ptr<Cancellation> cancellation = std::make_shared<Cancellation>();

 private:
  friend class Parking;
  std::atomic<bool> answered{false};
  std::mutex mutex;          // guards the two below
  bool armed = false;        // the serving thread has left fuse_req_interrupt_func
  bool interrupted = false;  // before it was armed
};

// Thread safety: every method may be called from any thread. Lock order: libfuse's request lock,
// then mutex_, never the other way: no fuse_ function is called with mutex_ held.
class Parking {
 public:
  // The right to answer one request: true for exactly one caller. While it lives, the session does.
  class Answer {
   public:
    explicit Answer(Parking* parking) : parking_(parking) {}
    Answer(Answer&& other) noexcept : parking_(std::exchange(other.parking_, nullptr)) {}
    Answer& operator=(Answer&&) = delete;
    ~Answer();
    explicit operator bool() const { return parking_ != nullptr; }

   private:
    Parking* parking_;
  };

  // Interrupts are carried out on `aux`: libfuse holds a lock of the request while it calls us.
  Parking(UidLimits& limits, Executor& aux) : limits_(limits), aux_(aux) {}

  // Registers a request before its operation begins. Null: it was answered already (EAGAIN over a
  // limit, EINTR when its interrupt came first, EIO when closing).
  std::shared_ptr<Parked> park(fuse_req_t request);
  // True for exactly one caller, who then replies on parked->request while the Answer lives.
  Answer finish(const std::shared_ptr<Parked>& parked);
  bool answered(const Parked& parked) const { return parked.answered.load(); }
  // Answers everything with EIO, and all that is parked from now on.
  void close();
  // After close(): returns once every answer is given, so that the session may go.
  void drain();

 private:
  static void on_interrupt(fuse_req_t request, void* id);
  void interrupt(uint64_t id);
  std::shared_ptr<Parked> find(uint64_t id);

  UidLimits& limits_;
  Executor& aux_;
  std::mutex mutex_;  // guards everything below
  bool closed_ = false;
  int answering_ = 0;
  std::condition_variable answered_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, std::shared_ptr<Parked>> parked_;
};

}  // namespace nexus::fs
