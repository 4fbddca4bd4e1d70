// Servers on loopback for the tests of net/ and origin/. No test sleeps: gates open when it says
// so.
#pragma once

#include <arpa/inet.h>
#include <httplib.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace nexus::test {

inline constexpr std::chrono::seconds kPatience{30};  // of a test for what must happen

// Something that happens once, and can be waited for. Copies are the same gate: a server's thread
// that may come to it when the test is over captures it by value.
class Gate {
 public:
  void open() const {
    std::lock_guard lock(state_->mutex);
    state_->open = true;
    state_->wake.notify_all();
  }
  bool wait() const {
    const auto state = state_;
    std::unique_lock lock(state->mutex);
    return state->wake.wait_for(lock, kPatience, [&] { return state->open; });
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable wake;
    bool open = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// A number that can be waited for.
class Counter {
 public:
  int add(int by = 1) {
    std::lock_guard lock(mutex_);
    value_ += by;
    wake_.notify_all();
    return value_;
  }
  int value() const {
    std::lock_guard lock(mutex_);
    return value_;
  }
  bool wait_for(int at_least) {
    std::unique_lock lock(mutex_);
    return wake_.wait_for(lock, kPatience, [&] { return value_ >= at_least; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  int value_ = 0;
};

// A value that another thread sets once.
template <typename T>
class Later {
 public:
  void set(T value) { promise_.set_value(std::move(value)); }
  bool ready() { return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready; }
  T get() {
    if (future_.wait_for(kPatience) != std::future_status::ready) {
      throw std::runtime_error("waited in vain");
    }
    return future_.get();
  }

 private:
  std::promise<T> promise_;
  std::future<T> future_ = promise_.get_future();
};

// cpp-httplib on a port of its own. Add handlers, then start().
class TestServer {
 public:
  TestServer() {
    http.new_task_queue = [] { return new httplib::ThreadPool(24); };
    http.set_keep_alive_max_count(100000);
    http.set_keep_alive_timeout(1);
    http.set_tcp_nodelay(true);
    port_ = http.bind_to_any_port("127.0.0.1");
  }
  ~TestServer() { stop(); }
  void start() {
    thread_ = std::thread([this] { http.listen_after_bind(); });
    while (!http.is_running()) std::this_thread::yield();
  }
  void stop() {
    if (!thread_.joinable()) return;
    http.stop();
    thread_.join();
  }
  int port() const { return port_; }
  std::string url(const std::string& path = "") const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }

  httplib::Server http;

 private:
  int port_ = 0;
  std::thread thread_;
};

// Sends exactly the bytes that the test wants: for answers that no proper server gives.
class RawServer {
 public:
  // Given the head of each request; what it returns is sent. The connection is closed after an
  // answer unless keep_open.
  using Handler = std::function<std::string(const std::string& head)>;

  explicit RawServer(Handler handler, bool keep_open = false)
      : handler_(std::move(handler)), keep_open_(keep_open) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    if (bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        listen(listener_, 128) != 0) {
      throw std::runtime_error("no socket");
    }
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { accept_all(); });
  }
  ~RawServer() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    {
      std::lock_guard lock(mutex_);
      for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    for (auto& worker : workers_) worker.join();
    close(listener_);
  }
  std::string url(const std::string& path = "") const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }
  Counter connections;

 private:
  void accept_all() {
    for (;;) {
      const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      connections.add();
      {
        std::lock_guard lock(mutex_);
        open_.insert(fd);
      }
      workers_.emplace_back([this, fd] { serve(fd); });
    }
  }
  void serve(int fd) {
    std::string input;
    char piece[4096];
    for (;;) {
      const size_t end = input.find("\r\n\r\n");
      if (end != std::string::npos) {
        const std::string answer = handler_(input.substr(0, end));
        input.erase(0, end + 4);
        for (size_t sent = 0; sent < answer.size();) {
          const ssize_t n = send(fd, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
          if (n <= 0) break;
          sent += static_cast<size_t>(n);
        }
        if (!keep_open_) break;
        continue;
      }
      const ssize_t n = recv(fd, piece, sizeof(piece), 0);
      if (n <= 0) break;
      input.append(piece, static_cast<size_t>(n));
    }
    {
      std::lock_guard lock(mutex_);
      open_.erase(fd);
    }
    close(fd);
  }

  const Handler handler_;
  const bool keep_open_;
  int listener_ = -1;
  int port_ = 0;
  std::mutex mutex_;
  std::set<int> open_;
  std::list<std::thread> workers_;  // the accepting thread's, then the destructor's
  std::thread thread_;
};

// A port that nothing listens on.
inline int dead_port() {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  static_cast<void>(bind(fd, reinterpret_cast<sockaddr*>(&address), length));
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  close(fd);
  return ntohs(address.sin_port);
}

// Bytes that differ everywhere, so that a wrong offset shows.
inline std::string pattern_bytes(size_t size, uint64_t seed = 1) {
  std::string bytes(size, '\0');
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (auto& c : bytes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    c = static_cast<char>(state);
  }
  return bytes;
}

}  // namespace nexus::test
