// What a mount was told and what nexus-tune found for it: the answer to nexusctl config.
#pragma once

#include <string>
#include <vector>

#include "backend/io/zone_engines.h"
#include "backend/store/store.h"
#include "tools/common/config.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

// What nexus-tune found for each zone, in the order of their numbers. Logs which are used, and of
// the others why not.
std::vector<io::ZoneTuning> load_zone_tunings(const Store& store);

// {"file", "config": {key: value},
//  "engines": [{"zones": [path], "io_uring", "reason", "direct_reason", "read", "write"}],
//  "tuning": [{"zone", "state", "reason", "measured_at", "device", "read", "write", "engine"}],
//  "machine"}
// Tuning and machine are read anew: what was measured since the mount shows, and is used by the
// next one; engines say what is used by this one, "engine" is the index of a zone's.
Json config_json(const Config& config, const Store& store, const io::ZoneEngines& engines);

}  // namespace nexus::tools
