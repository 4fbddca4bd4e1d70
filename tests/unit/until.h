// Waiting for what another thread does. No test sleeps for a time: it fails after kPatience.
#pragma once

#include <chrono>
#include <functional>
#include <thread>

namespace nexus::test {

inline constexpr std::chrono::seconds kPatience{60};

inline bool until(const std::function<bool()>& condition) {
  const auto end = std::chrono::steady_clock::now() + kPatience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

}  // namespace nexus::test
