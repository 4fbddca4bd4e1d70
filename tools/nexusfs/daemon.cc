#include "tools/nexusfs/daemon.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "backend/origin/base_url.h"
#include "backend/origin/hub.h"
#include "backend/origin/local_dir.h"
#include "tools/common/stats_json.h"
#include "tools/nexusfs/config_json.h"

namespace nexus::tools {
namespace {

constexpr int kOriginTries = 5;
// The daemon of a mount that was just taken off may still be writing its last rows.
constexpr auto kLockWait = std::chrono::seconds(10);
constexpr auto kLockRetry = std::chrono::milliseconds(100);

int pool_threads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 2u, 8u));
}

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(Config config, const std::string& token,
                                              const std::string& mountpoint) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(config)));
  if (auto ok = daemon->open_store(); !ok) return tl::unexpected(ok.error());

  HttpOptions http;
  http.max_connections_per_host = daemon->config_.max_connections;
  http.user_agent = "nexusfs/" NEXUS_VERSION;
  http.ca_file = daemon->config_.ca_file;
  http.netrc_file = daemon->config_.netrc_file;
  daemon->http_ = std::make_unique<HttpClient>(std::move(http));
  daemon->pool_ = std::make_unique<ThreadPool>("nexus-pool", pool_threads());
  daemon->timers_ = std::make_unique<LoopExecutor>("nexus-timers");
  daemon->make_origins(token);

  CacheOptions cache;
  cache.disk_bytes = daemon->config_.max_cache_bytes;
  cache.ram_bytes = daemon->config_.max_memory_cache_bytes;
  cache.integrity = daemon->config_.integrity;
  cache.max_connections = daemon->config_.max_connections;
  cache.eviction_policy = daemon->config_.eviction_policy;
  cache.migrate_interval = daemon->config_.migrate_interval;
  cache.scrub_interval = daemon->config_.scrub_interval;
  const io::LoadedTuning tuning = load_mount_tuning(daemon->config_);
  daemon->engine_ = std::make_unique<io::Engine>(tuning.read_settings(), tuning.write_settings());
  cache.bulk_read = [engine = daemon->engine_.get()](const ObjectFile& file, uint64_t offset,
                                                     std::span<std::byte> into) -> Result<void> {
    auto descriptor = file.descriptor();
    if (!descriptor) return tl::unexpected<Error>(descriptor.error());
    return engine->read((*descriptor)->get(), offset, into);
  };
  daemon->ram_ = RamTier::open({cache.ram_bytes}, &daemon->ram_reason_);
  cache.ram = daemon->ram_;
  daemon->cache_ = std::make_unique<Cache>(cache, *daemon->store_);
  daemon->registry_ = std::make_unique<Registry>(daemon->registry_options_, *daemon->cache_,
                                                 *daemon->store_, *daemon->timers_, *daemon->pool_);
  daemon->start_read_ahead();
  if (auto ok = daemon->mount(mountpoint); !ok) return tl::unexpected(ok.error());
  return daemon;
}

// Last in, first out; and what still waits is told so before the parts that would answer it go.
Daemon::~Daemon() {
  control_.reset();
  mount_.reset();
  if (registry_) registry_->stop();
  if (read_ahead_) read_ahead_->stop();
  if (cache_) cache_->stop();
  // Late callbacks of cancelled transfers run to their end while what they use is still there.
  if (http_) http_->stop();
  if (timers_) timers_->stop();
  if (pool_) pool_->stop();
  read_ahead_.reset();
  registry_.reset();
  cache_.reset();
  if (store_) store_->close();
}

Result<void> Daemon::run() {
  return mount_->run();
}

void Daemon::request_stop() {
  mount_->request_stop();
}

Result<void> Daemon::open_store() {
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

void Daemon::make_origins(const std::string& token) {
  HubOptions hub;
  hub.endpoint = config_.endpoint;
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
    auto origin = make_base_url_origin(url, config_.offline, kOriginTries, *http_, *timers_);
    origins_.push_back({alias, origin});
    add_alias(alias, ModelAlias{alias}, std::move(origin));
  }
  for (const auto& [alias, directory] : config_.locals) {
    auto origin = make_local_origin(directory, *pool_);
    origins_.push_back({alias, origin});
    add_alias(alias, ModelAlias{alias}, std::move(origin));
  }
}

void Daemon::start_read_ahead() {
  // Strict: a layer comes from whole shards that were verified, which hold the next ones too.
  if (!config_.enable_prefetch || config_.prefetch_lookahead == 0) return;
  if (config_.integrity == Integrity::kStrict) return;
  prefetch::SchedulerOptions options;
  options.lookahead = config_.prefetch_lookahead;
  options.budget_bytes = config_.max_cache_bytes / 4;
  read_ahead_ = std::make_unique<prefetch::LayerReadAhead>(options, *cache_, *store_);
}

prefetch::PrefetchStats Daemon::prefetch_stats() const {
  return read_ahead_ ? read_ahead_->stats() : prefetch::PrefetchStats{};
}

Result<void> Daemon::mount(const std::string& mountpoint) {
  const Environment environment = process_environment();
  auto directory = make_runtime_directory(geteuid(), environment);
  if (!directory) return tl::unexpected(directory.error());

  fs::FsOptions options;
  options.allow_other = config_.allow_other;
  options.layer_events = read_ahead_.get();
  options.stats_json = [this](const std::string& model) {
    return to_text(model.empty() ? stats_json(cache_->stats(), prefetch_stats(), http_->hosts())
                                 : model_stats_json(model, cache_->list()));
  };
  auto mounted = fs::FuseMount::open(mountpoint, std::move(options), *registry_, *cache_);
  if (!mounted) return tl::unexpected(mounted.error());
  mount_ = std::move(*mounted);

  Services services{config_,
                    mountpoint,
                    started_,
                    *cache_,
                    *registry_,
                    origins_,
                    [this] { return mount_status(); },
                    read_ahead_.get(),
                    [this] { return http_->hosts(); },
                    [this] { request_stop(); },
                    [this] { return config_json(config_, *engine_); },
                    *timers_};
  ControlServer::Options control{
      *directory + "/" + socket_name(mountpoint),
      [owner = geteuid()](uid_t peer) { return peer_allowed(peer, owner); }};
  auto server = ControlServer::start(std::move(control), make_handler(std::move(services)));
  if (!server) return tl::unexpected(server.error());
  control_ = std::move(*server);
  return {};
}

Json Daemon::mount_status() const {
  const fs::MountStatus status = mount_->status();
  return Json{{"kernel", status.kernel},
              {"libfuse", status.libfuse},
              {"passthrough", status.passthrough},
              {"passthrough_reason", status.passthrough_reason},
              {"complete_mode", status.complete_mode},
              {"incomplete_mode", status.incomplete_mode},
              {"direct_io_reason", status.direct_io_reason},
              {"parked", status.parked},
              {"open_files", status.open_files},
              {"nodeids", status.nodeids},
              {"opens_passthrough", status.opens_passthrough},
              {"opens_pages", status.opens_pages},
              {"opens_stale", status.opens_stale},
              {"ram_tier", ram_ ? ram_->kind() : "off"},
              {"ram_tier_reason", ram_ ? ram_->reason() : ram_reason_},
              {"ram_used_bytes", ram_ ? ram_->used_bytes() : 0},
              {"ram_max_bytes", ram_ ? ram_->limit_bytes() : 0}};
}

}  // namespace nexus::tools
