#include "tools/nexusfs/metrics.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/metric_family.h>

#include <exception>
#include <utility>

namespace nexus::tools {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

// Collects samples into families; names get the prefix "nexusfs_".
class Families {
 public:
  using Labels = std::vector<ClientMetric::Label>;

  void counter(const std::string& name, const std::string& help, double value, Labels labels = {}) {
    add(name, help, MetricType::Counter, value, std::move(labels));
  }
  void counter(const std::string& name, const std::string& help, uint64_t value, Labels labels = {}) {
    counter(name, help, static_cast<double>(value), std::move(labels));
  }
  void gauge(const std::string& name, const std::string& help, double value, Labels labels = {}) {
    add(name, help, MetricType::Gauge, value, std::move(labels));
  }
  void gauge(const std::string& name, const std::string& help, uint64_t value, Labels labels = {}) {
    gauge(name, help, static_cast<double>(value), std::move(labels));
  }
  std::vector<MetricFamily> take() { return std::move(families_); }

 private:
  void add(const std::string& name, const std::string& help, MetricType type, double value,
           Labels labels) {
    MetricFamily* family = nullptr;
    for (MetricFamily& one : families_) {
      if (one.name == "nexusfs_" + name) family = &one;
    }
    if (!family) {
      families_.push_back({"nexusfs_" + name, help, type, {}});
      family = &families_.back();
    }
    ClientMetric metric;
    metric.label = std::move(labels);
    (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    family->metric.push_back(std::move(metric));
  }

  std::vector<MetricFamily> families_;
};

void add_cache(Families& to, const CacheStats& stats) {
  const Families::Labels disk = {{"tier", "disk"}}, memory = {{"tier", "memory"}};
  to.gauge("cache_objects", "Objects with bytes in the tier.", stats.disk_cache_entries, disk);
  to.gauge("cache_objects", "", stats.memory_cache_entries, memory);
  to.gauge("cache_bytes", "Bytes in the tier.", stats.disk_cache_bytes, disk);
  to.gauge("cache_bytes", "", stats.memory_cache_bytes, memory);
  to.gauge("cache_limit_bytes", "What the tier may hold.", stats.max_disk_cache_bytes, disk);
  to.gauge("cache_limit_bytes", "", stats.max_memory_cache_bytes, memory);
  to.counter("cache_hits_total", "Reads and opens answered from the cache.", stats.total_hits);
  to.counter("cache_misses_total", "Reads and opens that waited for a fetch.", stats.total_misses);
  to.counter("cache_evictions_total", "Objects evicted.", stats.total_evictions);
  to.counter("cache_served_bytes_total", "Bytes served from the cache; an open by passthrough counts its whole file.",
             stats.bytes_served_from_cache);
  to.counter("read_waits_total", "Requests of readers that waited for bytes and got them.",
             stats.reads_waited);
  to.counter("read_wait_seconds_total", "How long they waited, together.", stats.read_wait_s);
  to.counter("downloaded_bytes_total", "Bytes that origins sent.", stats.bytes_downloaded);
  to.gauge("active_downloads", "Objects being fetched.", stats.active_downloads);
  for (const ZoneInfo& zone : stats.zones) {
    const Families::Labels labels = {{"zone", zone.path}};
    to.counter("zone_written_bytes_total", "Bytes written to the zone, by all mounts.",
               zone.bytes_written, labels);
    to.gauge("zone_used_bytes", "Bytes of objects in the zone.", zone.used_bytes, labels);
  }
}

void add_prefetch(Families& to, const CacheStats& cache, const prefetch::PrefetchStats& stats) {
  to.counter("prefetch_layers_total", "Layers that readers came to.", stats.total_requests);
  to.counter("prefetch_layer_hits_total", "Of them, here or on their way by read-ahead.",
             stats.cache_hits);
  to.gauge("prefetch_hit_ratio", "prefetch_layer_hits_total / prefetch_layers_total.",
           stats.total_requests == 0 ? 0.0
                                     : static_cast<double>(stats.cache_hits) /
                                           static_cast<double>(stats.total_requests));
  to.counter("prefetch_fetches_total", "Layers that read-ahead brought.", stats.fetches);
  to.counter("prefetch_fetch_seconds_total", "How long they took from asked to here, together.",
             static_cast<double>(stats.fetch_ms) / 1000);
  to.gauge("prefetch_queue_depth", "Layers on their way or waiting for their turn.",
           stats.queue_depth);
  // No counter: what is cancelled before it came is taken off again.
  to.gauge("prefetch_issued_bytes", "Bytes that read-ahead by layers asked origins for.",
           cache.prefetch_issued_bytes);
  to.counter("prefetch_used_bytes_total", "Of them, in pieces that were read since.",
             cache.prefetch_used_bytes);
  to.counter("prefetch_wasted_bytes_total", "Of them, dropped unread.",
             cache.prefetch_wasted_bytes);
}

void add_hosts(Families& to, const std::vector<HostTraffic>& hosts, const HttpQueue& queue) {
  for (const HostTraffic& host : hosts) {
    const Families::Labels labels = {{"origin", host.origin}};
    to.counter("origin_requests_total", "Requests to the host that ended.", host.requests, labels);
    to.counter("origin_failed_requests_total", "Of them, failed on the wire or by their answer.",
               host.failed, labels);
    to.counter("origin_retries_total", "Requests sent again after a failure.", host.retries, labels);
    to.counter("origin_hedges_total", "Second requests beside one that had gone quiet.",
               host.hedges, labels);
    to.counter("origin_received_bytes_total", "Bytes of bodies.", host.bytes, labels);
    to.gauge("origin_active_requests", "Requests on the wire.", host.active, labels);
    to.gauge("origin_receive_bytes_per_second", "All connections together, of late.",
             host.bytes_per_s, labels);
    to.gauge("origin_round_trip_seconds", "Of TCP connects of late; 0: none yet.",
             host.round_trip_ms / 1000, labels);
    to.gauge("origin_first_byte_seconds", "From a request to its answer, of late; 0: none yet.",
             host.first_byte_ms / 1000, labels);
  }
  const char* const help = "Requests that wait for a connection.";
  to.gauge("queued_requests", help, queue.demand, {{"priority", "demand"}});
  to.gauge("queued_requests", help, queue.read_ahead, {{"priority", "read_ahead"}});
  to.gauge("queued_requests", help, queue.prefetch, {{"priority", "prefetch"}});
}

}  // namespace

class MetricsServer::Collector final : public prometheus::Collectable {
 public:
  explicit Collector(MetricsSources sources) : sources_(std::move(sources)) {}

