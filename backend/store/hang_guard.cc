#include "backend/store/hang_guard.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

namespace nexus {

namespace {
// Threads that have nothing to do end after this.
constexpr std::chrono::seconds kIdleMax{30};
thread_local const void* serving = nullptr;  // the state of the guard whose thread this is
std::atomic<int> alive{0};  // threads of all guards
constexpr size_t kSometimeMax = 4096;  // calls that wait for a disk to come back; more are dropped

struct Call {
  std::function<void()> body;
  enum { kQueued, kRunning, kReturned } state = kQueued;
  bool given_up = false;  // nobody waits for it
};
}  // namespace

struct HangGuard::State {
  std::string name;
  std::chrono::milliseconds patience;
  std::function<void()> before;

  mutable std::mutex mutex;          // guards the rest
  std::condition_variable queued;    // for threads
  std::condition_variable returned;  // for callers
  std::deque<std::shared_ptr<Call>> queue;
  std::deque<std::shared_ptr<Call>> sometime;
  int threads = 0, idle = 0;
  int stuck = 0;  // calls that were given up and have not returned
  bool closed = false;
};

HangGuard::HangGuard(std::string name, Options options) : state_(std::make_shared<State>()) {
  state_->name = std::move(name);
  state_->patience = options.patience;
  state_->before = std::move(options.before);
}

HangGuard::~HangGuard() {
  std::unique_lock lock(state_->mutex);
  state_->closed = true;
  state_->queue.clear();
  state_->sometime.clear();
  state_->queued.notify_all();
  // What a call owned may have been the last owner of the guard.
  if (serving == state_.get()) return;
  // Those that do not hang are gone when this returns, so that nothing of ours runs at exit.
  state_->returned.wait_for(lock, state_->patience,
                            [&] { return state_->threads <= state_->stuck; });
}

int HangGuard::threads_alive() {
  return alive.load();
}

bool HangGuard::hung() const {
  std::lock_guard lock(state_->mutex);
  return state_->stuck > 0;
}

bool HangGuard::run(std::function<void()> call) {
  return run(std::move(call), state_->patience, false);
}

bool HangGuard::run_slow(std::function<void()> call) {
  return run(std::move(call), kSlow * state_->patience, false);
}

void HangGuard::run_sometime(std::function<void()> call) {
  run(std::move(call), state_->patience, true);
}

bool HangGuard::run(std::function<void()> body, std::chrono::milliseconds patience, bool sometime) {
  State& state = *state_;
  if (serving == &state) {  // part of a call that is guarded already
    body();
    return true;
  }
  const auto call = std::make_shared<Call>();
  call->body = std::move(body);
  std::unique_lock lock(state.mutex);
  if (state.closed) return false;
  if (state.stuck > 0) {
    if (sometime && state.sometime.size() < kSometimeMax) state.sometime.push_back(call);
    return false;
  }
  state.queue.push_back(call);
  // Each call has a thread of its own: none waits behind one that hangs.
  if (state.queue.size() <= static_cast<size_t>(state.idle)) {
    state.queued.notify_one();
  } else if (state.threads < kThreadsMax) {
    ++state.threads;
    ++alive;
    try {
      std::thread([shared = state_] { serve(shared); }).detach();
    } catch (const std::system_error&) {
      --state.threads;
      --alive;
      // No thread to be had: this one takes the risk. An earlier one of ours may serve the queue.
      std::erase(state.queue, call);
      lock.unlock();
      call->body();
      return true;
    }
  }
  if (state.returned.wait_for(lock, patience, [&] { return call->state == Call::kReturned; })) {
    return true;
  }
  if (call->state == Call::kQueued) {
    // All threads are out on calls that take long; those that hang are counted by their callers.
    if (!sometime) std::erase(state.queue, call);
    return false;
  }
  call->given_up = true;
  if (state.stuck++ == 0) {
    spdlog::error("cache: {} hangs: nothing is read from it or written to it until it answers",
                  state.name);
  }
  return false;
}

tl::unexpected<Error> hang_error(const std::string& what) {
  return fail(Code::kDisk, what + ": the disk hangs");
}

void HangGuard::serve(const std::shared_ptr<State>& shared) {
  State& state = *shared;
  serving = &state;
  ::pthread_setname_np(::pthread_self(), "nx-zone");
  std::unique_lock lock(state.mutex);
  while (!state.closed) {
    if (state.queue.empty()) {
      ++state.idle;
      const bool more = state.queued.wait_for(lock, kIdleMax,
                                              [&] { return state.closed || !state.queue.empty(); });
      --state.idle;
      if (!more) break;
      continue;
    }
    const auto call = std::move(state.queue.front());
    state.queue.pop_front();
    call->state = Call::kRunning;
    lock.unlock();
    if (state.before) state.before();
    call->body();
    call->body = nullptr;  // what it owns goes outside the lock
    lock.lock();
    call->state = Call::kReturned;
    if (call->given_up && --state.stuck == 0) {
      spdlog::warn("cache: {} answers again", state.name);
      for (auto& waiting : state.sometime) {
        state.queue.push_back(std::move(waiting));
      }
      state.sometime.clear();
    }
    state.returned.notify_all();
  }
  --state.threads;
  --alive;  // what it touches from here on is its own
  state.returned.notify_all();
}

}  // namespace nexus
