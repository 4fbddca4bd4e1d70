// The mount's statistics for Prometheus: the figures of `nexusctl stats` at http://ADDRESS/metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/cache/cache.h"
#include "backend/net/http_client.h"
#include "prefetch/scheduler.h"
#include "tools/common/listen_address.h"

namespace prometheus {
class Exposer;
}

namespace nexus::tools {

// Where the figures come from. Called from the server's threads, at each scrape.
struct MetricsSources {
  std::function<CacheStats()> cache;
  std::function<prefetch::PrefetchStats()> prefetch;
  std::function<std::vector<HostTraffic>()> hosts;
  std::function<HttpQueue()> queue;
};

// Two threads and a listener of civetweb's. What `sources` uses outlives the server; the destructor waits for scrapes
// that run. Thread-safe.
class MetricsServer {
 public:
  // kInvalid when the address cannot be listened at.
  static Result<std::unique_ptr<MetricsServer>> start(ListenAddress address, MetricsSources sources);
  ~MetricsServer();
  MetricsServer(const MetricsServer&) = delete;
  MetricsServer& operator=(const MetricsServer&) = delete;

  std::string address() const { return address_.text(); }  // with the port that port 0 became

 private:
  class Collector;
  MetricsServer();

  ListenAddress address_;
  std::shared_ptr<Collector> collector_;  // the exposer knows it weakly
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace nexus::tools
