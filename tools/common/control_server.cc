#include "tools/common/control_server.h"

#include <fcntl.h>
#include <poll.h>
#include <spdlog/spdlog.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tools/common/control_client.h"
#include "tools/common/descriptor_passing.h"

namespace nexus::tools {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kIdle = std::chrono::milliseconds(ControlServer::kIdleMs);
constexpr auto kFlushAtStop = std::chrono::seconds(1);

// Where replies meet the server's thread. Outlives the server while a handler's Reply is alive.
struct Mailbox {
  explicit Mailbox(int fd) : wake_fd(fd) {}
  ~Mailbox() { close(wake_fd); }
  void wake() const {
    const uint64_t one = 1;
    // Fails only when the counter is full, and then the thread is awake anyway.
    [[maybe_unused]] const ssize_t written = write(wake_fd, &one, sizeof one);
  }
  struct Line {
    uint64_t client = 0;
    std::string text;
    bool progress = false;
    std::shared_ptr<const Descriptor> file;  // goes with the text
    std::shared_ptr<void> lease;             // held while the client stays
  };
  void post(Line line) {
    {
      std::lock_guard lock(mutex);
      lines.push_back(std::move(line));
    }
    wake();
  }
  void on_gone(uint64_t client, std::function<void()> callback) {
    {
      std::lock_guard lock(mutex);
      if (auto waits = waiting.find(client); waits != waiting.end()) {
        waits->second = std::move(callback);
        return;
      }
    }
    callback();
  }
  // The client is answered, or has left: then whoever works for it is told.
  void forget(uint64_t client, bool left) {
    std::function<void()> callback;
    {
      std::lock_guard lock(mutex);
      auto waits = waiting.find(client);
      if (waits == waiting.end()) return;
      if (left) callback = std::move(waits->second);
      waiting.erase(waits);
    }
    if (callback) callback();
  }

  const int wake_fd;
  std::mutex mutex;  // guards what follows
  std::vector<Line> lines;
  std::map<uint64_t, std::function<void()>> waiting;  // clients whose request is being worked on
  bool stopping = false;
};

struct Client {
  enum class State { kReading, kWaiting, kWriting, kHolding };
  int fd = -1;
  State state = State::kReading;
  std::string in, out;
  size_t sent = 0;
  std::shared_ptr<const Descriptor> received,
      file;  // with the request; with the answer, until it is sent
  std::shared_ptr<void> lease;
  Clock::time_point deadline;  // not of kWaiting and kHolding: those take what they take
};

struct Identity {
  dev_t device = 0;
  ino_t inode = 0;
  bool operator==(const Identity&) const = default;
};

Identity identity(const std::string& path) {
  struct stat status {};
  if (lstat(path.c_str(), &status) != 0) return {};
  return {status.st_dev, status.st_ino};
}

}  // namespace

struct ControlServer::Impl {
  Options options;
  Handler handler;
  int listen_fd = -1;
  Identity socket_identity;
  std::shared_ptr<Mailbox> mailbox;
  std::map<uint64_t, Client> clients;  // of the server's thread
  uint64_t next_client = 1;
  size_t leases = 0;  // clients that hold one
  std::thread thread;

  ~Impl() {
    if (listen_fd >= 0) close(listen_fd);
  }

