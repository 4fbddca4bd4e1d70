// Everything below the mount, put together: network, origins, store, memory, cache, models and
// read-ahead. What the daemon serves by FUSE and libnexuscache runs in-process. Built in the order
// of the members, torn down in the reverse.
#pragma once

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
#include "prefetch/background_fill.h"
#include "prefetch/read_ahead.h"
#include "tools/common/config.h"
#include "tools/common/link_choice.h"
#include "tools/nexusfs/commands.h"

namespace nexus::tools {

class CacheEngine {
 public:
  // Takes cache_dir's lock; kLimit when another process has it (after 10 s, in which one that is
  // ending may let go). After any fork: this makes threads. `config` outlives the engine.
  static Result<std::unique_ptr<CacheEngine>> start(const Config& config, const std::string& token);
  ~CacheEngine();  // stop()
  CacheEngine(const CacheEngine&) = delete;
  CacheEngine& operator=(const CacheEngine&) = delete;

  // What still waits is told so, then everything is joined and cache_dir let go. Whoever serves
  // from the engine has stopped by then. Idempotent.
  void stop();

  Cache& cache() { return *cache_; }
  const Cache& cache() const { return *cache_; }
  Registry& registry() { return *registry_; }
  const HttpClient& http() const { return *http_; }
  const RamTier* ram() const { return ram_.get(); }  // null: none, see ram_reason()
  const std::string& ram_reason() const { return ram_reason_; }
  prefetch::LayerReadAhead* read_ahead() { return read_ahead_.get(); }  // null: switched off
  prefetch::PrefetchStats prefetch_stats() const;
  // For the control socket; the members about the mount are the caller's to fill in.
  Services services();

 private:
  explicit CacheEngine(const Config& config) : config_(config) {}
  Result<void> open_store();
  void start_network();
  void make_origins(const std::string& token);
  void start_cache();
  void start_read_ahead();
  void start_fill();

  const Config& config_;
  std::unique_ptr<HttpClient> http_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<LoopExecutor> timers_;
  RegistryOptions registry_options_;
  std::vector<NamedOrigin> origins_;
  std::map<std::string, LinkChoice> links_;  // by origin; set once, before any thread
  std::unique_ptr<Store> store_;
  std::vector<io::ZoneTuning> tunings_;  // by zone; this and machine_: as they were at the start
  Json machine_;
  std::unique_ptr<io::ZoneEngines> engines_;
  std::shared_ptr<RamTier> ram_;
  std::string ram_reason_;
  std::unique_ptr<Cache> cache_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<prefetch::LayerReadAhead> read_ahead_;
  std::unique_ptr<LoopExecutor> fill_thread_;  // null: no background fill
  std::shared_ptr<prefetch::BackgroundFill> fill_;
};

}  // namespace nexus::tools
