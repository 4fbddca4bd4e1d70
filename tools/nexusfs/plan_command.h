// `nexusctl plan`: the order in which a model was walked, which read-ahead replays.
#pragma once

#include "tools/nexusfs/commands.h"

namespace nexus::tools {

// {"command": "plan", "action": "show" | "record" | "drop", "model"} ->
// {"model", "order": [layers], "recording": bool}. kUnsupported while read-ahead is off.
void plan(const Services& services, const Json& request, ControlServer::Reply reply);

}  // namespace nexus::tools
