#include "tools/common/link_choice.h"

#include <algorithm>
#include <optional>

namespace nexus::tools {
namespace {

constexpr uint64_t kConnectionsMax = 64;  // of the key max_connections

std::optional<uint64_t> number(const Json& object, const char* name) {
  if (!object.contains(name) || !object[name].is_number_unsigned()) return std::nullopt;
  return object[name].get<uint64_t>();
}

const Json* member(const Json& object, const std::string& name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found != object.end() && found->is_object() ? &*found : nullptr;
}

}  // namespace

LinkChoice choose_link(const Config& config, const Json& machine, const std::string& origin) {
  LinkChoice choice;
  choice.shape.connections = config.max_connections;
  choice.connections_from = config.max_connections_given ? "config" : "default";
  choice.part_bytes_from = "default";
  const Json* links = member(machine, "link");
  const Json* link = links ? member(*links, origin) : nullptr;
  const Json* best = link ? member(*link, "best") : nullptr;
  if (!best) return choice;
  const auto connections = number(*best, "connections"), range = number(*best, "range_bytes");
  if (!connections || *connections < 1 || *connections > kConnectionsMax || !range || *range == 0) {
    return choice;
  }
  if (link->contains("measured_at") && (*link)["measured_at"].is_string()) {
    choice.measured_at = (*link)["measured_at"].get<std::string>();
  }
  if (!config.max_connections_given) {
    choice.shape.connections = static_cast<int>(*connections);
    choice.connections_from = "nexus-tune link";
  }
  choice.shape.part_bytes = std::clamp(*range, kPartBytesLeast, kPartBytesMost);
  choice.part_bytes_from = "nexus-tune link";
  return choice;
}

Json link_choice_json(const std::string& origin, const LinkChoice& choice) {
  return {{"origin", origin},
          {"connections", choice.shape.connections},
          {"connections_from", choice.connections_from},
          {"part_bytes", choice.shape.part_bytes},
          {"part_bytes_from", choice.part_bytes_from},
          {"measured_at", choice.measured_at}};
}

}  // namespace nexus::tools
