// What a mount was told and what nexus-tune found for it: the answer to nexusctl config.
#pragma once

#include <string>
#include <vector>

#include "backend/io/engine.h"
#include "backend/io/tuning.h"
#include "tools/common/config.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

// The first zone's tuning: what the mount's engine takes its settings from. Logs whether it is
// used, and for each zone why not.
io::LoadedTuning load_mount_tuning(const Config& config);

// {"file", "config": {key: value}, "engine": {"io_uring", "reason", "direct_reason", "read",
// "write"},
//  "tuning": [{"zone", "state", "reason", "measured_at", "device", "read", "write"}], "machine"}
// Tuning and machine are read anew: what was measured since the mount shows, and is used by the
// next one; engine says what is used by this one.
Json config_json(const Config& config, const io::Engine& engine);

}  // namespace nexus::tools
