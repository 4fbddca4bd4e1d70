#include "tools/nexusfs/daemon.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <utility>

#include "tools/common/stats_json.h"

namespace nexus::tools {
namespace {

std::string to_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::start(Config config, const std::string& token,
                                              const std::string& mountpoint) {
  std::unique_ptr<Daemon> daemon(new Daemon(std::move(config)));
  auto engine = CacheEngine::start(daemon->config_, token);
  if (!engine) return tl::unexpected(engine.error());
  daemon->engine_ = std::move(*engine);
  if (auto ok = daemon->start_metrics(); !ok) return tl::unexpected(ok.error());
  if (auto ok = daemon->mount(mountpoint); !ok) return tl::unexpected(ok.error());
  return daemon;
}

Daemon::~Daemon() {
  link_.reset();
  control_.reset();
  metrics_.reset();
  mount_.reset();
  if (engine_) engine_->stop();
}

Result<void> Daemon::run() {
  return mount_->run();
}

void Daemon::request_stop() {
  mount_->request_stop();
}

Result<void> Daemon::start_metrics() {
  if (!config_.metrics_listen) return {};
  auto server = MetricsServer::start(
      *config_.metrics_listen,
      {[this] { return engine_->cache().stats(); }, [this] { return engine_->prefetch_stats(); },
       [this] { return engine_->http().hosts(); }, [this] { return engine_->http().queue(); }});
  if (!server) return tl::unexpected(server.error());
  metrics_ = std::move(*server);
  spdlog::info("metrics: http://{}/metrics", metrics_->address());
  return {};
}

Result<void> Daemon::mount(const std::string& mountpoint) {
  const Environment environment = process_environment();
  auto directory = make_runtime_directory(geteuid(), environment);
  if (!directory) return tl::unexpected(directory.error());

  fs::FsOptions options;
  options.allow_other = config_.allow_other;
  options.fuse_io_uring = config_.fuse_io_uring;
  options.fuse_io_uring_queue_depth = config_.fuse_io_uring_queue_depth;
  options.layer_events = engine_->read_ahead();
  options.stats_json = [this](const std::string& model) {
    const Cache& cache = engine_->cache();
    return to_text(model.empty() ? stats_json(cache.stats(), engine_->prefetch_stats(),
                                              engine_->http().hosts(), engine_->http().queue())
                                 : model_stats_json(model, cache.list()));
  };
  auto mounted =
      fs::FuseMount::open(mountpoint, std::move(options), engine_->registry(), engine_->cache());
  if (!mounted) return tl::unexpected(mounted.error());
  mount_ = std::move(*mounted);

  Services services = engine_->services();
  services.mountpoint = mountpoint;
  services.started = started_;
  services.mount_status = [this] { return mount_status(); };
  services.request_stop = [this] { request_stop(); };
  ControlServer::Options control{
      *directory + "/" + socket_name(mountpoint),
      [owner = geteuid()](uid_t peer) { return peer_allowed(peer, owner); }};
  auto server = ControlServer::start(std::move(control), make_handler(std::move(services)));
  if (!server) return tl::unexpected(server.error());
  control_ = std::move(*server);
  auto link = ControlLink::make(config_.cache_dir, *directory + "/" + socket_name(mountpoint));
  if (link) {
    link_.emplace(std::move(*link));
  } else {
    spdlog::warn("programs that use libnexuscache will not find this mount: {}", link.error().what);
  }
  return {};
}

Json Daemon::mount_status() const {
  const fs::MountStatus status = mount_->status();
  const RamTier* ram = engine_->ram();
  return Json{{"kernel", status.kernel},
              {"libfuse", status.libfuse},
              {"passthrough", status.passthrough},
              {"passthrough_reason", status.passthrough_reason},
              {"fuse_io_uring", status.fuse_io_uring},
              {"fuse_io_uring_reason", status.fuse_io_uring_reason},
              {"fuse_io_uring_requests", status.fuse_io_uring_requests},
              {"complete_mode", status.complete_mode},
              {"incomplete_mode", status.incomplete_mode},
              {"direct_io_reason", status.direct_io_reason},
              {"parked", status.parked},
              {"metrics_listen", metrics_ ? metrics_->address() : ""},
              {"open_files", status.open_files},
              {"nodeids", status.nodeids},
              {"opens_passthrough", status.opens_passthrough},
              {"opens_pages", status.opens_pages},
              {"opens_stale", status.opens_stale},
              {"ram_tier", ram ? ram->kind() : "off"},
              {"ram_tier_reason", ram ? ram->reason() : engine_->ram_reason()},
              {"ram_used_bytes", ram ? ram->used_bytes() : 0},
              {"ram_max_bytes", ram ? ram->limit_bytes() : 0}};
}

}  // namespace nexus::tools
