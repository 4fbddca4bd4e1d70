// When to ask again, and when not to ask at all. Pure but for the circuit breaker's clock.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "backend/base/executor.h"
#include "backend/net/http_client.h"

namespace nexus {

struct RetryPolicy {
  int max_tries = 5;  // of one request in all
  // Of a request whose host could not be reached, not once: a dead origin is to be known as one
  // soon.
  int unreachable_tries = 2;
  std::chrono::milliseconds base{1000};         // waits: base, 2 base, 4 base, at most 8 base
  std::chrono::milliseconds server_cap{60000};  // the longest wait that a server may ask for
  int metadata_tries = 2;                       // of a listing: a dead origin is reported soon
  std::chrono::milliseconds metadata_timeout{30000};  // of one try of a listing or a HEAD
};

bool retryable_status(int status);  // 408, 429, 5xx

// How long the server asks to wait: Retry-After (seconds or a date), or of a 429 the RateLimit
// header
// (`"resolvers";r=0;t=55`: t + 1 seconds).
std::optional<std::chrono::milliseconds> server_wait(const HttpResponse& response,
                                                     std::chrono::system_clock::time_point now);

// The wait before the next try after `tries` failed ones; `jitter` in [0, 1) spreads it over 0.75
// to 1.25 of its length. What the server asked for is kept to, up to server_cap.
std::chrono::milliseconds retry_wait(const RetryPolicy& policy, int tries, double jitter,
                                     std::optional<std::chrono::milliseconds> asked);

double random_jitter();  // [0, 1)

// A task that calls `dropped` when it is thrown away without having run: an executor that stops
// drops its timers, and what waited for one must still be answered.
Task run_or_drop(Task run, Task dropped);

// Which hosts count as out of reach, by Url::origin(). Thread-safe.
class Reachability {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Reachability(std::chrono::milliseconds window = std::chrono::milliseconds(5000),
                        std::function<Clock::time_point()> now = &Clock::now)
      : window_(window), now_(std::move(now)) {}

  void failed(const std::string& origin);
  void answered(const std::string& origin);
  bool out(const std::string& origin) const;

 private:
  const std::chrono::milliseconds window_;
  const std::function<Clock::time_point()> now_;
  mutable std::mutex mutex_;  // guards until_
  std::map<std::string, Clock::time_point> until_;
};

}  // namespace nexus
