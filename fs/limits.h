// What one user may keep busy, see LimitOptions.
//
// Thread safety: every method may be called from any thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <mutex>
#include <unordered_map>

#include "fs/options.h"

namespace nexus::fs {

class UidLimits {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // `owner` (the daemon's uid) and root are bound by parked_max alone.
  UidLimits(LimitOptions options, uid_t owner) : options_(options), owner_(owner) {}

  bool privileged(uid_t uid) const { return uid == 0 || uid == owner_; }

  // True: counted, unpark() must follow. False: over a limit.
  bool park(uid_t uid);
  void unpark(uid_t uid);
  // A request to the hub for a model that is not mounted. True: end_resolution() must follow.
  bool begin_resolution(uid_t uid, Time now);
  void end_resolution(uid_t uid);
  size_t parked() const;

 private:
  struct User {
    size_t parked = 0;
    size_t resolving = 0;
    double tokens = 0;
    Time refilled;
  };
  void prune_locked(Time now);

  const LimitOptions options_;
  const uid_t owner_;
  mutable std::mutex mutex_;  // guards everything below
  size_t parked_ = 0;
  std::unordered_map<uid_t, User> users_;
};

}  // namespace nexus::fs
