#include "backend/base/executor.h"

#include <pthread.h>

#include <utility>

namespace nexus {

namespace {
void name_this_thread(const std::string& name) {
  pthread_setname_np(pthread_self(), name.substr(0, 15).c_str());
}
}  // namespace

LoopExecutor::LoopExecutor(std::string name) : name_(std::move(name)), thread_([this] { run(); }) {}

LoopExecutor::~LoopExecutor() {
  stop();
}

void LoopExecutor::post(Task task) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
}

uint64_t LoopExecutor::post_after(std::chrono::milliseconds delay, Task task) {
  uint64_t id;
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return 0;
    id = next_timer_++;
    const Time at = std::chrono::steady_clock::now() + delay;
    timers_.emplace(std::make_pair(at, id), std::move(task));
    timer_times_.emplace(id, at);
  }
  wake_.notify_one();
  return id;
}

void LoopExecutor::cancel(uint64_t timer) {
  std::lock_guard lock(mutex_);
  auto it = timer_times_.find(timer);
  if (it == timer_times_.end()) return;
  timers_.erase({it->second, timer});
  timer_times_.erase(it);
}

void LoopExecutor::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
  // Dropped outside the lock and not by the destructor: what a dropped task held may cancel other timers here.
  decltype(timers_) dropped;  // declared first: freed after the lock is released
  std::lock_guard lock(mutex_);
  dropped.swap(timers_);
  timer_times_.clear();
}

void LoopExecutor::run() {
  name_this_thread(name_);
  std::unique_lock lock(mutex_);
  for (;;) {
    if (!stopping_ && !timers_.empty() &&
        timers_.begin()->first.first <= std::chrono::steady_clock::now()) {
      auto node = timers_.extract(timers_.begin());
      timer_times_.erase(node.key().second);
      queue_.push_back(std::move(node.mapped()));
      continue;
    }
    if (!queue_.empty()) {
      Task task = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      task();
      task = nullptr;  // what it captured is freed outside the lock
      lock.lock();
      continue;
    }
    if (stopping_) return;
    if (timers_.empty()) {
      wake_.wait(lock);
    } else {
      const Time until = timers_.begin()->first.first;
      wake_.wait_until(lock, until);
    }
  }
}

ThreadPool::ThreadPool(std::string name, int threads) : name_(std::move(name)) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

ThreadPool::~ThreadPool() {
  stop();
}

void ThreadPool::post(Task task) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void ThreadPool::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
}

void ThreadPool::run() {
  name_this_thread(name_);
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Task task = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    task();
    task = nullptr;
    lock.lock();
  }
}

void ManualExecutor::post(Task task) {
  std::lock_guard lock(mutex_);
  queue_.push_back(std::move(task));
}

uint64_t ManualExecutor::post_after(std::chrono::milliseconds delay, Task task) {
  std::lock_guard lock(mutex_);
  const uint64_t id = next_timer_++;
  timers_.emplace(std::make_pair(now_ + delay, id), std::move(task));
  return id;
}

void ManualExecutor::cancel(uint64_t timer) {
  std::lock_guard lock(mutex_);
  for (auto it = timers_.begin(); it != timers_.end(); ++it) {
    if (it->first.second == timer) {
      timers_.erase(it);
      return;
    }
  }
}

int ManualExecutor::run_all() {
  int ran = 0;
  for (;;) {
    Task task;
    {
      std::lock_guard lock(mutex_);
      if (queue_.empty()) return ran;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
    ++ran;
  }
}

int ManualExecutor::advance(std::chrono::milliseconds by) {
  {
    std::lock_guard lock(mutex_);
    now_ += by;
    while (!timers_.empty() && timers_.begin()->first.first <= now_) {
      queue_.push_back(std::move(timers_.begin()->second));
      timers_.erase(timers_.begin());
    }
  }
  return run_all();
}

}  // namespace nexus
