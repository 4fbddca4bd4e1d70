#include "fs/limits.h"

#include <algorithm>

namespace nexus::fs {

namespace {
// Idle users are forgotten from here on, so that a machine with many uids does not grow the table.
constexpr size_t kUsersMax = 1024;

double seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}
}  // namespace

bool UidLimits::park(uid_t uid) {
  std::lock_guard lock(mutex_);
  if (parked_ >= options_.parked_max) return false;
  if (!privileged(uid)) {
    auto [it, fresh] = users_.try_emplace(uid);
    if (fresh) {
      it->second.tokens = options_.new_models_burst;
      it->second.refilled = std::chrono::steady_clock::now();
    }
    if (it->second.parked >= options_.parked_per_uid) return false;
    ++it->second.parked;
  }
  ++parked_;
  return true;
}

void UidLimits::unpark(uid_t uid) {
  std::lock_guard lock(mutex_);
  --parked_;
  if (!privileged(uid)) --users_.at(uid).parked;
}

bool UidLimits::begin_resolution(uid_t uid, Time now) {
  if (privileged(uid)) return true;
  std::lock_guard lock(mutex_);
  if (users_.size() > kUsersMax) prune_locked(now);
  auto [it, fresh] = users_.try_emplace(uid);
  User& user = it->second;
  if (fresh) {
    user.tokens = options_.new_models_burst;
  } else {
    const double gained = seconds(now - user.refilled) * options_.new_models_per_s;
    user.tokens = std::min(options_.new_models_burst, user.tokens + std::max(0.0, gained));
  }
  user.refilled = now;
  if (user.resolving >= options_.resolving_per_uid || user.tokens < 1) return false;
  user.tokens -= 1;
  ++user.resolving;
  return true;
}

void UidLimits::end_resolution(uid_t uid) {
  if (privileged(uid)) return;
  std::lock_guard lock(mutex_);
  --users_.at(uid).resolving;
}

size_t UidLimits::parked() const {
  std::lock_guard lock(mutex_);
  return parked_;
}

void UidLimits::prune_locked(Time now) {
  for (auto it = users_.begin(); it != users_.end();) {
    const User& user = it->second;
    const double tokens = user.tokens + seconds(now - user.refilled) * options_.new_models_per_s;
    const bool idle = user.parked == 0 && user.resolving == 0;
    it = idle && tokens >= options_.new_models_burst ? users_.erase(it) : std::next(it);
  }
}

}  // namespace nexus::fs
