// A TCP line that is long: every byte, both ways, arrives half a round trip after it was sent. This kernel has no netem.
//
//   delay_proxy TARGET_PORT ROUND_TRIP_MS      prints its own port, then serves until a signal ends it
//
// Bytes wait in pipes and move by splice(), so that the line itself takes little of the processors that origin, daemon
// and reader share. Each piece that was read has a pipe of its own: how much one pipe holds is limited.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kPipeBytes = 1 << 20;
// Under way at most, each way of each connection.
constexpr size_t kPiecesMax = 256;

int checked(int result, const char* what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

struct Pipe {
  int in = -1, out = -1;
};

// One way of a connection.
struct Way {
  int from = -1, to = -1;
  struct Piece {
    Clock::time_point due;
    size_t bytes;  // 0: the sender is done
    Pipe pipe;
  };
  std::deque<Piece> under_way;
  bool refused = false;  // by the receiver
  bool read_all = false, ended = false;
};

struct Connection {
  int client = -1, target = -1;
  Way up, down;
  Clock::time_point opens;  // the handshake takes a round trip, too
  bool open = false;
  bool done() const { return up.ended && down.ended; }
};

class Proxy {
 public:
  Proxy(uint16_t target_port, double round_trip_ms)
      : target_port_(target_port),
        delay_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double, std::milli>(round_trip_ms / 2))),
        epoll_(checked(epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
        listener_(checked(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket")) {
    sockaddr_in address = loopback(0);
    checked(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
    checked(listen(listener_, 512), "listen");
    socklen_t size = sizeof address;
    checked(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), "getsockname");
    watch(listener_, nullptr, EPOLLIN);
    std::printf("%d\n", ntohs(address.sin_port));
    std::fflush(stdout);
  }

  [[noreturn]] void serve() {
    std::vector<epoll_event> events(64);
    for (;;) {
      const timespec wait = until_next();
      const int count = epoll_pwait2(epoll_, events.data(), static_cast<int>(events.size()), &wait, nullptr);
      for (int i = 0; i < count; ++i) {
        auto* connection = static_cast<Connection*>(events[static_cast<size_t>(i)].data.ptr);
        if (!connection) accept_all();
      }
      // Few connections, each with much to do at every turn: all are looked at rather than looked up.
      for (auto it = connections_.begin(); it != connections_.end();) {
        Connection& connection = **it;
        turn(connection);
        it = connection.done() ? close_of(it) : std::next(it);
      }
    }
  }

 private:
  static sockaddr_in loopback(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void watch(int fd, void* who, uint32_t what) {
    epoll_event event{};
    event.events = what;
    event.data.ptr = who;
    checked(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
  }

  void accept_all() {
    for (;;) {
      const int client = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (client < 0) return;
      auto connection = std::make_unique<Connection>();
      connection->client = client;
      connection->opens = Clock::now() + 2 * delay_;
      connections_.insert(std::move(connection));
    }
  }

  void open(Connection& connection) {
    connection.open = true;
    connection.target = checked(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    const sockaddr_in address = loopback(target_port_);
    if (connect(connection.target, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
      connection.up.ended = connection.down.ended = true;
      return;
    }
    checked(fcntl(connection.target, F_SETFL, O_NONBLOCK), "fcntl");
    connection.up.from = connection.down.to = connection.client;
    connection.up.to = connection.down.from = connection.target;
    for (const int fd : {connection.client, connection.target}) {
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      watch(fd, &connection, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    }
  }

  Pipe take_pipe() {
    if (!pipes_.empty()) {
      const Pipe pipe = pipes_.back();
      pipes_.pop_back();
      return pipe;
    }
    int ends[2];
    checked(pipe2(ends, O_NONBLOCK | O_CLOEXEC), "pipe2");
    fcntl(ends[1], F_SETPIPE_SZ, kPipeBytes);
    return {ends[1], ends[0]};
  }

  void turn(Connection& connection) {
    if (!connection.open) {
      if (Clock::now() < connection.opens) return;
      open(connection);
      if (connection.done()) return;
    }
    for (Way* way : {&connection.up, &connection.down}) {
      deliver(*way);
      receive(*way);
    }
  }

  void receive(Way& way) {
    while (!way.read_all && way.under_way.size() < kPiecesMax) {
      const Pipe pipe = take_pipe();
      const ssize_t bytes =
          splice(way.from, nullptr, pipe.in, nullptr, kPipeBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (bytes <= 0) pipes_.push_back(pipe);
      if (bytes < 0 && errno == EAGAIN) return;
      way.read_all = bytes <= 0;
      way.under_way.push_back({Clock::now() + delay_, bytes > 0 ? static_cast<size_t>(bytes) : 0, pipe});
    }
  }

  void deliver(Way& way) {
    way.refused = false;
    while (!way.under_way.empty() && way.under_way.front().due <= Clock::now()) {
      Way::Piece& piece = way.under_way.front();
      if (piece.bytes == 0) {
        shutdown(way.to, SHUT_WR);
        way.ended = true;
        way.under_way.pop_front();
        return;
      }
      const ssize_t bytes = splice(piece.pipe.out, nullptr, way.to, nullptr, piece.bytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (bytes < 0 && errno == EAGAIN) {
        way.refused = true;  // EPOLLOUT tells when to go on
        return;
      }
      if (bytes <= 0) {  // the receiver is gone
        way.ended = way.read_all = true;
        discard(way);
        shutdown(way.from, SHUT_RD);
        return;
      }
      piece.bytes -= static_cast<size_t>(bytes);
      if (piece.bytes == 0) {
        pipes_.push_back(piece.pipe);
        way.under_way.pop_front();
      }
    }
  }

  static void discard(Way& way) {
    for (const Way::Piece& piece : way.under_way) {
      if (piece.bytes == 0) continue;
      close(piece.pipe.in);
      close(piece.pipe.out);
    }
    way.under_way.clear();
  }

  timespec until_next() const {
    auto next = Clock::now() + std::chrono::seconds(1);
    for (const auto& connection : connections_) {
      if (!connection->open) next = std::min(next, connection->opens);
      for (const Way* way : {&connection->up, &connection->down}) {
        if (!way->under_way.empty() && !way->refused) next = std::min(next, way->under_way.front().due);
      }
    }
    const auto wait = std::max(next - Clock::now(), Clock::duration::zero());
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(wait).count();
    return {ns / 1'000'000'000, ns % 1'000'000'000};
  }

  using Connections = std::set<std::unique_ptr<Connection>>;
  Connections::iterator close_of(Connections::iterator it) {
    discard((*it)->up);
    discard((*it)->down);
    close((*it)->client);
    close((*it)->target);
    return connections_.erase(it);
  }

  const uint16_t target_port_;
  const Clock::duration delay_;
  const int epoll_, listener_;
  Connections connections_;
  std::vector<Pipe> pipes_;  // empty ones
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: delay_proxy TARGET_PORT ROUND_TRIP_MS\n");
    return 2;
  }
  std::signal(SIGPIPE, SIG_IGN);
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  try {
    Proxy(static_cast<uint16_t>(std::stoi(argv[1])), std::stod(argv[2])).serve();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "delay_proxy: %s\n", error.what());
    return 1;
  }
}
