// Logs a trouble once, however many reads meet it.
#pragma once

#include <spdlog/spdlog.h>

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_set>

namespace nexus::fs {

// Thread safety: warn() may be called from any thread.
class LogOnce {
 public:
  // `subject` and `reason` together are one trouble.
  void warn(const std::string& subject, const std::string& reason) {
    const size_t key = std::hash<std::string>()(subject + '\0' + reason);
    {
      std::lock_guard lock(mutex_);
      if (seen_.size() >= kSeenMax) seen_.clear();  // old troubles are then said again
      if (!seen_.insert(key).second) return;
    }
    spdlog::warn("{}: {}", subject, reason);
  }

 private:
  static constexpr size_t kSeenMax = 4096;
  std::mutex mutex_;  // guards seen_
  std::unordered_set<size_t> seen_;
};

}  // namespace nexus::fs
