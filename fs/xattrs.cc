#include "fs/xattrs.h"

#include <utility>

namespace nexus::fs {

namespace {

using Values = std::vector<std::pair<std::string, std::string>>;  // without the prefix

const char* state_name(ObjectState state) {
  switch (state) {
    case ObjectState::kAbsent:
      return "absent";
    case ObjectState::kFetching:
      return "fetching";
    case ObjectState::kResident:
      return "resident";
  }
  return "absent";
}

Values values_of_file(const Node& node) {
  const ModelNode& entry = node.entry;
  Values values;
  auto add = [&](const char* name, std::string value) {
    values.emplace_back(name, std::move(value));
  };
  std::string error = entry.error;
  if (const auto& object = entry.object) {
    const ObjectInfo info = object->info();
    add("state", state_name(info.state));
    add("tier", info.tier);
    if (info.zone >= 0) add("zone", std::to_string(info.zone));
    add("bytes_cached", std::to_string(info.bytes_cached));
    add("hits", std::to_string(info.hits));
    add("verified", info.verified ? "sha256" : "none");
    if (!object->spec().etag.empty()) add("etag", object->spec().etag);
    if (error.empty()) error = info.error;
  } else if (error.empty()) {
    add("state", "resident");  // a few bytes that the daemon makes itself
    add("tier", "ram");
    add("bytes_cached", std::to_string(node.size()));
  }
  if (node.model) add("revision", node.model->commit());
  if (entry.layer >= 0) add("layer", std::to_string(entry.layer));
  if (entry.tensors > 0) add("tensors", std::to_string(entry.tensors));
  if (node.model) add("source", node.model->source());
  if (error.empty()) error = entry.note;
  if (!error.empty()) add("error", error);
  if (entry.object) add("pinned", entry.object->pinned() ? "1" : "0");
  return values;
}

// Values that cost nothing; stats, which may, is apart.
Values values_of_directory(const Node& node) {
  Values values;
  if (!node.model || !node.entry.path.empty()) return values;
  values.emplace_back("revision", node.model->commit());
  values.emplace_back("source", node.model->source());
  std::string error = node.model->error();
  if (!error.empty()) values.emplace_back("error", std::move(error));
  return values;
}

Values values_of(const Node& node) {
  return node.directory() ? values_of_directory(node) : values_of_file(node);
}

bool has_stats(const Node& node) {
  return node.kind == NodeKind::kRoot ||
         (node.kind == NodeKind::kModelDir && node.entry.path.empty());
}

}  // namespace

std::vector<std::string> xattr_names(const Node& node) {
  std::vector<std::string> names;
  if (has_stats(node)) names.push_back(std::string(kXattrPrefix) + "stats");
  for (const auto& [name, value] : values_of(node)) names.push_back(kXattrPrefix + name);
  if (node.entry.object && node.entry.object->resident()) names.emplace_back(kXattrHash);
  return names;
}

std::optional<std::string> xattr_value(const Node& node, const std::string& name,
                                       const StatsJson& stats_json) {
  constexpr size_t kPrefixSize = sizeof kXattrPrefix - 1;
  if (name.compare(0, kPrefixSize, kXattrPrefix) != 0) return std::nullopt;
  const std::string wanted = name.substr(kPrefixSize);
  if (wanted == "stats" && has_stats(node)) {
    if (!stats_json) return "{}";
    return stats_json(node.model ? node.model->repo() : "");
  }
  for (auto& [known, value] : values_of(node)) {
    if (known == wanted) return std::move(value);
  }
  return std::nullopt;
}

}  // namespace nexus::fs
