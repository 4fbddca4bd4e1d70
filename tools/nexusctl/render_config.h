// The answer to nexusctl config (tools/nexusfs/config_json.h) for people. Trusts no member of it.
#pragma once

#include <string>

#include "tools/common/control_protocol.h"

namespace nexus::tools {

std::string render_config(const Json& answer);

}  // namespace nexus::tools
