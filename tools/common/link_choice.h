// How many connections an origin gets and how much one request asks for: as configured, else as
// `nexus-tune link` measured it, else the defaults.
#pragma once

#include <cstdint>
#include <string>

#include "tools/common/config.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

struct LinkChoice {
  LinkShape shape;
  // "config", "nexus-tune link" or "default".
  std::string connections_from, part_bytes_from;
  std::string measured_at;  // of what was measured; "" where nothing is used of it
};

// `machine` is what io::load_machine() gives, from anybody: what makes no sense there is not used.
// `origin` is its describe().
LinkChoice choose_link(const Config& config, const Json& machine, const std::string& origin);

// {"origin", "connections", "connections_from", "part_bytes", "part_bytes_from", "measured_at"}
Json link_choice_json(const std::string& origin, const LinkChoice& choice);

}  // namespace nexus::tools
