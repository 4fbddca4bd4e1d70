#include "tools/nexus-tune/link.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <future>
#include <mutex>
#include <nlohmann/json.hpp>

#include "backend/origin/base_url.h"
#include "backend/origin/hub.h"
#include "tools/nexus-tune/point.h"

namespace nexus::tune {

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kSlack = 0.03;
constexpr int kTries = 2;

struct Target {
  std::string base_url;  // empty: the hub
  tools::ModelAlias model;
};

Result<Target> find_target(const tools::Config& config, const std::string& name) {
  if (config.locals.count(name)) {
    return fail(Code::kUnsupported, name + " is a local directory: there is no link to measure");
  }
  if (auto found = config.base_urls.find(name); found != config.base_urls.end()) {
    return Target{found->second, {name, ""}};
  }
  if (auto found = config.models.find(name); found != config.models.end()) {
    return Target{"", found->second};
  }
  auto reference = tools::parse_model_reference(name);
  if (!reference) return tl::unexpected(reference.error());
  return Target{"", *reference};
}

// One origin with room for so many connections, and what it needs.
class Way {
 public:
  Way(const tools::Config& config, const std::string& token, const Target& target,
      unsigned connections)
      : http_(options(config, connections)), timers_("tune-timers") {
    if (!target.base_url.empty()) {
      origin_ = make_base_url_origin(target.base_url, config.offline, kTries, http_, timers_);
      return;
    }
    HubOptions hub;  // without hub_cache: it is the network that is measured
    hub.endpoint = config.endpoint;
    hub.token = token;
    hub.offline = config.offline;
    hub.retry_max = kTries;
    origin_ = make_hub_origin(std::move(hub), http_, timers_);
  }
  ~Way() {
    http_.stop();
    timers_.stop();
  }
  Origin& origin() { return *origin_; }

  Result<Snapshot> load(const tools::ModelAlias& model) {
    auto answer = std::make_shared<std::promise<Result<Snapshot>>>();
    auto future = answer->get_future();
    origin_->load(model.repo, model.revision,
                  [answer](Result<Snapshot> found) { answer->set_value(std::move(found)); });
    return future.get();
  }

 private:
  static HttpOptions options(const tools::Config& config, unsigned connections) {
    HttpOptions http;
    http.ca_file = config.ca_file;
    http.netrc_file = config.netrc_file;
    http.max_connections_per_host = static_cast<int>(connections);
    http.user_agent = "nexus-tune/" NEXUS_VERSION;
    return http;
  }
  HttpClient http_;
  LoopExecutor timers_;
  std::shared_ptr<Origin> origin_;
};

// The ranges of one point. Callbacks come from the origin's threads and may outlast nothing: wait()
// returns when the last has ended.
class Transfers {
 public:
  Transfers(Origin& origin, const Snapshot& snapshot, const OriginFile& file)
      : origin_(origin), snapshot_(snapshot), file_(file) {}

  LinkPoint run(unsigned connections, uint64_t range_bytes, const LinkOptions& options,
                const std::atomic<bool>& stop) {
    const auto start = Clock::now();
    const auto end = start + std::chrono::duration<double>(options.point_seconds);
    uint64_t asked = 0;
    std::unique_lock lock(mutex_);
    while (true) {
      const bool more =
          error_.empty() && !stop && asked < options.point_bytes && Clock::now() < end;
      if (more && active_ < connections) {
        const uint64_t length = std::min(range_bytes, file_.size);
        if (next_ + length > file_.size) next_ = 0;
        ++active_;
        lock.unlock();
        begin({next_, length});
        lock.lock();
        next_ += length;
        asked += length;
        continue;
      }
      if (!more && active_ == 0) break;
      ended_.wait(lock);
    }
    const std::chrono::duration<double> took = Clock::now() - start;
    LinkPoint point;
    point.connections = connections;
    point.range_bytes = range_bytes;
    point.gbps = static_cast<double>(bytes_) / 1e9 / std::max(took.count(), 1e-9);
    point.first_byte_ms = median(first_byte_ms_);
    point.error = error_;
    return point;
  }

 private:
  void begin(ByteRange range) {
    const auto start = Clock::now();
    ReadRequest request;
    request.file = file_;
    request.range = range;
    auto first = std::make_shared<bool>(true);
    request.sink = [this, start, first](uint64_t,
                                        std::span<const std::byte> bytes) -> Result<void> {
      std::lock_guard lock(mutex_);
      if (*first) {
        const std::chrono::duration<double, std::milli> waited = Clock::now() - start;
        first_byte_ms_.push_back(waited.count());
        *first = false;
      }
      bytes_ += bytes.size();
      return {};
    };
    request.on_done = [this](const Result<void>& done) {
      std::lock_guard lock(mutex_);
      if (!done && error_.empty()) error_ = done.error().what;
      --active_;
      ended_.notify_one();
    };
    auto transfer = origin_.read(snapshot_, std::move(request));
    std::lock_guard lock(mutex_);
    kept_.push_back(std::move(transfer));
  }

