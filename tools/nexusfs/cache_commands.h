// The commands that change the cache: warm, pin, unpin, invalidate, clear, verify, optimize, flush.
// Their members and answers are in control_protocol.h.
#pragma once

#include "tools/nexusfs/commands.h"

namespace nexus::tools {

// False when the command is none of these; else it is answered, now or later.
bool handle_cache_command(const Services& services, const Json& request,
                          const ControlServer::Reply& reply);

}  // namespace nexus::tools
