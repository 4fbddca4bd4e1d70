#include "tools/common/patient_sink.h"

#include <pthread.h>
#include <spdlog/details/log_msg_buffer.h>

#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

namespace nexus::tools {

namespace {
std::atomic<int> alive{0};  // threads of all sinks
}  // namespace

struct PatientSink::State {
  spdlog::sink_ptr inner;
  std::chrono::milliseconds patience;

  std::mutex mutex;  // guards the rest
  std::condition_variable changed;
  std::deque<spdlog::details::log_msg_buffer> lines;
  uint64_t taken = 0, written = 0;  // lines, ever
  size_t lost = 0;
  bool hangs = false;
  bool closed = false, ended = false;
};

PatientSink::PatientSink(spdlog::sink_ptr inner, std::chrono::milliseconds patience)
    : state_(std::make_shared<State>()) {
  state_->inner = std::move(inner);
  state_->patience = patience;
  // No signal of the process is for this thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  ++alive;
  std::thread([state = state_] { serve(state); }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

PatientSink::~PatientSink() {
  std::unique_lock lock(state_->mutex);
  state_->closed = true;
  state_->changed.notify_all();
  if (!state_->hangs) {
    state_->changed.wait_for(lock, state_->patience, [&] { return state_->ended; });
  }
}

int PatientSink::threads_alive() {
  return alive.load();
}

void PatientSink::log(const spdlog::details::log_msg& message) {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  if (state.lines.size() >= kLinesMax) {
    ++state.lost;
    return;
  }
  state.lines.emplace_back(message);
  const uint64_t line = ++state.taken;
  state.changed.notify_all();
  const bool known = state.changed.wait_for(lock, state.patience,
                                            [&] { return state.written >= line || state.hangs; });
  if (known) return;
  state.hangs = true;
  state.changed.notify_all();
}

void PatientSink::set_pattern(const std::string& pattern) {
  state_->inner->set_pattern(pattern);
}

void PatientSink::set_formatter(std::unique_ptr<spdlog::formatter> formatter) {
  state_->inner->set_formatter(std::move(formatter));
}

void PatientSink::serve(const std::shared_ptr<State>& shared) {
  State& state = *shared;
  pthread_setname_np(pthread_self(), "nx-log");
  const auto put = [&](const spdlog::details::log_msg& message) {
    try {
      state.inner->log(message);
      state.inner->flush();
    } catch (const std::exception&) {
      // A full disk: as the logger's error handler, nobody is told, and the next line is tried.
    }
  };
  std::unique_lock lock(state.mutex);
  while (true) {
    state.changed.wait(lock, [&] { return state.closed || !state.lines.empty(); });
    if (state.lines.empty()) break;
    const spdlog::details::log_msg_buffer line = std::move(state.lines.front());
    state.lines.pop_front();
    const size_t lost = state.lines.empty() ? std::exchange(state.lost, 0) : 0;
    lock.unlock();
    put(line);
    if (lost > 0) {
      const std::string text =
          "the log's disk did not answer: " + std::to_string(lost) + " lines are lost";
      put(spdlog::details::log_msg(line.logger_name, spdlog::level::warn, text));
    }
    lock.lock();
    ++state.written;
    if (state.lines.empty()) state.hangs = false;
    state.changed.notify_all();
  }
  --alive;  // what it touches from here on is its own
  state.ended = true;
  state.changed.notify_all();
}

}  // namespace nexus::tools
