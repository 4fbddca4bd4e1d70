// The asking side of the control socket (control_protocol.h). One request a connection.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "tools/common/control_protocol.h"

namespace nexus::tools {

// Thread safety: one thread at a time.
class ControlClient {
 public:
  struct Peer {
    pid_t pid = 0;
    uid_t uid = 0;
  };

  // kNotFound when nobody listens there; kAccess when this user may not, or when the listener is
  // neither this user nor root: it could be anyone's, and is not talked to (root talks to
  // everybody).
  static Result<ControlClient> connect(const std::string& path);

  ~ControlClient();
  ControlClient(ControlClient&& other) noexcept;
  ControlClient& operator=(ControlClient&&) = delete;

  const Peer& peer() const { return peer_; }
  // Sends the request and waits for the answer; kLimit when it has not come in time.
  // `progress` gets what the daemon says on the way; each such line begins the time anew.
  Result<Json> call(const Json& request, std::chrono::milliseconds timeout,
                    const std::function<void(const Json&)>& progress = {});

  // Passes `fd` along with the next request; it stays the caller's.
  void attach(int fd) { attached_ = fd; }
  // What came along with the answer. It is lent: keep the connection while it is used.
  std::shared_ptr<const Descriptor> take_descriptor() { return std::move(received_); }

 private:
  ControlClient(int fd, Peer peer) : fd_(fd), peer_(peer) {}
  int fd_;
  Peer peer_;
  int attached_ = -1;
  std::shared_ptr<const Descriptor> received_;
};

// The daemon of a canonical mountpoint, wherever its socket is (socket_directories()). kNotFound
// when no daemon answers for it.
Result<ControlClient> connect_mount(const std::string& mountpoint, const Environment& environment);

}  // namespace nexus::tools