  std::vector<MetricFamily> Collect() const override {
    const CacheStats cache = sources_.cache();
    Families families;
    families.gauge("build_info", "1; the version is the label's.", 1.0, {{"version", NEXUS_VERSION}});
    add_cache(families, cache);
    add_prefetch(families, cache, sources_.prefetch());
    add_hosts(families, sources_.hosts(), sources_.queue());
    return families.take();
  }

 private:
  const MetricsSources sources_;
};

MetricsServer::MetricsServer() = default;
MetricsServer::~MetricsServer() = default;

Result<std::unique_ptr<MetricsServer>> MetricsServer::start(ListenAddress address,
                                                            MetricsSources sources) {
  // The library does not say why it cannot listen.
  if (auto ok = check_listen_address(address); !ok) return fail(ok.error(), "metrics_listen");
  std::unique_ptr<MetricsServer> server(new MetricsServer());
  server->collector_ = std::make_shared<Collector>(std::move(sources));
  try {
    server->exposer_ = std::make_unique<prometheus::Exposer>(
        std::vector<std::string>{"listening_ports", address.text(), "num_threads", "2",
                                 "request_timeout_ms", "10000"});
    server->exposer_->RegisterCollectable(server->collector_);
    const std::vector<int> ports = server->exposer_->GetListeningPorts();
    if (!ports.empty()) address.port = static_cast<uint16_t>(ports.front());
  } catch (const std::exception& error) {
    return fail(Code::kInvalid, "metrics_listen: " + address.text() + ": " + error.what());
  }
  server->address_ = std::move(address);
  return server;
}

}  // namespace nexus::tools
