#include "tools/common/control_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "tools/common/descriptor_passing.h"

namespace nexus::tools {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::string_view kProgressStart = "{\"progress\"";

// Waits until the socket is ready; false when the time is over.
bool wait_for(int fd, short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return false;
    pollfd poll_fd{fd, events, 0};
    const int ready = poll(&poll_fd, 1, static_cast<int>(std::min<int64_t>(left.count(), 60'000)));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace

Result<ControlClient> ControlClient::connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return fail(Code::kInvalid, path + ": too long for a socket");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return fail(Code::kLimit, std::string("socket: ") + std::strerror(errno));
  ControlClient client(fd, {});
  // A Unix socket connects at once or not at all; EAGAIN is a full backlog.
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const Code code = errno == EACCES || errno == EPERM ? Code::kAccess
                      : errno == EAGAIN                 ? Code::kLimit
                                                        : Code::kNotFound;
    const std::string why = std::strerror(errno);
    return fail(code,
                path + ": " + why +
                    (code == Code::kAccess ? ": only the mount's owner and root may ask" : ""));
  }
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    return fail(Code::kAccess, path + ": " + std::strerror(errno));
  }
  const uid_t self = geteuid();
  if (self != 0 && peer.uid != 0 && peer.uid != self) {
    return fail(Code::kAccess, path + ": belongs to uid " + std::to_string(peer.uid));
  }
  client.peer_ = {peer.pid, peer.uid};
  return client;
}

ControlClient::~ControlClient() {
  if (fd_ >= 0) close(fd_);
}

ControlClient::ControlClient(ControlClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      peer_(other.peer_),
      attached_(other.attached_),
      received_(std::move(other.received_)) {}

Result<Json> ControlClient::call(const Json& request, std::chrono::milliseconds timeout,
                                 const std::function<void(const Json&)>& progress) {
  auto deadline = Clock::now() + timeout;
  const auto late = [&] {
    return fail(Code::kLimit, "pid " + std::to_string(peer_.pid) + " does not answer");
  };
  const std::string line = encode_request(request) + "\n";
  for (size_t sent = 0; sent < line.size();) {
    if (!wait_for(fd_, POLLOUT, deadline)) return late();
    const ssize_t put =
        send_with_descriptor(fd_, std::string_view(line).substr(sent), sent == 0 ? attached_ : -1);
    if (put < 0 && (errno == EPIPE || errno == ECONNRESET))
      break;  // it may have refused us: read why
    if (put < 0 && errno != EAGAIN && errno != EINTR) {
      return fail(Code::kNotFound, std::string("control socket: ") + std::strerror(errno));
    }
    if (put > 0) sent += static_cast<size_t>(put);
  }
  attached_ = -1;
  std::string answer;
  char buffer[65536];
  while (answer.size() <= kAnswerBytesMax) {
    if (!wait_for(fd_, POLLIN, deadline)) return late();
    const ssize_t got = receive_with_descriptor(fd_, buffer, received_);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got <= 0)
      return fail(Code::kNotFound, "the daemon closed the connection without an answer");
    const size_t unread = answer.size();
    answer.append(buffer, static_cast<size_t>(got));
    size_t begin = 0;
    for (size_t end = answer.find('\n', unread); end != std::string::npos;
         end = answer.find('\n', begin)) {
      const auto text = std::string_view(answer).substr(begin, end - begin);
      begin = end + 1;
      if (!text.starts_with(kProgressStart)) return decode_answer(text);
      const Json state = Json::parse(text, nullptr, false);
      if (progress && state.is_object()) progress(state.value("progress", Json()));
      deadline = Clock::now() + timeout;
    }
    answer.erase(0, begin);
  }
  return fail(Code::kLimit, "the daemon's answer is larger than 64 MiB");
}

Result<ControlClient> connect_mount(const std::string& mountpoint, const Environment& environment) {
  Error worst{Code::kNotFound, mountpoint + ": no nexusfs daemon answers for it"};
  for (const std::string& directory : socket_directories(geteuid(), environment)) {
    auto client = ControlClient::connect(directory + "/" + socket_name(mountpoint));
    if (client) return client;
    if (client.error().code != Code::kNotFound) worst = client.error();
  }
  return tl::unexpected(worst);
}

}  // namespace nexus::tools
