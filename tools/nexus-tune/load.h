// One file between disk and memory with the settings that are stored: what a sweep promises,
// checked with the engine that keeps the promise.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "backend/base/error.h"

namespace nexus::tune {

struct LoadOptions {
  std::string file;
  std::string zone;    // whose tuning is used; empty: the first directory above `file` that has one
  bool write = false;  // from memory to the file, which is overwritten; else from it, cold
};

// {"file", "bytes", "seconds", "throughput_gbps", "prepare_s", "settings", "settings_from",
//  "io_uring", "direct", "registered", "cold", "reasons": [..]}. The memory is there
// before the time starts (prepare_s); it is registered within the time, as by a mount, where the
// settings say so. A write's time ends when it is durable.
Result<nlohmann::json> load_file(const LoadOptions& options);
// The largest file of a zone's objects; kNotFound.
Result<std::string> largest_object(const std::string& zone);

}  // namespace nexus::tune
