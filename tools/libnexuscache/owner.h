// The process that owns a cache_dir, as libnexuscache reaches it: another one, or this one.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "tools/common/config.h"
#include "tools/common/control_client.h"
#include "tools/common/control_link.h"
#include "tools/common/control_server.h"
#include "tools/nexusfs/engine.h"

namespace nexus::tools {

// Thread-safe.
class CacheOwner {
 public:
  CacheOwner(Config config, std::string token)
      : config_(std::move(config)), token_(std::move(token)) {}
  ~CacheOwner();
  CacheOwner(const CacheOwner&) = delete;
  CacheOwner& operator=(const CacheOwner&) = delete;

  // A connection to whoever owns cache_dir; this process becomes the owner when nobody is. kLimit
  // when another process holds it and does not answer.
  Result<ControlClient> connect();
  bool in_process() const;

 private:
  Result<ControlClient> try_connect() const;
  Result<void> become_owner();

  const Config config_;
  const std::string token_;
  mutable std::mutex mutex_;  // guards what follows; held while the engine starts
  std::unique_ptr<CacheEngine> engine_;
  std::unique_ptr<ControlServer> server_;
  std::optional<ControlLink> link_;
};

}  // namespace nexus::tools
