// What a sweep found, for programs and for people.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "backend/io/tuning.h"
#include "tools/nexus-tune/fast_paths.h"
#include "tools/nexus-tune/sweep.h"
#include "tools/nexus-tune/zone.h"

namespace nexus::tune {

using Json = nlohmann::json;

struct Report {
  std::string zone;
  io::DeviceIdentity device;
  std::string measured_at;  // UTC, ISO 8601
  uint64_t file_bytes = 0;
  bool full = false;
  bool storable = true;  // the zone can be written
  std::optional<SweepResult> read, write;
  std::vector<std::string> notes;  // what limits the figures: "the page cache was not dropped: .."
  std::vector<FastPath> fast_paths;
};

// {"zone", "device", "read": {"best": {..}, "points": [..]}, "write": ..}. "write" is absent when
// it was not measured, "best" is null when nothing could be. A point holds its settings,
// throughput_gbps (median), runs_gbps, spread, submit_us and complete_us ({p50, p99, max}),
// cpu_s_per_gb, memory_bytes, or "error".
Json report_json(const Report& report);
// A line for each point of each direction.
std::string report_csv(const std::vector<Report>& reports);
// The best of each direction and the runners-up, notes and fast paths that are off.
std::string report_table(const Report& report);
// Its last part: notes, and a line for each fast path that is off.
std::string report_remarks(const Report& report);
// One file, without anything from elsewhere.
std::string report_html(const std::vector<Report>& reports);
// What the zone keeps of it.
io::Tuning tuning_of(const Report& report);

std::string now_utc();

}  // namespace nexus::tune
