#include "tools/nexusfs/commands.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>

#include "backend/store/smart.h"
#include "tools/common/model_words.h"
#include "tools/common/stats_json.h"
#include "tools/nexusfs/cache_commands.h"
#include "tools/nexusfs/layer_commands.h"
#include "tools/nexusfs/plan_command.h"

namespace nexus::tools {
namespace {

std::optional<std::string> text_member(const Json& request, const char* name) {
  if (!request.contains(name) || !request[name].is_string()) return std::nullopt;
  return request[name].get<std::string>();
}

Json origins_json(const std::vector<NamedOrigin>& origins) {
  Json list = Json::array();
  for (const NamedOrigin& named : origins) {
    const OriginActivity activity = named.origin->activity();
    list.push_back(Json{{"name", named.name},
                        {"origin", named.origin->describe()},
                        {"reachable", named.origin->reachable()},
                        {"retries", activity.retries},
                        {"hedges", activity.hedges}});
  }
  return list;
}

// Repo and revision -> the aliases that stand for it.
std::multimap<std::pair<std::string, std::string>, std::string> aliases_by_model(
    const Config& config) {
  std::multimap<std::pair<std::string, std::string>, std::string> names;
  for (const auto& [alias, model] : config.models)
    names.insert({{model.repo, model.revision}, alias});
  return names;
}

void add_model(Json& list, const std::string& name, const Model& model) {
  Json entry = {{"name", name},
                {"repo", model.repo()},
                {"revision", model.revision()},
                {"commit", model.commit()},
                {"source", model.source()}};
  if (const std::string error = model.error(); !error.empty()) entry["error"] = error;
  list.push_back(std::move(entry));
}

Json models_json(const Services& services) {
  const auto aliases = aliases_by_model(services.config);
  Json list = Json::array();
  for (const Registry::Known& known : services.registry.known()) {
    const std::shared_ptr<Model> model = services.registry.mounted(known.repo, known.revision);
    if (!model) continue;  // of an earlier run, not opened in this one
    const auto [first, last] = aliases.equal_range({known.repo, known.revision});
    std::string name = known.revision == "main" ? known.repo : known.repo + "@" + known.revision;
    if (first != last) name = first->second;
    add_model(list, name, *model);
  }
  return list;
}

Json pins_json(const Pins& pins) {
  Json list = Json::array();
  for (const Pin& pin : pins) list.push_back(Json{{"model", pin.model}, {"file", pin.file}});
  return list;
}

// What the zones' devices say of their wear; where they say nothing, why.
void add_smart(Json& zones) {
  for (Json& zone : zones) {
    if (zone["health"] == "down") continue;  // it may not answer
    const auto health = smart_of(zone["path"].get<std::string>());
    if (health) {
      zone["smart"] = Json{{"percentage_used", health->percentage_used},
                           {"bytes_written", health->bytes_written}};
    } else {
      zone["smart_reason"] = health.error().what;
    }
  }
}

Json status_json(const Services& services) {
  const auto uptime = std::chrono::steady_clock::now() - services.started;
  const Config& config = services.config;
  const CacheStats stats = services.cache.stats();
  Json status = {{"version", NEXUS_VERSION},
                 {"mountpoint", services.mountpoint},
                 {"pid", getpid()},
                 {"uptime_s", std::chrono::duration_cast<std::chrono::seconds>(uptime).count()},
                 {"config", config.file},
                 {"cache_dir", config.cache_dir},
                 {"cache_used_bytes", stats.disk_cache_bytes},
                 {"cache_max_bytes", stats.max_disk_cache_bytes},
                 {"cache_dir_hangs", stats.cache_dir_hangs},
                 {"integrity", config.integrity == Integrity::kStrict ? "strict" : "default"},
                 {"offline", config.offline}};
  if (services.mount_status) status.update(services.mount_status());
  status["origins"] = origins_json(services.origins);
  status["zones"] = zones_json(stats.zones);
  add_smart(status["zones"]);
  status["scrub"] = scrub_json(stats.scrub);
  status["pins"] = pins_json(services.cache.pins());
  status["models"] = models_json(services);
  return status;
}

Result<Json> ls_json(const Services& services, std::optional<std::string> model) {
  std::vector<CachedObject> objects = services.cache.list();
  if (model) {
    auto name = whole_model_name(services, *model);
    if (!name) return tl::unexpected(name.error());
    model = *name;
    const ModelFilter filter = model_filter(*model, services.config, services.registry);
    objects.erase(
        std::remove_if(objects.begin(), objects.end(),
                       [&](const CachedObject& object) { return !filter.matches(object); }),
        objects.end());
  }
  return Json{{"objects", objects_json(objects, services.cache.progress())}};
}

void refresh(const Services& services, const Json& request, ControlServer::Reply reply) {
  const auto model = text_member(request, "model");
  if (!model) return reply(fail(Code::kInvalid, "refresh: which model?"));
  const auto name = whole_model_name(services, *model);
  if (!name) return reply(tl::unexpected(name.error()));
  services.registry.refresh(
      *name, [reply = std::move(reply)](Result<std::pair<std::string, std::string>> commits) {
        if (!commits) return reply(tl::unexpected(commits.error()));
        reply(Json{{"old", commits->first}, {"new", commits->second}});
      });
}

}  // namespace

Result<std::string> whole_model_name(const Services& services, const std::string& text) {
  if (services.config.models.contains(text) || services.registry.is_alias(text)) return text;
  std::vector<std::string> known;
  for (const Registry::Known& model : services.registry.known()) known.push_back(model.repo);
  for (const CachedObject& object : services.cache.list()) known.push_back(object.model);
  const size_t at = std::min(text.find('@'), text.size());
  auto repo = complete_model_name(text.substr(0, at), known);
  if (!repo) return repo;
  return *repo + text.substr(at);
}

bool ModelFilter::matches(const CachedObject& object) const {
  return object.model == repo && object.name.compare(0, name_prefix.size(), name_prefix) == 0;
}

ModelFilter model_filter(const std::string& model, const Config& config, const Registry& registry) {
  std::string repo = model, revision;
  if (auto alias = config.models.find(model); alias != config.models.end()) {
    repo = alias->second.repo;
    revision = alias->second.revision;
  } else if (const size_t at = model.find('@'); at != std::string::npos) {
    repo = model.substr(0, at);
    revision = model.substr(at + 1);
  }
  if (revision.empty()) return {repo, ""};
  const auto mounted = registry.mounted(repo, revision);
  return {repo, repo + "@" + (mounted ? mounted->commit() : revision) + "/"};
}

ControlServer::Handler make_handler(Services services) {
  return [services = std::move(services)](const Json& request, ControlServer::Reply reply) {
    const std::string command = request["command"].get<std::string>();
    if (command == "status") {
      reply(status_json(services));
    } else if (command == "stats") {
      reply(
          stats_json(services.cache.stats(),
                     services.read_ahead ? services.read_ahead->stats() : prefetch::PrefetchStats{},
                     services.hosts(), services.queue()));
    } else if (command == "ls") {
      reply(ls_json(services, text_member(request, "model")));
    } else if (command == "config") {
      reply(services.config_json());
    } else if (command == "refresh") {
      refresh(services, request, std::move(reply));
    } else if (command == "plan") {
      plan(services, request, std::move(reply));
    } else if (command == "unmount") {
      if (!services.request_stop) return reply(fail(Code::kUnsupported, "this is no mount"));
      reply(Json{{"pid", getpid()}});
      services.request_stop();
    } else if (!handle_cache_command(services, request, reply) &&
               !handle_layer_command(services, request, reply)) {
      reply(fail(Code::kUnsupported,
                 "this daemon (" NEXUS_VERSION ") does not know the command '" + command + "'"));
    }
  };
}

}  // namespace nexus::tools
