#include "tools/nexusfs/engine.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "backend/net/redact.h"
#include "backend/origin/base_url.h"
#include "backend/origin/hub.h"
#include "backend/origin/local_dir.h"
#include "tools/nexusfs/config_json.h"
#include "tools/nexusfs/model_files.h"
#include "tools/nexusfs/zone_io.h"

namespace nexus::tools {
namespace {

constexpr int kOriginTries = 5;
constexpr std::chrono::seconds kRetryBase{1};
// The daemon of a mount that was just taken off may still be writing its last rows.
constexpr auto kLockWait = std::chrono::seconds(10);
constexpr auto kLockRetry = std::chrono::milliseconds(100);

int pool_threads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2u, 8u));
}

}  // namespace

Result<std::unique_ptr<CacheEngine>> CacheEngine::start(const Config& config,
                                                        const std::string& token) {
  std::unique_ptr<CacheEngine> engine(new CacheEngine(config));
  if (auto ok = engine->open_store(); !ok) return tl::unexpected(ok.error());

  HttpOptions http;
  http.max_connections_per_host = engine->config_.max_connections;
  http.user_agent = "nexusfs/" NEXUS_VERSION;
  http.ca_file = engine->config_.ca_file;
  http.netrc_file = engine->config_.netrc_file;
  engine->http_ = std::make_unique<HttpClient>(std::move(http));
  engine->pool_ = std::make_unique<ThreadPool>("nexus-pool", pool_threads());
  engine->timers_ = std::make_unique<LoopExecutor>("nexus-timers");
  engine->make_origins(token);

  CacheOptions cache;
  cache.disk_bytes = engine->config_.max_cache_bytes;
  cache.ram_bytes = engine->config_.max_memory_cache_bytes;
  cache.integrity = engine->config_.integrity;
  cache.max_connections = engine->config_.max_connections;
  cache.request_bytes = [http = engine->http_.get(), connections = cache.max_connections] {
    return bytes_worth_a_request(http->hosts(), connections);
  };
  cache.eviction_policy = engine->config_.eviction_policy;
  cache.migrate_interval = engine->config_.migrate_interval;
  cache.scrub_interval = engine->config_.scrub_interval;
  engine->tunings_ = load_zone_tunings(*engine->store_);
  engine->engines_ = std::make_unique<io::ZoneEngines>(engine->tunings_);
  use_zone_engines(*engine->engines_, cache);
  for (const auto& [origin, choice] : engine->links_) cache.links[origin] = choice.shape;
  engine->ram_ = RamTier::open({cache.ram_bytes}, &engine->ram_reason_);
  cache.ram = engine->ram_;
  engine->cache_ = std::make_unique<Cache>(cache, *engine->store_);
  engine->registry_ = std::make_unique<Registry>(engine->registry_options_, *engine->cache_,
                                                 *engine->store_, *engine->timers_, *engine->pool_);
  engine->start_read_ahead();
  engine->start_fill();
  return engine;
}

CacheEngine::~CacheEngine() {
  stop();
}

// Last in, first out; and what still waits is told so before the parts that would answer it go.
void CacheEngine::stop() {
  if (fill_) fill_->stop();
  if (fill_thread_) fill_thread_->stop();
  if (registry_) registry_->stop();
  if (read_ahead_) read_ahead_->stop();
  if (cache_) cache_->stop();
  // Late callbacks of cancelled transfers run to their end while what they use is still there.
  if (http_) http_->stop();
  if (timers_) timers_->stop();
  if (pool_) pool_->stop();
  fill_.reset();
  read_ahead_.reset();
  registry_.reset();
  cache_.reset();
  if (store_) store_->close();
}

Services CacheEngine::services() {
  return {config_,
          "",
          std::chrono::steady_clock::now(),
          *cache_,
          *registry_,
          origins_,
          {},
          read_ahead_.get(),
          [this] { return http_->hosts(); },
          [this] { return http_->queue(); },
          {},
          [this] { return config_json(config_, tunings_, machine_, *engines_, links_); },
          *timers_,
          *pool_};
}

