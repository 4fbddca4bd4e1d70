#include "tools/nexusfs/plan_command.h"

#include <utility>

namespace nexus::tools {
namespace {

std::string text_of(const Json& request, const char* name) {
  return request.contains(name) && request[name].is_string() ? request[name].get<std::string>()
                                                             : "";
}

// What read-ahead calls the model; nothing when it is not mounted.
std::shared_ptr<Model> mounted_model(const Services& services, const ModelFilter& filter) {
  if (auto model = services.registry.mounted(filter.repo, "main");
      model && filter.name_prefix == "")
    return model;
  for (const Registry::Known& known : services.registry.known()) {
    const std::string prefix = known.repo + "@" + known.commit + "/";
    if (known.repo != filter.repo) continue;
    if (!filter.name_prefix.empty() && prefix != filter.name_prefix) continue;
    if (auto model = services.registry.mounted(known.repo, known.revision)) return model;
  }
  return nullptr;
}

}  // namespace

void plan(const Services& services, const Json& request, ControlServer::Reply reply) {
  const std::string name = text_of(request, "model"), word = text_of(request, "action");
  if (!services.read_ahead) {
    return reply(fail(Code::kUnsupported, "plan: read-ahead of layers is off in this mount"));
  }
  auto action = prefetch::PlanAction::kShow;
  if (word == "record") {
    action = prefetch::PlanAction::kRecord;
  } else if (word == "drop") {
    action = prefetch::PlanAction::kDrop;
  } else if (word != "show") {
    return reply(fail(Code::kInvalid, "plan: record, show or drop"));
  }
  if (name.empty()) return reply(fail(Code::kInvalid, "plan: which model?"));
  const auto whole_name = whole_model_name(services, name);
  if (!whole_name) return reply(tl::unexpected(whole_name.error()));
  const ModelFilter filter = model_filter(*whole_name, services.config, services.registry);
  const auto model = mounted_model(services, filter);
  if (!model && action == prefetch::PlanAction::kRecord) {
    return reply(fail(Code::kNotFound, "plan: " + name + " is not mounted; list it first"));
  }
  services.read_ahead->plan(
      action, filter.repo, model ? model->commit() : "",
      [reply = std::move(reply), repo = filter.repo, action](const std::vector<int>& order) {
        reply(Json{{"model", repo},
                   {"order", order},
                   {"recording", action == prefetch::PlanAction::kRecord}});
      });
}

}  // namespace nexus::tools
