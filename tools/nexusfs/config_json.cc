#include "tools/nexusfs/config_json.h"

#include "backend/net/redact.h"
#include "tools/common/size.h"

namespace nexus::tools {
namespace {

double in_gb(uint64_t bytes) {
  return static_cast<double>(bytes) / 1e9;
}

Json keys_json(const Config& config) {
  Json keys = {{"cache_dir", config.cache_dir},
               {"max_cache_size_gb", in_gb(config.max_cache_bytes)},
               {"max_memory_cache_size_gb", in_gb(config.max_memory_cache_bytes)},
               {"num_zones", config.num_zones},
               {"enable_wear_leveling", config.enable_wear_leveling},
               {"eviction_policy", config.eviction_policy},
               {"daily_write_budget_gb", in_gb(config.daily_write_budget_bytes)},
               {"migrate_interval", format_interval(config.migrate_interval)},
               {"scrub_interval", format_interval(config.scrub_interval)},
               {"max_connections", config.max_connections},
               {"enable_prefetch", config.enable_prefetch},
               {"prefetch_lookahead", config.prefetch_lookahead},
               {"background_fill", config.background_fill},
               {"enable_compression", false},  // true is refused
               {"persist_metadata", config.persist_metadata},
               {"integrity", config.integrity == Integrity::kStrict ? "strict" : "default"},
               {"profile", config.profile},
               {"list_views", config.list_views},
               {"endpoint", redact_url(config.endpoint)},
               {"offline", config.offline},
               {"hub_cache", config.hub_cache},
               {"token_file", config.token_file},
               {"ca_file", config.ca_file},
               {"netrc_file", config.netrc_file},
               {"allow_other", config.allow_other},
               {"fuse_io_uring", config.fuse_io_uring},
               {"fuse_io_uring_queue_depth", config.fuse_io_uring_queue_depth},
               {"metrics_listen", config.metrics_listen ? config.metrics_listen->text() : ""},
               {"log_file", config.log_file}};
  Json models = Json::object(), locals = Json::object(), base_urls = Json::object();
  for (const auto& [alias, model] : config.models) {
    models[alias] = model.repo + "@" + model.revision;
  }
  for (const auto& [alias, directory] : config.locals) locals[alias] = directory;
  for (const auto& [alias, url] : config.base_urls) base_urls[alias] = redact_url(url);
  keys["models"] = std::move(models);
  keys["local"] = std::move(locals);
  keys["base_url"] = std::move(base_urls);
  return keys;
}

Json direction_json(const io::TunedDirection& direction) {
  Json json = io::settings_json(direction.settings);
  json["throughput_gbps"] = direction.throughput_gbps;
  json["cpu_s_per_gb"] = direction.cpu_s_per_gb;
  return json;
}

Json zone_json(const std::string& zone, const io::LoadedTuning& loaded) {
  Json json = {
      {"zone", zone}, {"state", io::tuning_state_name(loaded.state)}, {"reason", loaded.reason}};
  const bool measured =
      loaded.state == io::TuningState::kFresh || loaded.state == io::TuningState::kStale;
  if (!measured) return json;
  json["measured_at"] = loaded.tuning.measured_at;
  json["device"] = loaded.tuning.device.describe();
  json["kernel"] = loaded.tuning.device.kernel;
  if (loaded.tuning.read) json["read"] = direction_json(*loaded.tuning.read);
  if (loaded.tuning.write) json["write"] = direction_json(*loaded.tuning.write);
  return json;
}

Json engine_json(const io::Engine& engine) {
  const io::EngineReport report = engine.report();
  return {{"zones", Json::array()},
          {"io_uring", report.io_uring},
          {"reason", report.reason},
          {"direct_reason", report.direct_reason},
          {"registered_reason", report.registered_reason},
          {"fixed_requests", report.fixed_requests},
          {"read", io::settings_json(engine.read_settings())},
          {"write", io::settings_json(engine.write_settings())}};
}

}  // namespace

Json config_json(const Config& config, const std::vector<io::ZoneTuning>& tunings,
                 const Json& machine, const io::ZoneEngines& engines,
                 const std::map<std::string, LinkChoice>& links) {
  Json used = Json::array();
  for (const auto& engine : engines.engines()) used.push_back(engine_json(*engine));
  Json tuning = Json::array();
  for (size_t i = 0; i < tunings.size(); ++i) {
    const size_t engine = engines.index_of(static_cast<int>(i));
    used[engine]["zones"].push_back(tunings[i].zone);
    Json zone = zone_json(tunings[i].zone, tunings[i].loaded);
    zone["engine"] = engine;
    tuning.push_back(std::move(zone));
  }
  Json chosen = Json::array();
  for (const auto& [origin, choice] : links) chosen.push_back(link_choice_json(origin, choice));
  return Json{{"file", config.file},        {"config", keys_json(config)},
              {"engines", std::move(used)}, {"tuning", std::move(tuning)},
              {"links", std::move(chosen)}, {"machine", machine}};
}

}  // namespace nexus::tools
