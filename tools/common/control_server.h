// The daemon's side of the control socket (control_protocol.h): one thread, a poll loop, sockets
// that never block, so a client that is slow or silent delays nobody else.
//
// Bounds: kClientsMax connections (later ones wait in the kernel's backlog of as many), a request
// and an answer each under its maximum, kIdleMs without a byte moving ends a connection.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "backend/base/error.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

class ControlServer {
 public:
  static constexpr int kClientsMax = 32;
  static constexpr int kIdleMs = 10'000;

  // May be called from any thread, once; later calls and those after stop() do nothing.
  using Reply = std::function<void(Result<Json>)>;
  // Runs on the server's thread: must not wait. Requests are answered in any order.
  using Handler = std::function<void(const Json& request, Reply reply)>;

  struct Options {
    std::string path;  // of the socket; a dead one there is replaced
    // Who may talk to the daemon.
    std::function<bool(uid_t peer)> allowed;
  };
  // kInvalid when a daemon already answers at the path, or the socket cannot be made.
  static Result<std::unique_ptr<ControlServer>> start(Options options, Handler handler);

  ~ControlServer();  // stop()
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  // Sends what is answered already (for at most 1 s), closes every connection, removes the socket
  // and joins. No handler runs after it. Idempotent; not from the handler.
  void stop();

 private:
  struct Impl;
  explicit ControlServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace nexus::tools
