#include "backend/origin/retry.h"

#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <memory>
#include <random>

namespace nexus {

namespace {

constexpr size_t kHostsMax =
    64;  // remembered as out of reach; beyond it the old ones are forgotten

std::optional<uint64_t> number_at(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{}) return std::nullopt;
  static_cast<void>(end);
  return value;
}

// Far beyond any cap, and far from overflow.
std::chrono::milliseconds seconds_capped(uint64_t seconds) {
  return std::chrono::seconds(std::min<uint64_t>(seconds, 1'000'000));
}

}  // namespace

bool retryable_status(int status) {
  return status == 408 || status == 429 || (status >= 500 && status <= 599);
}

std::optional<std::chrono::milliseconds> server_wait(const HttpResponse& response,
                                                     std::chrono::system_clock::time_point now) {
  if (auto text = response.header("retry-after"); text && !text->empty()) {
    const bool digits = std::all_of(text->begin(), text->end(),
                                    [](unsigned char c) { return c >= '0' && c <= '9'; });
    if (digits) {
      if (auto seconds = number_at(*text)) return seconds_capped(*seconds);
      return seconds_capped(UINT64_MAX);
    }
    const time_t date = curl_getdate(text->c_str(), nullptr);
    if (date >= 0) {
      const int64_t wait = static_cast<int64_t>(date) - std::chrono::system_clock::to_time_t(now);
      return seconds_capped(static_cast<uint64_t>(std::max<int64_t>(wait, 0)));
    }
  }
  if (response.status != 429) return std::nullopt;
  const auto limit = response.header("ratelimit");
  if (!limit) return std::nullopt;
  const size_t at = limit->find(";t=");
  if (at == std::string::npos) return std::nullopt;
  const auto seconds = number_at(std::string_view(*limit).substr(at + 3));
  if (!seconds) return std::nullopt;
  return seconds_capped(std::min<uint64_t>(*seconds, 1'000'000) + 1);
}

std::chrono::milliseconds retry_wait(const RetryPolicy& policy, int tries, double jitter,
                                     std::optional<std::chrono::milliseconds> asked) {
  const int doublings = std::clamp(tries - 1, 0, 3);
  const auto wait = std::chrono::duration_cast<std::chrono::milliseconds>(
      policy.base * (1 << doublings) * (0.75 + 0.5 * jitter));
  if (!asked) return wait;
  return std::max(wait, std::min(*asked, policy.server_cap));
}

double random_jitter() {
  thread_local std::minstd_rand engine{std::random_device{}()};
  return std::uniform_real_distribution<double>(0, 1)(engine);
}

Task run_or_drop(Task run, Task dropped) {
  struct Pending {
    Task run;
    Task dropped;
    ~Pending() {
      if (dropped) dropped();
    }
  };
  auto pending = std::make_shared<Pending>();
  pending->run = std::move(run);
  pending->dropped = std::move(dropped);
  return [pending] {
    pending->dropped = nullptr;
    pending->run();
  };
}

void Reachability::failed(const std::string& origin) {
  std::lock_guard lock(mutex_);
  if (until_.size() >= kHostsMax && !until_.contains(origin)) until_.clear();
  until_[origin] = now_() + window_;
}

void Reachability::answered(const std::string& origin) {
  std::lock_guard lock(mutex_);
  until_.erase(origin);
}

bool Reachability::out(const std::string& origin) const {
  std::lock_guard lock(mutex_);
  auto it = until_.find(origin);
  return it != until_.end() && now_() < it->second;
}

}  // namespace nexus
