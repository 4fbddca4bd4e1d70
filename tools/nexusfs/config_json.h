// What a mount was told and what nexus-tune found for it: the answer to nexusctl config.
#pragma once

#include <map>
#include <string>

#include "backend/io/zone_engines.h"
#include "backend/store/store.h"
#include "tools/common/config.h"
#include "tools/common/control_protocol.h"
#include "tools/common/link_choice.h"

namespace nexus::tools {

// {"file", "config": {key: value},
//  "engines": [{"zones": [path], "io_uring", "reason", "direct_reason", "read", "write"}],
//  "tuning": [{"zone", "state", "reason", "measured_at", "device", "read", "write", "engine"}],
//  "links": [link_choice_json()], "machine"}
// Tuning and machine are read anew: what was measured since the mount shows, and is used by the
// next one; engines say what is used by this one, "engine" is the index of a zone's. `links` are by origin.
Json config_json(const Config& config, const Store& store, const io::ZoneEngines& engines,
                 const std::map<std::string, LinkChoice>& links);

}  // namespace nexus::tools
