// The daemon's parts, put together: the only place that knows all of them. Built in the order of
// the members, torn down in the reverse.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "backend/cache/cache.h"
#include "fs/mount.h"
#include "tools/common/config.h"
#include "tools/common/control_link.h"
#include "tools/common/control_server.h"
#include "tools/nexusfs/commands.h"
#include "tools/nexusfs/engine.h"
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

  const Cache& cache() const { return engine_->cache(); }

 private:
  explicit Daemon(Config config) : config_(std::move(config)) {}
  Result<void> start_metrics();
  Result<void> mount(const std::string& mountpoint);
  Json mount_status() const;

  const Config config_;
  const std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  std::unique_ptr<CacheEngine> engine_;
  std::unique_ptr<fs::FuseMount> mount_;
  std::unique_ptr<ControlServer> control_;
  std::optional<ControlLink> link_;
  std::unique_ptr<MetricsServer> metrics_;  // null: switched off
};

}  // namespace nexus::tools
