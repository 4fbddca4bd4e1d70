// What nexus-tune found for a zone: kept in the zone's directory, used by the next mount.
//
// tuning.json, beside objects/:
//   {"version": 1, "measured_at": "2026-01-31T12:00:00Z", "kernel": "6.12.1",
//    "device": {"name", "model", "serial", "size_bytes", "file_system"},
//    "read": {"block_size", "queue_depth", "threads", "overlap", "single_submit", "direct",
//             "registered", "iopoll", "sqpoll", "throughput_gbps", "cpu_s_per_gb"}, "write": {..}}
// A direction that was not measured is absent. Not thread-safe; called at start and by nexus-tune.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "backend/base/error.h"
#include "backend/io/device.h"
#include "backend/io/settings.h"

namespace nexus::io {

struct TunedDirection {
  EngineSettings settings;
  double throughput_gbps = 0;  // 10^9 bytes a second
  double cpu_s_per_gb = 0;
};

struct Tuning {
  std::string measured_at;  // UTC, ISO 8601
  DeviceIdentity device;    // and kernel
  std::optional<TunedDirection> read, write;
};

enum class TuningState {
  kAbsent,  // never measured
  kFresh,   // measured on this device under this kernel
  kStale,   // on another device or kernel: not used
  kBad,     // the file cannot be read or makes no sense: not used
};
const char* tuning_state_name(TuningState state);

struct LoadedTuning {
  TuningState state = TuningState::kAbsent;
  std::string reason;  // of kStale and kBad
  Tuning tuning;       // of kFresh and kStale
  // What to use for each direction: the measured ones when fresh, else defaults.
  EngineSettings read_settings() const;
  EngineSettings write_settings() const;
};

inline constexpr const char* kTuningFile = "tuning.json";

// A direction that `tuning` lacks keeps what the file says of it, if that is of the same device.
Result<void> store_tuning(const std::string& zone, Tuning tuning);
LoadedTuning load_tuning(const std::string& zone);
// The same against a given device, for tests.
LoadedTuning load_tuning(const std::string& zone, const DeviceIdentity& now);

// What was measured of the machine rather than of a zone, in `cache_dir`/machine.json: "link" (by
// origin) and "host_to_device". Each entry keeps its date; a bad file counts as empty.
inline constexpr const char* kMachineFile = "machine.json";
nlohmann::json load_machine(const std::string& cache_dir);
Result<void> store_machine(const std::string& cache_dir, const nlohmann::json& machine);

nlohmann::json settings_json(const EngineSettings& settings);
// kInvalid names the member that is missing, of another type or out of bounds.
Result<EngineSettings> settings_from_json(const nlohmann::json& json);

}  // namespace nexus::io