  void run() {
    while (true) {
      {
        std::lock_guard lock(mailbox->mutex);
        if (mailbox->stopping) break;
      }
      turn(true, kIdle);
    }
    const auto end = Clock::now() + kFlushAtStop;
    deliver();
    while (is_writing() && Clock::now() < end) {
      turn(false, std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()));
    }
    while (!clients.empty()) drop(clients.begin()->first);
  }

  bool is_writing() const {
    for (const auto& [id, client] : clients) {
      if (client.state == Client::State::kWriting) return true;
    }
    return false;
  }

  // One poll and what it brought.
  void turn(bool serve, std::chrono::milliseconds wait_max) {
    std::vector<pollfd> polls = {{mailbox->wake_fd, POLLIN, 0}};
    std::vector<uint64_t> ids = {0};
    const bool room = serve && clients.size() - leases < kClientsMax;
    if (room) {
      polls.push_back({listen_fd, POLLIN, 0});
      ids.push_back(0);
    }
    for (const auto& [id, client] : clients) {
      const bool reads =
          client.state == Client::State::kReading || client.state == Client::State::kHolding;
      const short events = reads ? POLLIN : client.sent < client.out.size() ? POLLOUT : 0;
      polls.push_back({client.fd, events, 0});
      ids.push_back(id);
    }
    // A deadline is noticed at most this much late.
    const auto wait =
        std::min(wait_max, std::chrono::milliseconds(clients.empty() ? kIdleMs : 500));
    if (poll(polls.data(), polls.size(), static_cast<int>(std::max<int64_t>(wait.count(), 0))) < 0)
      return;
    if (polls[0].revents) drain_wake();
    if (room && polls[1].revents) accept_client();
    deliver();
    for (size_t i = room ? 2 : 1; i < polls.size(); ++i) {
      if (polls[i].revents && clients.count(ids[i])) advance(ids[i], polls[i].revents, serve);
    }
    expire();
  }

  void drain_wake() const {
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t got = read(mailbox->wake_fd, &count, sizeof count);
  }

  void accept_client() {
    const int fd = accept4(listen_fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      // Out of descriptors: the connection stays in the backlog, so do not spin on it.
      if (errno == EMFILE || errno == ENFILE)
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      return;
    }
    ucred peer{};
    socklen_t length = sizeof peer;
    const uint64_t id = next_client++;
    Client client;
    client.fd = fd;
    client.deadline = Clock::now() + kIdle;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0 ||
        !options.allowed(peer.uid)) {
      spdlog::warn("control: refused uid {} (pid {})", peer.uid, peer.pid);
      client.state = Client::State::kWriting;
      client.out = encode_answer(fail(Code::kAccess,
                                      "permission denied: this mount belongs to another user")) +
                   "\n";
    }
    clients.emplace(id, std::move(client));
  }

  void deliver() {
    std::vector<Mailbox::Line> lines;
    {
      std::lock_guard lock(mailbox->mutex);
      lines.swap(mailbox->lines);
    }
    for (Mailbox::Line& line : lines) {
      auto found = clients.find(line.client);
      // Gone, or a second reply to one request.
      if (found == clients.end() || found->second.state != Client::State::kWaiting) continue;
      Client& client = found->second;
      const bool idle = client.sent == client.out.size();
      if (line.progress && !idle) continue;
      if (idle) {
        client.out.clear();
        client.sent = 0;
      }
      if (line.lease && leases >= kLeasesMax) {
        line = {line.client,
                encode_answer(fail(Code::kLimit, "too many layers are held by programs already")),
                false, nullptr, nullptr};
      }
      client.out += line.text + "\n";
      if (line.progress) continue;
      mailbox->forget(line.client, false);
      client.file = std::move(line.file);
      client.lease = std::move(line.lease);
      if (client.lease) ++leases;
      client.state = Client::State::kWriting;
      client.deadline = Clock::now() + kIdle;
    }
  }

  void advance(uint64_t id, short events, bool serve) {
    Client& client = clients.at(id);
    if (client.state == Client::State::kReading && serve) return read_some(id, client);
    if (client.state == Client::State::kWriting) return write_some(id, client);
    if (client.state == Client::State::kHolding)
      return drop(id);  // it left, or says what it must not
    // While a client waits for its answer it takes progress, or leaves.
    if (events & (POLLHUP | POLLERR | POLLNVAL)) return drop(id);
    if (events & POLLOUT) write_some(id, client);
  }

  void read_some(uint64_t id, Client& client) {
    char buffer[4096];
    const ssize_t got = receive_with_descriptor(client.fd, buffer, client.received);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) return drop(id);
    client.in.append(buffer, static_cast<size_t>(got));
    client.deadline = Clock::now() + kIdle;
    const size_t end = client.in.find('\n');
    if (end == std::string::npos && client.in.size() <= kRequestBytesMax) return;
    client.state = Client::State::kWaiting;
    {
      std::lock_guard lock(mailbox->mutex);
      mailbox->waiting.emplace(id, nullptr);
    }
    const Reply reply(mailbox, id, std::move(client.received));
    if (end == std::string::npos || end > kRequestBytesMax) {
      return reply(fail(Code::kLimit, "the request is larger than 64 KiB"));
    }
    auto request = decode_request(std::string_view(client.in).substr(0, end));
    if (!request) return reply(tl::unexpected(request.error()));
    client.in.clear();
    handler(*request, reply);
  }

  void write_some(uint64_t id, Client& client) {
    const ssize_t put =
        send_with_descriptor(client.fd, std::string_view(client.out).substr(client.sent),
                             client.file ? client.file->get() : -1);
    if (put < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (put < 0) return drop(id);
    client.file.reset();  // it went with the first byte
    client.sent += static_cast<size_t>(put);
    client.deadline = Clock::now() + kIdle;
    if (client.sent < client.out.size() || client.state != Client::State::kWriting) return;
    if (!client.lease) return drop(id);
    client.state = Client::State::kHolding;
  }

  void expire() {
    const auto now = Clock::now();
    for (auto at = clients.begin(); at != clients.end();) {
      const Client::State state = at->second.state;
      const uint64_t id = (at++)->first;
      const bool bound = state == Client::State::kReading || state == Client::State::kWriting;
      if (bound && now > clients.at(id).deadline) drop(id);
    }
  }

  void drop(uint64_t id) {
    mailbox->forget(id, true);
    const auto found = clients.find(id);
    close(found->second.fd);
    if (found->second.lease) --leases;
    clients.erase(found);
  }
};

