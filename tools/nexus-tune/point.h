// One configuration of a sweep and what was measured of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/io/histogram.h"
#include "backend/io/settings.h"

namespace nexus::tune {

enum class Direction { kRead, kWrite };
const char* direction_name(Direction direction);

// One run of one configuration.
struct Sample {
  uint64_t bytes = 0;
  double seconds = 0;
  double cpu_s = 0;  // of the process, kernel threads of its rings included
  io::Histogram submit, complete;
};

struct Point {
  io::EngineSettings settings;
  std::vector<double> gbps;          // of each run, 10^9 bytes a second
  std::vector<double> cpu_s_per_gb;  // the same
  io::Histogram submit, complete;    // of all runs
  std::string error;                 // not empty: it could not be measured

  void add(const Sample& sample);
  bool measured() const { return !gbps.empty(); }
  double throughput() const;  // median
  double cpu() const;         // median
  double spread() const;      // (max - min) / median
  uint64_t memory_bytes() const {
    return settings.block_size * settings.queue_depth * settings.threads;
  }
};

double median(std::vector<double> values);  // 0 of none

// "1 MiB x 16, overlapped, 1 thread, batched, direct"
std::string describe(const io::EngineSettings& settings);

// The point to use: of those within 3 % of the best throughput, those within 10 % of the lowest CPU
// time a byte among them; of these the one with the least memory in flight, the faster of two. -1
// when nothing was measured.
int pick_winner(const std::vector<Point>& points);

}  // namespace nexus::tune
