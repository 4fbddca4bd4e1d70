#include "tools/libnexuscache/owner.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <memory>
#include <utility>

namespace nexus::tools {

namespace {
// Not *.sock: nexusctl would take it for a mount's.
std::string socket_path(const std::string& directory, const std::string& cache_dir) {
  std::string name = socket_name(cache_dir);
  name.resize(name.size() - sizeof ".sock" + 1);
  return directory + "/" + name + ".cache";
}

// A library does not write on its program's standard output. A program with a logger of its own
// keeps it.
void log_to_standard_error() {
  const auto logger = spdlog::default_logger();
  if (!logger || !logger->name().empty()) return;
  auto quiet =
      std::make_shared<spdlog::logger>("nexus", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  quiet->set_level(spdlog::level::warn);
  spdlog::set_default_logger(std::move(quiet));
}
}  // namespace

CacheOwner::~CacheOwner() {
  link_.reset();
  server_.reset();
  if (engine_) engine_->stop();
}

bool CacheOwner::in_process() const {
  std::lock_guard lock(mutex_);
  return engine_ != nullptr;
}

Result<ControlClient> CacheOwner::try_connect() const {
  auto socket = control_socket_of(config_.cache_dir);
  if (!socket) return tl::unexpected(socket.error());
  return ControlClient::connect(*socket);
}

Result<ControlClient> CacheOwner::connect() {
  auto client = try_connect();
  if (client || client.error().code != Code::kNotFound) return client;
  std::lock_guard lock(mutex_);
  if (engine_) return client;  // our own server ended: the process is exiting
  // Another thread or process may have come first: the lock of cache_dir decides.
  if (auto again = try_connect()) return again;
  auto owned = become_owner();
  if (owned) return try_connect();
  if (owned.error().code != Code::kLimit) return tl::unexpected(owned.error());
  if (auto again = try_connect()) return again;
  return tl::unexpected(owned.error());
}

Result<void> CacheOwner::become_owner() {
  const Environment environment = process_environment();
  auto directory = make_runtime_directory(geteuid(), environment);
  if (!directory) return tl::unexpected(directory.error());
  log_to_standard_error();
  auto engine = CacheEngine::start(config_, token_);
  if (!engine) return tl::unexpected(engine.error());
  const std::string path = socket_path(*directory, config_.cache_dir);
  ControlServer::Options options{
      path, [owner = geteuid()](uid_t peer) { return peer_allowed(peer, owner); }};
  auto server = ControlServer::start(std::move(options), make_handler((*engine)->services()));
  if (!server) return tl::unexpected(server.error());
  auto link = ControlLink::make(config_.cache_dir, path);
  if (!link) {
    server->reset();
    return tl::unexpected(link.error());
  }
  engine_ = std::move(*engine);
  server_ = std::move(*server);
  link_.emplace(std::move(*link));
  return {};
}

}  // namespace nexus::tools
