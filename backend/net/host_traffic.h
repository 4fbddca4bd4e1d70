// What the HTTP client knows of the hosts it talks to: how much, how fast, how far away.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace nexus {

struct HostTraffic {
  std::string origin;        // scheme://host:port
  uint64_t requests = 0;     // that ended
  uint64_t failed = 0;       // of them, on the wire or by their answer; not those cancelled
  uint64_t retries = 0;      // requests sent again after one to this host failed
  uint64_t hedges = 0;       // second requests beside one that had gone quiet, put on the wire
  uint64_t bytes = 0;        // of bodies
  uint64_t active = 0;       // on the wire now
  double bytes_per_s = 0;    // all connections together, while any is busy: of late
  double round_trip_ms = 0;  // of TCP connects of late; 0: none yet
  double first_byte_ms = 0;  // from a request sent to its answer, of late; 0: none yet
};

// One host's counters. begin(), body() and end() from the client's thread alone; the rest from any.
class HostMeter {
 public:
  using Time = std::chrono::steady_clock::time_point;
  explicit HostMeter(std::string origin) : origin_(std::move(origin)) {}
  void begin(Time now);
  void body(uint64_t bytes, Time now);
  // `connect_ms`: how long the TCP handshake took, 0 where the connection was there; `first_byte_ms`: how long the
  // request waited for its answer's first byte, 0 where none came.
  void end(bool failed, double connect_ms, double first_byte_ms);
  void retry() { retries_.fetch_add(1, std::memory_order_relaxed); }
  void hedge() { hedges_.fetch_add(1, std::memory_order_relaxed); }
  HostTraffic traffic() const;

 private:
  const std::string origin_;
  std::atomic<uint64_t> requests_{0}, failed_{0}, bytes_{0}, active_{0}, retries_{0}, hedges_{0};
  std::atomic<double> bytes_per_s_{0}, round_trip_ms_{0}, first_byte_ms_{0};
  Time window_since_{};  // the client's thread
  uint64_t window_bytes_ = 0;
};

// Thread-safe. Bounded: hosts beyond kHostsMax are counted together.
class HostMeters {
 public:
  std::shared_ptr<HostMeter> of(const std::string& origin);
  std::vector<HostTraffic> list() const;  // as they were met

 private:
  static constexpr size_t kHostsMax = 64;
  mutable std::mutex mutex_;  // guards meters_
  std::vector<std::pair<std::string, std::shared_ptr<HostMeter>>> meters_;
};

// How much one request should ask for so that the wait for its first byte costs its connection at most 1/32 of its
// time, where `connections` share what the host that sends most sends. 0: the wait is not known yet.
uint64_t bytes_worth_a_request(const std::vector<HostTraffic>& hosts, int connections);

}  // namespace nexus
