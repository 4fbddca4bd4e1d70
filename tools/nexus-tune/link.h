// What the way to an origin carries: ranges of one file, so many at once, each so large.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/origin/origin.h"
#include "tools/common/config.h"

namespace nexus::tune {

struct LinkPoint {
  unsigned connections = 0;
  uint64_t range_bytes = 0;
  double gbps = 0;
  double first_byte_ms = 0;  // median over the ranges, from the request to its first byte
  std::string error;         // of the first range that failed
};

struct LinkResult {
  std::string origin, model, file;
  std::vector<LinkPoint> points;
  int best = -1;  // within 3 % of the fastest, the one with fewest connections and smallest ranges
  bool interrupted = false;
};

struct LinkOptions {
  std::vector<unsigned> connections = {1, 2, 4, 8, 16};
  std::vector<uint64_t> range_bytes = {1 << 20, 4 << 20, 16 << 20, 64 << 20};
  uint64_t point_bytes = 256 << 20;  // at most so much for one point
  double point_seconds = 2;          // and no new range after this
};

// Through the configured origin: aliases of the config, else ORG/NAME[@REV] at its hub.
// kNotFound, kAccess, kOffline as a mount would; kUnsupported for a model that lies locally.
Result<LinkResult> measure_link(const tools::Config& config, const std::string& token,
                                const std::string& model, const LinkOptions& options,
                                const std::function<void(int, int)>& progress,
                                const std::atomic<bool>& stop);
nlohmann::json link_json(const LinkResult& result);
std::string link_table(const LinkResult& result);
int pick_link(const std::vector<LinkPoint>& points);

}  // namespace nexus::tune
