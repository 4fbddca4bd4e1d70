#include "backend/net/host_traffic.h"

#include <algorithm>
#include <utility>

namespace nexus {

namespace {
constexpr std::chrono::milliseconds kWindow{500};
constexpr double kWeight = 0.3;  // of a new measurement
constexpr const char* kOthers = "others";
// Bytes per second that a connection may well bring, before it was measured.
constexpr double kEachLeast = 25e6;

void average(std::atomic<double>& mean, double value) {
  const double old = mean.load(std::memory_order_relaxed);
  mean.store(old == 0 ? value : old + kWeight * (value - old), std::memory_order_relaxed);
}
}  // namespace

void HostMeter::begin(Time now) {
  if (active_.fetch_add(1, std::memory_order_relaxed) > 0) return;
  window_since_ = now;  // idle time says nothing of the link
  window_bytes_ = 0;
}

void HostMeter::body(uint64_t bytes, Time now) {
  bytes_.fetch_add(bytes, std::memory_order_relaxed);
  window_bytes_ += bytes;
  if (now - window_since_ < kWindow) return;
  const double seconds = std::chrono::duration<double>(now - window_since_).count();
  average(bytes_per_s_, static_cast<double>(window_bytes_) / seconds);
  window_since_ = now;
  window_bytes_ = 0;
}

void HostMeter::end(bool failed, double connect_ms, double first_byte_ms) {
  active_.fetch_sub(1, std::memory_order_relaxed);
  requests_.fetch_add(1, std::memory_order_relaxed);
  if (failed) failed_.fetch_add(1, std::memory_order_relaxed);
  if (connect_ms > 0) average(round_trip_ms_, connect_ms);
  if (first_byte_ms > 0) average(first_byte_ms_, first_byte_ms);
}

HostTraffic HostMeter::traffic() const {
  return {origin_, requests_, failed_,      retries_,      hedges_,
          bytes_,  active_,   bytes_per_s_, round_trip_ms_, first_byte_ms_};
}

std::shared_ptr<HostMeter> HostMeters::of(const std::string& origin) {
  std::lock_guard lock(mutex_);
  for (const auto& [name, meter] : meters_) {
    if (name == origin || (name == kOthers && meters_.size() > kHostsMax)) return meter;
  }
  const std::string name = meters_.size() < kHostsMax ? origin : kOthers;
  meters_.emplace_back(name, std::make_shared<HostMeter>(name));
  return meters_.back().second;
}

uint64_t bytes_worth_a_request(const std::vector<HostTraffic>& hosts, int connections) {
  const auto most = std::max_element(hosts.begin(), hosts.end(),
                                     [](auto& a, auto& b) { return a.bytes < b.bytes; });
  if (most == hosts.end() || connections < 1) return 0;
  const double each = std::max(most->bytes_per_s / connections, kEachLeast);
  return static_cast<uint64_t>(32 * each * most->first_byte_ms / 1000);
}

std::vector<HostTraffic> HostMeters::list() const {
  std::lock_guard lock(mutex_);
  std::vector<HostTraffic> all;
  for (const auto& [name, meter] : meters_) all.push_back(meter->traffic());
  return all;
}

}  // namespace nexus
