// Where work runs. Code that owns state runs on one executor and needs no lock; tests use
// ManualExecutor, so that the test decides when things happen.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace nexus {

using Task = std::function<void()>;

// Thread safety: every method may be called from any thread.
class Executor {
 public:
  virtual ~Executor() = default;
  // Runs `task` later, after everything posted before it. Never runs it inline.
  virtual void post(Task task) = 0;
  // Runs `task` once `delay` has passed. Returns an id for cancel().
  virtual uint64_t post_after(std::chrono::milliseconds delay, Task task) = 0;
  // Drops a timer that has not fired; one that has is left alone.
  virtual void cancel(uint64_t timer) = 0;
};

// One thread, tasks in order. Its queue has no bound of its own: what enters is bounded at
// admission (parked requests, flights), see docs/architecture.md "Threads".
class LoopExecutor final : public Executor {
 public:
  explicit LoopExecutor(std::string name);
  ~LoopExecutor() override;  // stop()
  void post(Task task) override;
  uint64_t post_after(std::chrono::milliseconds delay, Task task) override;
  void cancel(uint64_t timer) override;
  // Runs what is queued, drops timers, joins. Later posts are dropped. Idempotent.
  void stop();

 private:
  using Time = std::chrono::steady_clock::time_point;
  void run();

  const std::string name_;
  std::mutex mutex_;  // guards everything below but thread_
  std::condition_variable wake_;
  std::deque<Task> queue_;
  std::map<std::pair<Time, uint64_t>, Task> timers_;
  std::map<uint64_t, Time> timer_times_;
  uint64_t next_timer_ = 1;
  bool stopping_ = false;
  std::thread thread_;
};

// `threads` threads for work that may block on a disk or burn CPU (hashing, copying, packing).
class ThreadPool {
 public:
  ThreadPool(std::string name, int threads);
  ~ThreadPool();  // stop()
  void post(Task task);
  void stop();  // runs what is queued, joins; idempotent

 private:
  void run();

  const std::string name_;
  std::mutex mutex_;  // guards queue_, stopping_
  std::condition_variable wake_;
  std::deque<Task> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

// For tests: nothing runs until the test says so. Not thread-safe but for post().
class ManualExecutor final : public Executor {
 public:
  void post(Task task) override;
  uint64_t post_after(std::chrono::milliseconds delay, Task task) override;
  void cancel(uint64_t timer) override;
  // Runs queued tasks until none is left; returns how many ran.
  int run_all();
  // Moves the clock and runs the timers that are due, then run_all().
  int advance(std::chrono::milliseconds by);

 private:
  std::mutex mutex_;
  std::deque<Task> queue_;
  std::map<std::pair<std::chrono::milliseconds, uint64_t>, Task> timers_;
  std::chrono::milliseconds now_{0};
  uint64_t next_timer_ = 1;
};

}  // namespace nexus
