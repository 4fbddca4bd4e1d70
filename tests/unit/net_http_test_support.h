// What the HTTP client's tests share: a call that is waited for, requests, a server that is held
// up.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/net/http_client.h"
#include "tests/unit/net_test_server.h"

namespace nexus::test {

struct Answer {
  Result<HttpResponse> response = fail(Code::kInvalid, "none");
  std::string body;
};

// Runs one request and waits for its end.
class Call {
 public:
  Call(HttpClient& http, HttpRequest request, int priority = 0) {
    request.on_body = [this](std::span<const std::byte> bytes) -> Result<void> {
      body_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return {};
    };
    request.on_done = [this](Result<HttpResponse> result) {
      done_.set({std::move(result), std::move(body_)});
    };
    id = http.start(std::move(request), priority);
  }
  Answer wait() { return done_.get(); }
  uint64_t id;

 private:
  std::string body_;
  Later<Answer> done_;
};

inline HttpRequest get(const std::string& url) {
  HttpRequest request;
  request.url = url;
  return request;
}

inline HttpRequest get_range(const std::string& url, uint64_t offset, uint64_t length) {
  HttpRequest request = get(url);
  request.range = ByteRange{offset, length};
  return request;
}

// A server whose /slow answers only when the gate opens.
struct SlowServer {
  SlowServer() {
    server.http.Get(R"(/slow/(\d+))", [this](const httplib::Request& req, httplib::Response& res) {
      const int now = running.add(1);
      {
        std::lock_guard lock(mutex);
        order.push_back(std::stoi(req.matches[1]));
        most = std::max(most, now);
      }
      arrived.add();
      gate.wait();
      running.add(-1);
      const_cast<httplib::Request&>(req).ranges.clear();
      res.set_content("ok", "text/plain");
    });
    server.http.Get("/quick", [](const httplib::Request&, httplib::Response& res) {
      res.set_content("ok", "text/plain");
    });
    server.start();
  }
  ~SlowServer() { gate.open(); }
  HttpRequest request(int number) {
    return get_range(server.url("/slow/" + std::to_string(number)), 0, 2);
  }
  Counter running, arrived;
  Gate gate;
  std::mutex mutex;
  std::vector<int> order;
  int most = 0;
  TestServer server;
};

}  // namespace nexus::test
