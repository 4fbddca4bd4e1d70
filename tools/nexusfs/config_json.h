// What a mount was told and what nexus-tune found for it: the answer to nexusctl config.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "backend/io/zone_engines.h"
#include "tools/common/config.h"
#include "tools/common/control_protocol.h"
#include "tools/common/link_choice.h"

namespace nexus::tools {

// {"file", "config": {key: value},
//  "engines": [{"zones": [path], "io_uring", "reason", "direct_reason", "registered_reason",
//               "fixed_requests", "read", "write"}],
//  "tuning": [{"zone", "state", "reason", "measured_at", "device", "read", "write", "engine"}],
//  "links": [link_choice_json()], "machine"}
// `tunings` and `machine` are what the mount read at its start and goes by, so a disk that hangs
// holds up nobody who asks; what nexus-tune finds meanwhile shows at the next mount. "engine" is
// the index of a zone's. `links` are by origin.
Json config_json(const Config& config, const std::vector<io::ZoneTuning>& tunings,
                 const Json& machine, const io::ZoneEngines& engines,
                 const std::map<std::string, LinkChoice>& links);

}  // namespace nexus::tools
