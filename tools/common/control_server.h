// The daemon's side of the control socket (control_protocol.h): one thread, a poll loop, sockets
// that never block, so a client that is slow or silent delays nobody else.
//
// Bounds: kClientsMax connections (later ones wait in the kernel's backlog of as many), a request
// and an answer each under its maximum, kIdleMs without a byte moving ends a connection. Beside
// those kLeasesMax connections that hold what they were lent.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

class ControlServer {
 public:
  static constexpr int kClientsMax = 32;
  static constexpr int kIdleMs = 10'000;
  static constexpr int kLeasesMax = 4096;

  // What a handler answers with. Copyable; from any thread; after stop() nothing of it does
  // anything.
  class Reply {
   public:
    Reply() = default;
    // Once; later calls do nothing.
    void operator()(Result<Json> answer) const;
    // A line ahead of the answer. It is left out while the client has not taken the last one.
    void progress(const Json& state) const;
    // `gone` is called once, on the server's thread, when the client leaves before it is answered
    // or the server stops; at once when that has happened already.
    void on_gone(std::function<void()> gone) const;
    // Answers, and passes `file` along with it. The client keeps its connection for as long as it
    // uses the file, and `lease` is let go of, on the server's thread, when that ends, or at once
    // when the client is gone already.
    void lend(Json answer, std::shared_ptr<const Descriptor> file,
              std::shared_ptr<void> lease) const;
    // What the client passed along with its request, or null.
    const std::shared_ptr<const Descriptor>& descriptor() const { return descriptor_; }

   private:
    friend class ControlServer;
    Reply(std::shared_ptr<void> mailbox, uint64_t client,
          std::shared_ptr<const Descriptor> descriptor)
        : mailbox_(std::move(mailbox)), client_(client), descriptor_(std::move(descriptor)) {}
    std::shared_ptr<void> mailbox_;  // a Mailbox, see control_server.cc
    uint64_t client_ = 0;
    std::shared_ptr<const Descriptor> descriptor_;
  };
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
