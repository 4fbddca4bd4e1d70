// The daemon's parts, put together: the only place that knows all of them. Built in the order of
// the members, torn down in the reverse.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "backend/io/zone_engines.h"
#include "backend/model/registry.h"
#include "backend/net/http_client.h"
#include "backend/ram/ram_tier.h"
#include "backend/store/store.h"
#include "fs/mount.h"
#include "prefetch/background_fill.h"
#include "prefetch/read_ahead.h"
#include "tools/common/config.h"
#include "tools/common/control_server.h"
#include "tools/common/link_choice.h"
#include "tools/common/token.h"
#include "tools/nexusfs/commands.h"
#include "tools/nexusfs/metrics.h"

namespace nexus::tools {

class Daemon {
 public:
  // Mounts; serving begins with run(). `mountpoint` is canonical. After any fork: this makes
  // threads.
  static Result<std::unique_ptr<Daemon>> start(Config config, const std::string& token,
                                               const std::string& mountpoint);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Serves until the mount has ended, by request_stop(), umount, or an error.
  Result<void> run();
  // Ends parked reads, detaches the mount and lets run() return. Any thread, any number of times.
  void request_stop();

  const Cache& cache() const { return *cache_; }

 private:
  explicit Daemon(Config config) : config_(std::move(config)) {}
  Result<void> open_store();
  void make_origins(const std::string& token);
  void start_read_ahead();
  void start_fill();
  Result<void> start_metrics();
  Result<void> mount(const std::string& mountpoint);
  Json mount_status() const;
  prefetch::PrefetchStats prefetch_stats() const;

  const Config config_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::unique_ptr<HttpClient> http_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<LoopExecutor> timers_;
  RegistryOptions registry_options_;
  std::vector<NamedOrigin> origins_;
  std::map<std::string, LinkChoice> links_;  // by origin; set once, before any thread
  std::unique_ptr<Store> store_;
  std::unique_ptr<io::ZoneEngines> engines_;
  std::shared_ptr<RamTier> ram_;  // null: none, see ram_reason_
  std::string ram_reason_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<prefetch::LayerReadAhead> read_ahead_;  // null: switched off
  std::unique_ptr<LoopExecutor> fill_thread_;           // null: no background fill
  std::shared_ptr<prefetch::BackgroundFill> fill_;
  std::unique_ptr<fs::FuseMount> mount_;
  std::unique_ptr<ControlServer> control_;
  std::unique_ptr<MetricsServer> metrics_;  // null: switched off
};

}  // namespace nexus::tools
