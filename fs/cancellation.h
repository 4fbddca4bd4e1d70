// What it takes to stop an operation of several asynchronous steps (resolve a model, wait for its
// headers, fetch a range), whichever step it is in.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

namespace nexus::fs {

// Thread safety: every method may be called from any thread. Functions given to set() run without
// the lock, on the thread that cancels.
class Cancellation {
 public:
  // Begins a step: what was set for earlier steps is forgotten. The number goes to set().
  uint64_t begin_step() {
    std::lock_guard lock(mutex_);
    stop_ = nullptr;
    return ++step_;
  }
  // How to stop the step. Runs at once when cancel() came first; dropped when the step is over
  // already (its answer came before its ticket was known).
  void set(uint64_t step, std::function<void()> stop) {
    {
      std::lock_guard lock(mutex_);
      if (step != step_) return;
      if (!cancelled_) {
        stop_ = std::move(stop);
        return;
      }
    }
    stop();
  }
  void cancel() {
    std::function<void()> stop;
    {
      std::lock_guard lock(mutex_);
      cancelled_ = true;
      stop.swap(stop_);
    }
    if (stop) stop();
  }
  bool cancelled() const {
    std::lock_guard lock(mutex_);
    return cancelled_;
  }

 private:
  mutable std::mutex mutex_;  // guards everything below
  uint64_t step_ = 0;
  bool cancelled_ = false;
  std::function<void()> stop_;
};

}  // namespace nexus::fs
