// What the daemon answers on its control socket (control_protocol.h).
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/base/executor.h"
#include "backend/cache/cache.h"
#include "backend/model/registry.h"
#include "backend/net/http_client.h"
#include "backend/origin/origin.h"
#include "prefetch/read_ahead.h"
#include "tools/common/config.h"
#include "tools/common/control_server.h"

namespace nexus::tools {

// An origin under the name that people know it by: "hub", or an alias.
struct NamedOrigin {
  std::string name;
  std::shared_ptr<Origin> origin;
};

// What the commands look at. Everything referred to outlives the control server.
struct Services {
  const Config& config;
  std::string mountpoint;
  std::chrono::steady_clock::time_point started;
  Cache& cache;
  Registry& registry;
  std::vector<NamedOrigin> origins;
  std::function<Json()> mount_status;    // passthrough, libfuse, kernel, limits
  prefetch::LayerReadAhead* read_ahead;  // null: switched off
  std::function<std::vector<HostTraffic>()> hosts;
  std::function<HttpQueue()> queue;
  std::function<void()> request_stop;
  std::function<Json()> config_json;  // see config_json.h
  Executor& timers;
  ThreadPool& pool;  // for what parses, or waits for a disk
};

ControlServer::Handler make_handler(Services services);

// What a user wrote as MODEL with its organisation, where only one model that is known has that
// name; an alias and what is not known stay as they are. kInvalid names the models that it may be.
Result<std::string> whole_model_name(const Services& services, const std::string& text);

// The repo that `model` stands for among the cache's objects, and the prefix that their names start
// with when it names a revision: "org/name@commit/", else "".
struct ModelFilter {
  std::string repo, name_prefix;
  bool matches(const CachedObject& object) const;
};
ModelFilter model_filter(const std::string& model, const Config& config, const Registry& registry);

}  // namespace nexus::tools