  Origin& origin_;
  const Snapshot& snapshot_;
  const OriginFile& file_;
  uint64_t next_ = 0;

  std::mutex mutex_;  // guards the rest
  std::condition_variable ended_;
  std::vector<std::shared_ptr<Transfer>> kept_;
  std::vector<double> first_byte_ms_;
  uint64_t bytes_ = 0;
  unsigned active_ = 0;
  std::string error_;
};

}  // namespace

int pick_link(const std::vector<LinkPoint>& points) {
  double fastest = 0;
  for (const LinkPoint& point : points) {
    if (point.error.empty()) fastest = std::max(fastest, point.gbps);
  }
  int best = -1;
  for (size_t i = 0; i < points.size(); ++i) {
    const LinkPoint& point = points[i];
    if (!point.error.empty() || point.gbps < fastest * (1 - kSlack)) continue;
    const auto cost = [&](const LinkPoint& of) {
      return std::pair(of.connections, of.range_bytes);
    };
    if (best < 0 || cost(point) < cost(points[static_cast<size_t>(best)])) {
      best = static_cast<int>(i);
    }
  }
  return best;
}

Result<LinkResult> measure_link(const tools::Config& config, const std::string& token,
                                const std::string& model, const LinkOptions& options,
                                const std::function<void(int, int)>& progress,
                                const std::atomic<bool>& stop) {
  auto target = find_target(config, model);
  if (!target) return tl::unexpected(target.error());
  LinkResult result;
  result.model = model;
  Snapshot snapshot;
  {
    Way way(config, token, *target, 1);
    auto loaded = way.load(target->model);
    if (!loaded) return tl::unexpected(loaded.error());
    snapshot = std::move(*loaded);
    result.origin = way.origin().describe();
  }
  const OriginFile* file = nullptr;
  for (const OriginFile& one : snapshot.files) {
    if (one.error.empty() && (file == nullptr || one.size > file->size)) file = &one;
  }
  if (file == nullptr || file->size == 0) {
    return fail(Code::kNotFound, model + " has no file to measure with");
  }
  result.file = file->path;
  std::vector<uint64_t> ranges;
  for (const uint64_t range : options.range_bytes) {
    if (range <= file->size) ranges.push_back(range);
  }
  if (ranges.empty()) ranges.push_back(file->size);
  const int total = static_cast<int>(ranges.size() * options.connections.size());
  for (const unsigned connections : options.connections) {
    Way way(config, token, *target, connections);
    for (const uint64_t range : ranges) {
      if (stop) {
        result.interrupted = true;
        break;
      }
      Transfers transfers(way.origin(), snapshot, *file);
      result.points.push_back(transfers.run(connections, range, options, stop));
      if (progress) progress(static_cast<int>(result.points.size()), total);
    }
  }
  result.best = pick_link(result.points);
  if (result.best < 0 && !result.points.empty()) {
    return fail(Code::kOrigin, model + ": " + result.points.front().error);
  }
  return result;
}

nlohmann::json link_json(const LinkResult& result) {
  nlohmann::json points = nlohmann::json::array();
  for (const LinkPoint& point : result.points) {
    nlohmann::json one = {{"connections", point.connections},
                          {"range_bytes", point.range_bytes},
                          {"throughput_gbps", point.gbps},
                          {"first_byte_ms", point.first_byte_ms}};
    if (!point.error.empty()) one["error"] = point.error;
    points.push_back(std::move(one));
  }
  nlohmann::json json = {
      {"origin", result.origin}, {"model", result.model}, {"file", result.file}, {"best", nullptr}};
  if (result.best >= 0) json["best"] = points[static_cast<size_t>(result.best)];
  json["points"] = std::move(points);
  return json;
}

std::string link_table(const LinkResult& result) {
  std::string out = result.model + " from " + result.origin + " (" + result.file + ")\n";
  char row[160];
  std::snprintf(row, sizeof row, "  %11s %9s %9s %12s\n", "connections", "range", "GB/s",
                "first byte");
  out += row;
  for (size_t i = 0; i < result.points.size(); ++i) {
    const LinkPoint& point = result.points[i];
    std::snprintf(row, sizeof row, "%s %11u %5llu MiB %9.3f %9.1f ms  %s\n",
                  static_cast<int>(i) == result.best ? "*" : " ", point.connections,
                  static_cast<unsigned long long>(point.range_bytes >> 20), point.gbps,
                  point.first_byte_ms, point.error.c_str());
    out += row;
  }
  return out;
}

}  // namespace nexus::tune
