// The commands of libnexuscache: layer, put, download (control_protocol.h).
#pragma once

#include "tools/nexusfs/commands.h"

namespace nexus::tools {

// Answers `request` when it is one of these; false when it is not.
bool handle_layer_command(const Services& services, const Json& request,
                          const ControlServer::Reply& reply);

}  // namespace nexus::tools
