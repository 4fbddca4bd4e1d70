#include "tools/nexus-tune/point.h"

#include <algorithm>

namespace nexus::tune {

namespace {

constexpr double kThroughputSlack = 0.03;
constexpr double kCpuSlack = 0.10;

std::string block_text(uint64_t bytes) {
  if (bytes % (1 << 20) == 0) return std::to_string(bytes >> 20) + " MiB";
  return std::to_string(bytes >> 10) + " KiB";
}

}  // namespace

const char* direction_name(Direction direction) {
  return direction == Direction::kRead ? "read" : "write";
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

void Point::add(const Sample& sample) {
  const double gb = static_cast<double>(sample.bytes) / 1e9;
  gbps.push_back(gb / std::max(sample.seconds, 1e-9));
  cpu_s_per_gb.push_back(sample.cpu_s / std::max(gb, 1e-9));
  submit.merge(sample.submit);
  complete.merge(sample.complete);
}

double Point::throughput() const {
  return median(gbps);
}

double Point::cpu() const {
  return median(cpu_s_per_gb);
}

double Point::spread() const {
  if (gbps.empty()) return 0;
  const auto [least, most] = std::minmax_element(gbps.begin(), gbps.end());
  return (*most - *least) / std::max(throughput(), 1e-9);
}

std::string describe(const io::EngineSettings& settings) {
  std::string text =
      block_text(settings.block_size) + " x " + std::to_string(settings.queue_depth) +
      (settings.overlap ? ", overlapped, " : ", sequential, ") + std::to_string(settings.threads) +
      (settings.threads == 1 ? " thread, " : " threads, ") +
      (settings.single_submit ? "single, " : "batched, ") +
      (settings.direct ? "direct" : "buffered");
  if (settings.registered) text += ", registered";
  if (settings.iopoll) text += ", IOPOLL";
  if (settings.sqpoll) text += ", SQPOLL";
  return text;
}

int pick_winner(const std::vector<Point>& points) {
  double best = 0;
  for (const Point& point : points) best = std::max(best, point.throughput());
  if (best <= 0) return -1;
  const auto fast = [&](const Point& point) {
    return point.throughput() >= best * (1 - kThroughputSlack);
  };
  double least_cpu = 1e300;
  for (const Point& point : points) {
    if (fast(point)) least_cpu = std::min(least_cpu, point.cpu());
  }
  int winner = -1;
  for (size_t i = 0; i < points.size(); ++i) {
    const Point& point = points[i];
    if (!fast(point) || point.cpu() > least_cpu * (1 + kCpuSlack)) continue;
    if (winner >= 0) {
      const Point& before = points[static_cast<size_t>(winner)];
      if (point.memory_bytes() > before.memory_bytes()) continue;
      if (point.memory_bytes() == before.memory_bytes() &&
          point.throughput() <= before.throughput()) {
        continue;
      }
    }
    winner = static_cast<int>(i);
  }
  return winner;
}

}  // namespace nexus::tune