Result<void> CacheEngine::open_store() {
  StoreOptions options;
  options.cache_dir = config_.cache_dir;
  options.num_zones = config_.num_zones;
  options.wear_leveling = config_.enable_wear_leveling;
  options.zones = config_.zones;
  options.daily_write_budget_bytes = config_.daily_write_budget_bytes;
  options.persist = config_.persist_metadata;
  const auto end = std::chrono::steady_clock::now() + kLockWait;
  while (true) {
    auto store = Store::open(options);
    if (store) {
      store_ = std::move(*store);
      return {};
    }
    if (store.error().code != Code::kLimit || std::chrono::steady_clock::now() > end) {
      return tl::unexpected(store.error());
    }
    std::this_thread::sleep_for(kLockRetry);
  }
}

void CacheEngine::make_origins(const std::string& token) {
  machine_ = io::load_machine(config_.cache_dir);
  const auto connections_to = [&](const std::string& url) {
    const std::string origin = redact_url(url);
    links_[origin] = choose_link(config_, machine_, origin);
    return links_[origin].shape.connections;
  };
  HubOptions hub;
  hub.endpoint = config_.endpoint;
  hub.max_connections = connections_to(config_.endpoint);
  hub.token = token;
  hub.offline = config_.offline;
  hub.hub_cache = config_.hub_cache;
  hub.disk = pool_.get();
  hub.retry_max = kOriginTries;
  registry_options_.hub = make_hub_origin(std::move(hub), *http_, *timers_);
  registry_options_.list_views = config_.list_views;
  registry_options_.offline = config_.offline;
  origins_.push_back({"hub", registry_options_.hub});

  const auto add_alias = [&](const std::string& alias, const ModelAlias& model,
                             std::shared_ptr<Origin> origin) {
    registry_options_.aliases[alias] = Alias{model.repo, model.revision, std::move(origin)};
  };
  for (const auto& [alias, model] : config_.models) add_alias(alias, model, registry_options_.hub);
  for (const auto& [alias, url] : config_.base_urls) {
    auto origin = make_base_url_origin(url, config_.offline, kOriginTries, *http_, *timers_,
                                       kRetryBase, connections_to(url));
    origins_.push_back({alias, origin});
    add_alias(alias, ModelAlias{alias}, std::move(origin));
  }
  for (const auto& [alias, directory] : config_.locals) {
    auto origin = make_local_origin(directory, *pool_);
    origins_.push_back({alias, origin});
    add_alias(alias, ModelAlias{alias}, std::move(origin));
  }
}

void CacheEngine::start_read_ahead() {
  if (!config_.enable_prefetch || config_.prefetch_lookahead == 0) return;
  prefetch::SchedulerOptions options;
  options.lookahead = config_.prefetch_lookahead;
  options.budget_bytes = config_.max_cache_bytes / 4;
  options.strict = config_.integrity == Integrity::kStrict;
  options.memory_short = [] { return RamTier::memory_is_short(0); };
  read_ahead_ = std::make_unique<prefetch::LayerReadAhead>(options, *cache_, *store_);
}

void CacheEngine::start_fill() {
  if (!config_.background_fill) return;
  if (config_.daily_write_budget_bytes > 0) {
    spdlog::warn("background_fill: off, since daily_write_budget_gb is set");
    return;
  }
  prefetch::FillOptions options;
  // A digest covers a whole file, and nothing is of use before it was checked.
  if (config_.integrity == Integrity::kStrict) options.step_bytes = kFileBytesMax;
  fill_thread_ = std::make_unique<LoopExecutor>("nx-fill");
  fill_ = std::make_shared<prefetch::BackgroundFill>(options, fill_hooks(*cache_, *registry_),
                                                     *cache_, *fill_thread_);
  fill_->start();
}

prefetch::PrefetchStats CacheEngine::prefetch_stats() const {
  return read_ahead_ ? read_ahead_->stats() : prefetch::PrefetchStats{};
}

}  // namespace nexus::tools