void ControlServer::Reply::operator()(Result<Json> answer) const {
  if (!mailbox_) return;
  std::static_pointer_cast<Mailbox>(mailbox_)->post(
      {client_, encode_answer(answer), false, nullptr, nullptr});
}

void ControlServer::Reply::progress(const Json& state) const {
  if (!mailbox_) return;
  std::static_pointer_cast<Mailbox>(mailbox_)->post(
      {client_, encode_request(Json{{"progress", state}}), true, nullptr, nullptr});
}

void ControlServer::Reply::lend(Json answer, std::shared_ptr<const Descriptor> file,
                                std::shared_ptr<void> lease) const {
  if (!mailbox_) return;
  std::static_pointer_cast<Mailbox>(mailbox_)->post(
      {client_, encode_answer(std::move(answer)), false, std::move(file), std::move(lease)});
}

void ControlServer::Reply::on_gone(std::function<void()> gone) const {
  if (mailbox_) std::static_pointer_cast<Mailbox>(mailbox_)->on_gone(client_, std::move(gone));
}

Result<std::unique_ptr<ControlServer>> ControlServer::start(Options options, Handler handler) {
  const std::string path = options.path;
  const auto bad = [&](const std::string& why) {
    return fail(Code::kInvalid, "control socket " + path + ": " + why);
  };
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return bad("the path is too long for a socket");
  std::memcpy(address.sun_path, path.c_str(), path.size());
  if (auto other = ControlClient::connect(path)) {
    return bad("pid " + std::to_string(other->peer().pid) + " already answers here");
  }
  unlink(path.c_str());  // of a daemon that was killed; what does not exist is fine

  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->handler = std::move(handler);
  impl->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (impl->listen_fd < 0) return bad(std::strerror(errno));
  if (bind(impl->listen_fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return bad(std::strerror(errno));
  }
  impl->socket_identity = identity(path);
  // The directory is 0700 already; this holds wherever a test puts the socket.
  if (chmod(path.c_str(), 0600) != 0) return bad(std::strerror(errno));
  if (listen(impl->listen_fd, kClientsMax) != 0) return bad(std::strerror(errno));
  const int wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake < 0) return bad(std::strerror(errno));
  impl->mailbox = std::make_shared<Mailbox>(wake);
  impl->thread = std::thread([raw = impl.get()] { raw->run(); });
  return std::unique_ptr<ControlServer>(new ControlServer(std::move(impl)));
}

ControlServer::ControlServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ControlServer::~ControlServer() {
  stop();
}

void ControlServer::stop() {
  if (!impl_->thread.joinable()) return;
  {
    std::lock_guard lock(impl_->mailbox->mutex);
    impl_->mailbox->stopping = true;
  }
  impl_->mailbox->wake();
  impl_->thread.join();
  // Only our own: the next daemon of this mountpoint may have put its socket there already.
  if (identity(impl_->options.path) == impl_->socket_identity) unlink(impl_->options.path.c_str());
}

}  // namespace nexus::tools
