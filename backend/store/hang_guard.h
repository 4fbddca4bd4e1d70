// Calls on a disk that may never return. They run on threads of the guard's own, and whoever asked
// waits for a bounded time: a disk that hangs costs its callers that wait once, and from then on,
// until what hangs has returned, nothing.
//
// A thread that hangs cannot be ended. It is left behind, holds what its call owns, and goes on
// when the disk does; at most kThreadsMax of them wait in a zone.
//
// Thread safety: every method may be called from any thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

#include "backend/base/error.h"

namespace nexus {

class HangGuard {
 public:
  static constexpr std::chrono::seconds kPatience{10};
  static constexpr int kThreadsMax = 8;

  struct Options {
    std::chrono::milliseconds patience = kPatience;
    // For tests: runs before each call, on its thread, and may hang like a disk.
    std::function<void()> before = {};
  };
  HangGuard(std::string name, Options options);
  // Calls that hang are left alone; what is queued is dropped.
  ~HangGuard();
  HangGuard(const HangGuard&) = delete;
  HangGuard& operator=(const HangGuard&) = delete;

  // True when the call has returned. False when the disk hangs: the call was not begun, or has not
  // returned within the patience and may do so at any later time, so it must own all it touches.
  bool run(std::function<void()> call);
  // For syncs, which a slow disk that is well may be at for minutes: kSlow times the patience.
  bool run_slow(std::function<void()> call);
  static constexpr int kSlow = 30;
  // The same for calls that return something: what that was, nothing when the disk hangs.
  template <typename Call>
  std::optional<std::invoke_result_t<Call&>> get(Call call) {
    return get(std::move(call), &HangGuard::run);
  }
  template <typename Call>
  std::optional<std::invoke_result_t<Call&>> get_slow(Call call) {
    return get(std::move(call), &HangGuard::run_slow);
  }
  // As run(), but a call that could not be begun is made when the disk is back.
  void run_sometime(std::function<void()> call);

  // Some call has been out for longer than the patience.
  bool hung() const;

  // Of all guards of the process, those that are gone too: threads that may still run code of ours.
  // While there are any, a process must not end by exit(), which takes away what they use.
  static int threads_alive();

 private:
  template <typename Call>
  std::optional<std::invoke_result_t<Call&>> get(Call call,
                                                 bool (HangGuard::*how)(std::function<void()>)) {
    // The call's own: it may return when nobody waits any more.
    const auto result = std::make_shared<std::optional<std::invoke_result_t<Call&>>>();
    const bool answered =
        (this->*how)([result, call = std::move(call)]() mutable { result->emplace(call()); });
    return answered ? std::move(*result) : std::nullopt;
  }

  struct State;
  static void serve(const std::shared_ptr<State>& state);
  bool run(std::function<void()> call, std::chrono::milliseconds patience, bool sometime);
  const std::shared_ptr<State> state_;
};

// What is said of a call that got no answer: kDisk, "<what>: the disk hangs".
tl::unexpected<Error> hang_error(const std::string& what);

}  // namespace nexus
