#include <gtest/gtest.h>

#include "backend/net/http_client.h"
#include "backend/net/redact.h"
#include "backend/net/url.h"
#include "tests/unit/net_test_server.h"

namespace nexus {
namespace {

using test::Counter;
using test::Gate;
using test::Later;
using test::RawServer;
using test::TestServer;

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

HttpRequest get(const std::string& url) {
  HttpRequest request;
  request.url = url;
  return request;
}

HttpRequest get_range(const std::string& url, uint64_t offset, uint64_t length) {
  HttpRequest request = get(url);
  request.range = ByteRange{offset, length};
  return request;
}

TEST(HttpClient, DeliversTheRangeThatWasAskedFor) {
  TestServer server;
  const std::string data = test::pattern_bytes(3 << 20);
  server.http.Get("/f", [&](const httplib::Request&, httplib::Response& res) {
    res.set_content(data, "application/octet-stream");
  });
  server.start();
  HttpClient http({});
  Answer answer = Call(http, get_range(server.url("/f"), 1000, 2 << 20)).wait();
  ASSERT_TRUE(answer.response) << answer.response.error().what;
  EXPECT_EQ(answer.response->status, 206);
  EXPECT_EQ(answer.response->header("content-range"), "bytes 1000-2098151/3145728");
  EXPECT_EQ(answer.body, data.substr(1000, 2 << 20));
}

TEST(HttpClient, AsksForStoredBytesAndSendsTheGivenHeaders) {
  std::string head;
  RawServer server([&](const std::string& h) {
    head = h;
    return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
  });
  HttpOptions options;
  options.user_agent = "nexusfs/test";
  HttpClient http(options);
  HttpRequest request = get(server.url("/"));
  request.headers = {"X-One: 1"};
  ASSERT_TRUE(Call(http, request).wait().response);
  EXPECT_NE(head.find("Accept-Encoding: identity"), std::string::npos);
  EXPECT_NE(head.find("X-One: 1"), std::string::npos);
  EXPECT_NE(head.find("User-Agent: nexusfs/test"), std::string::npos);
}

TEST(HttpClient, ARedirectIsShownAndNotFollowed) {
  TestServer server;
  Counter followed;
  server.http.Get("/a",
                  [](const httplib::Request&, httplib::Response& res) { res.set_redirect("/b"); });
  server.http.Get("/b", [&](const httplib::Request&, httplib::Response&) { followed.add(); });
  server.start();
  HttpClient http({});
  Answer answer = Call(http, get(server.url("/a"))).wait();
  ASSERT_TRUE(answer.response);
  EXPECT_EQ(answer.response->status, 302);
  EXPECT_EQ(answer.response->header("location"), "/b");
  EXPECT_EQ(followed.value(), 0);
}

TEST(HttpClient, OtherSchemesAreRefused) {
  HttpClient http({});
  for (const char* url :
       {"file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/", "", "nonsense"}) {
    Answer answer = Call(http, get(url)).wait();
    ASSERT_FALSE(answer.response) << url;
    EXPECT_EQ(answer.response.error().code, Code::kInvalid) << url;
  }
}

TEST(HttpClient, AWrongAnswersBodyIsNotDeliveredAndItsConnectionIsUsedAgain) {
  RawServer server(
      [](const std::string&) { return "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nwrong"; },
      /*keep_open=*/true);
  HttpClient http({});
  for (int i = 0; i < 3; ++i) {
    HttpRequest request = get(server.url("/"));
    request.on_headers = [](const HttpResponse& r) -> Result<void> {
      return fail(Code::kNotFound, std::to_string(r.status));
    };
    Answer answer = Call(http, request).wait();
    ASSERT_FALSE(answer.response);
    EXPECT_EQ(answer.response.error().code, Code::kNotFound);
    EXPECT_EQ(answer.response.error().what, "404");
    EXPECT_EQ(answer.body, "");
  }
  EXPECT_EQ(server.connections.value(), 1);
}

TEST(HttpClient, AnErrorOfTheBodyCallbackEndsTheRequestWithIt) {
  TestServer server;
  server.http.Get("/f", [&](const httplib::Request&, httplib::Response& res) {
    res.set_content(std::string(8 << 20, 'x'), "application/octet-stream");
  });
  server.start();
  HttpClient http({});
  Later<Result<HttpResponse>> done;
  HttpRequest request = get(server.url("/f"));
  request.on_body = [](std::span<const std::byte>) -> Result<void> {
    return fail(Code::kNoSpace, "full");
  };
  request.on_done = [&](Result<HttpResponse> r) { done.set(std::move(r)); };
  http.start(std::move(request));
  auto result = done.get();
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Code::kNoSpace);
}

TEST(HttpClient, InterimAnswersAndTrailersAreNotTheAnswer) {
  RawServer server([](const std::string&) {
    return "HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Real: 1\r\nX-Twice: a\r\nX-Twice: "
           "b\r\n\r\n"
           "3\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n";
  });
  HttpClient http({});
  Answer answer = Call(http, get(server.url("/"))).wait();
  ASSERT_TRUE(answer.response) << answer.response.error().what;
  EXPECT_EQ(answer.response->status, 200);
  EXPECT_FALSE(answer.response->header("x-early"));
  EXPECT_FALSE(answer.response->header("x-trailer"));
  EXPECT_EQ(answer.response->header("x-real"), "1");
  EXPECT_EQ(answer.response->header("x-twice"), "b");
  EXPECT_EQ(answer.body, "abc");
}

TEST(HttpClient, EndlessHeadersAreRefused) {
  RawServer server([](const std::string&) {
    std::string answer = "HTTP/1.1 200 OK\r\n";
    for (int i = 0; i < 3000; ++i)
      answer += "X-" + std::to_string(i) + ": " + std::string(100, 'x') + "\r\n";
    return answer + "\r\n";
  });
  HttpClient http({});
  Answer answer = Call(http, get(server.url("/"))).wait();
  ASSERT_FALSE(answer.response);
}

TEST(HttpClient, ARefusedConnectionIsOfflineAndUnreachable) {
  HttpClient http({});
  std::atomic<bool> unreachable = false;
  HttpRequest request =
      get("http://127.0.0.1:" + std::to_string(test::dead_port()) + "/x?token=secret");
  request.on_unreachable = [&] { unreachable = true; };
  Answer answer = Call(http, request).wait();
  ASSERT_FALSE(answer.response);
  EXPECT_EQ(answer.response.error().code, Code::kOffline);
  EXPECT_NE(answer.response.error().what.find("127.0.0.1"), std::string::npos);
  EXPECT_NE(answer.response.error().what.find("onnection refused"), std::string::npos)
      << answer.response.error().what;
  EXPECT_EQ(answer.response.error().what.find("secret"), std::string::npos);
  EXPECT_TRUE(unreachable);
}

TEST(HttpClient, AShortBodyIsATransportFailureButTheHostIsReachable) {
  RawServer server(
      [](const std::string&) { return "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"; });
  HttpClient http({});
  std::atomic<bool> unreachable = false;
  HttpRequest request = get(server.url("/"));
  request.on_unreachable = [&] { unreachable = true; };
  Answer answer = Call(http, request).wait();
  ASSERT_FALSE(answer.response);
  EXPECT_EQ(answer.response.error().code, Code::kOffline);
  EXPECT_EQ(answer.body, "abc");
  EXPECT_FALSE(unreachable);
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

TEST(HttpClient, WaitingRequestsGoByPriorityThenArrival) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  HttpClient http(options);
  Call first(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  Call ahead1(http, slow.request(1), 10);
  Call ahead2(http, slow.request(2), 10);
  Call demand1(http, slow.request(3), 0);
  Call demand2(http, slow.request(4), 0);
  Call raised(http, slow.request(5), 10);
  Call later(http, slow.request(6), kBackgroundPriority);
  http.set_priority(raised.id, -1);
  const auto queued = [&] {
    const HttpQueue queue = http.queue();
    return queue.demand == 3 && queue.read_ahead == 2 && queue.prefetch == 1;
  };
  for (const auto end = std::chrono::steady_clock::now() + test::kPatience;
       !queued() && std::chrono::steady_clock::now() < end;) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(queued());
  slow.gate.open();
  for (Call* call : {&first, &ahead1, &ahead2, &demand1, &demand2, &raised, &later}) {
    EXPECT_TRUE(call->wait().response);
  }
  EXPECT_EQ(slow.order, (std::vector<int>{0, 5, 3, 4, 1, 2, 6}));
  EXPECT_FALSE(http.queue().demand || http.queue().read_ahead || http.queue().prefetch);
}

TEST(HttpClient, ReadersTakeTurnsByBytes) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  options.max_guests_per_host = 0;
  HttpClient http(options);
  std::list<Call> calls;
  const auto ask = [&](int number, uint64_t flow) {
    HttpRequest request = slow.request(number);
    request.flow = flow;
    calls.emplace_back(http, std::move(request));
  };
  ask(0, 7);
  ASSERT_TRUE(slow.arrived.wait_for(1));
  for (int i = 1; i < 6; ++i) ask(i, 7);
  for (int i = 10; i < 12; ++i) ask(i, 8);
  ask(20, 0);  // of nobody: a header
  for (const auto end = std::chrono::steady_clock::now() + test::kPatience;
       http.queue().demand < 8 && std::chrono::steady_clock::now() < end;) {
    std::this_thread::yield();
  }
  slow.gate.open();
  for (auto& call : calls) EXPECT_TRUE(call.wait().response);
  EXPECT_EQ(slow.order, (std::vector<int>{0, 10, 20, 1, 11, 2, 3, 4, 5}));
}

TEST(HttpClient, AReaderWithNothingOnTheWireDoesNotWaitForTheLongRequestsOfAnother) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 2;
  options.max_guests_per_host = 1;
  HttpClient http(options);
  std::list<Call> calls;
  const auto ask = [&](int number, uint64_t flow, int priority = 0) {
    HttpRequest request = slow.request(number);
    request.flow = flow;
    calls.emplace_back(http, std::move(request), priority);
  };
  for (int i = 0; i < 6; ++i) ask(i, 7);
  ASSERT_TRUE(slow.arrived.wait_for(2));
  ask(10, 8, 10);  // for nobody who waits
  ask(11, 9);
  ask(12, 9);
  ask(13, 10);
  ASSERT_TRUE(slow.arrived.wait_for(3));
  EXPECT_EQ(http.active(), 3);
  {
    std::lock_guard lock(slow.mutex);
    EXPECT_EQ(slow.order.back(), 11);
  }
  slow.gate.open();
  for (auto& call : calls) EXPECT_TRUE(call.wait().response);
  EXPECT_EQ(slow.most, 3);
}

TEST(HttpClient, NeverMoreTransfersThanTheLimitAndThenAllOfThem) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 3;
  HttpClient http(options);
  std::list<Call> calls;
  for (int i = 0; i < 12; ++i) calls.emplace_back(http, slow.request(i));
  ASSERT_TRUE(slow.arrived.wait_for(3));
  EXPECT_EQ(http.active(), 3);
  slow.gate.open();
  for (auto& call : calls) EXPECT_TRUE(call.wait().response);
  EXPECT_EQ(slow.most, 3);
  EXPECT_EQ(http.active(), 0);
}

TEST(HttpClient, ARequestMaySayHowManyItsHostTakes) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 2;
  HttpClient http(options);
  std::list<Call> calls;
  for (int i = 0; i < 12; ++i) {
    HttpRequest request = slow.request(i);
    request.max_connections = 5;
    calls.emplace_back(http, std::move(request));
  }
  ASSERT_TRUE(slow.arrived.wait_for(5));
  EXPECT_EQ(http.active(), 5);
  slow.gate.open();
  for (auto& call : calls) EXPECT_TRUE(call.wait().response);
  EXPECT_EQ(slow.most, 5);
}

TEST(HttpClient, TheBackgroundWaitsForItsHostToBeIdle) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 2;
  HttpClient http(options);
  Call demand(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  Call background(http, slow.request(1), kBackgroundPriority + 1);
  Call nearer(http, slow.request(2), kBackgroundPriority);
  Call ahead(http, slow.request(3), 10);
  ASSERT_TRUE(slow.arrived.wait_for(2));  // 0 and 3
  EXPECT_EQ(http.active(), 2);
  slow.gate.open();
  for (Call* call : {&demand, &background, &nearer, &ahead}) EXPECT_TRUE(call->wait().response);
  ASSERT_EQ(slow.order.size(), 4u);
  EXPECT_EQ(std::set<int>(slow.order.begin(), slow.order.begin() + 2), (std::set<int>{0, 3}));
}

TEST(HttpClient, TheBackgroundBeginsBesideTheLastBytesOfOthers) {
  constexpr size_t kBytes = 1 << 20, kFirst = kBytes - 1000;
  const std::string data = test::pattern_bytes(kBytes);
  const Gate gate;
  TestServer server;
  server.http.Get("/tail", [=](const httplib::Request&, httplib::Response& res) {
    res.set_content_provider(kBytes, "application/octet-stream",
                             [=](size_t offset, size_t length, httplib::DataSink& sink) {
                               if (offset >= kFirst) gate.wait();
                               if (offset < kFirst) length = std::min(length, kFirst - offset);
                               return sink.write(data.data() + offset, length);
                             });
  });
  server.http.Get("/next", [](const httplib::Request&, httplib::Response& res) {
    res.set_content("ok", "text/plain");
  });
  server.start();
  HttpClient http({});
  Counter received;
  Later<bool> done;
  HttpRequest request = get_range(server.url("/tail"), 0, kBytes);
  request.on_body = [&](std::span<const std::byte> bytes) -> Result<void> {
    received.add(static_cast<int>(bytes.size()));
    return {};
  };
  request.on_done = [&](Result<HttpResponse> result) { done.set(result.has_value()); };
  http.start(std::move(request));
  ASSERT_TRUE(received.wait_for(kFirst));
  Call background(http, get_range(server.url("/next"), 0, 2), kBackgroundPriority);
  EXPECT_TRUE(background.wait().response);
  EXPECT_FALSE(done.ready());
  gate.open();
  EXPECT_TRUE(done.get());
  EXPECT_EQ(received.value(), static_cast<int>(kBytes));
}

TEST(HttpClient, AReaderTakesTheConnectionOfTheBackgroundRequestThatIsWantedLast) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 2;
  HttpClient http(options);
  std::atomic<int> gave_way{0};
  const auto background = [&](int number) {
    HttpRequest request = slow.request(number);
    request.on_preempted = [&gave_way, number] { gave_way = number; };
    return request;
  };
  Call near(http, background(1), kBackgroundPriority);
  Call far(http, background(2), kBackgroundPriority + 1);
  ASSERT_TRUE(slow.arrived.wait_for(2));
  Call demand(http, slow.request(3));
  const Answer first = far.wait();
  ASSERT_FALSE(first.response);
  EXPECT_EQ(first.response.error().code, Code::kCancelled);
  EXPECT_EQ(gave_way, 2);
  ASSERT_TRUE(slow.arrived.wait_for(3));  // while the other still hangs
  slow.gate.open();
  EXPECT_TRUE(demand.wait().response);
  EXPECT_TRUE(near.wait().response);
}

TEST(HttpClient, ABackgroundRequestThatAReaderCameForDoesNotGiveWay) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  HttpClient http(options);
  HttpRequest request = slow.request(1);
  std::atomic<bool> gave_way{false};
  request.on_preempted = [&] { gave_way = true; };
  Call promoted(http, std::move(request), kBackgroundPriority);
  ASSERT_TRUE(slow.arrived.wait_for(1));
  http.set_priority(promoted.id, 0);
  Call demand(http, slow.request(2));
  slow.gate.open();
  EXPECT_TRUE(promoted.wait().response);
  EXPECT_TRUE(demand.wait().response);
  EXPECT_FALSE(gave_way);
}

TEST(HttpClient, AFewHedgesGoBeyondTheLimitAndTheRestWait) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 2;
  options.max_hedges_per_host = 1;
  HttpClient http(options);
  Counter on_wire;
  std::list<Call> calls;
  for (int i = 0; i < 6; ++i) {
    HttpRequest request = slow.request(i);
    request.hedge = i >= 4;
    request.on_wire = [&] { on_wire.add(); };
    calls.emplace_back(http, std::move(request));
  }
  ASSERT_TRUE(slow.arrived.wait_for(3));
  EXPECT_EQ(http.active(), 3);
  EXPECT_EQ(on_wire.value(), 3);
  slow.gate.open();
  for (auto& call : calls) EXPECT_TRUE(call.wait().response);
  EXPECT_EQ(slow.most, 3);
  EXPECT_EQ(on_wire.value(), 6);
}

TEST(HttpClient, ListingsDoNotWaitBehindStalledTransfers) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  HttpClient http(options);
  Call stalled(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  EXPECT_TRUE(Call(http, get(slow.server.url("/quick"))).wait().response);
  slow.gate.open();
  stalled.wait();
}

TEST(HttpClient, CancelEndsWhatRunsAndWhatWaits) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  HttpClient http(options);
  Call running(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  Call waiting(http, slow.request(1));
  http.cancel(waiting.id);
  EXPECT_EQ(waiting.wait().response.error().code, Code::kCancelled);
  http.cancel(running.id);
  EXPECT_EQ(running.wait().response.error().code, Code::kCancelled);
  http.cancel(running.id);
  http.cancel(12345);
  slow.gate.open();
  EXPECT_EQ(slow.order, std::vector<int>{0});
}

TEST(HttpClient, StopAnswersEverythingAndLaterStartsAreCancelled) {
  SlowServer slow;
  HttpOptions options;
  options.max_connections_per_host = 1;
  HttpClient http(options);
  Call running(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  Call waiting(http, slow.request(1));
  http.stop();
  EXPECT_EQ(running.wait().response.error().code, Code::kCancelled);
  EXPECT_EQ(waiting.wait().response.error().code, Code::kCancelled);
  EXPECT_EQ(Call(http, slow.request(2)).wait().response.error().code, Code::kCancelled);
  http.stop();
}

TEST(HttpClient, CallbacksMayStartAndCancelRequests) {
  SlowServer slow;
  HttpClient http({});
  Call slow_call(http, slow.request(0));
  ASSERT_TRUE(slow.arrived.wait_for(1));
  Later<Result<HttpResponse>> second;
  HttpRequest request = get(slow.server.url("/quick"));
  request.on_done = [&](Result<HttpResponse>) {
    http.cancel(slow_call.id);
    HttpRequest next = get(slow.server.url("/quick"));
    next.on_done = [&](Result<HttpResponse> r) { second.set(std::move(r)); };
    http.start(std::move(next));
  };
  http.start(std::move(request));
  EXPECT_TRUE(second.get());
  EXPECT_EQ(slow_call.wait().response.error().code, Code::kCancelled);
}

TEST(HttpClient, AStalledHostFailsThoseWhoWaitForItToo) {
  SlowServer slow;  // never opens its gate before the end
  HttpOptions options;
  options.max_connections_per_host = 1;
  options.stall_time = std::chrono::seconds(1);
  HttpClient http(options);
  Counter unreachable;
  std::list<Call> calls;
  for (int i = 0; i < 10; ++i) {
    HttpRequest request = slow.request(i);
    request.on_unreachable = [&] { unreachable.add(); };
    calls.emplace_back(http, std::move(request));
  }
  const auto before = std::chrono::steady_clock::now();
  for (auto& call : calls) EXPECT_EQ(call.wait().response.error().code, Code::kOffline);
  // One stall, not ten.
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(8));
  EXPECT_EQ(unreachable.value(), 10);
  slow.gate.open();
}

TEST(HttpClient, ATimeoutEndsATransferThatOnlyTrickles) {
  Gate end;
  TestServer server;
  server.http.Get("/f", [&](const httplib::Request&, httplib::Response& res) {
    res.set_content_provider(100, "text/plain",
                             [&](size_t offset, size_t, httplib::DataSink& sink) {
                               if (offset > 0) end.wait();
                               return sink.write("x", 1);
                             });
  });
  server.start();
  HttpClient http({});
  HttpRequest request = get(server.url("/f"));
  request.timeout = std::chrono::milliseconds(200);
  Answer answer = Call(http, request).wait();
  ASSERT_FALSE(answer.response);
  EXPECT_EQ(answer.response.error().code, Code::kOffline);
  end.open();
}

TEST(HttpClientConcurrent, StartsAndCancelsFromManyThreadsAreEachAnsweredOnce) {
  TestServer server;
  const std::string data = test::pattern_bytes(64 << 10);
  server.http.Get("/f", [&](const httplib::Request&, httplib::Response& res) {
    res.set_content(data, "application/octet-stream");
  });
  server.start();
  HttpClient http({});
  constexpr int kThreads = 4, kEach = 60;
  Counter done;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        HttpRequest request = get_range(server.url("/f"), static_cast<uint64_t>(i), 1000);
        request.on_done = [&](Result<HttpResponse>) { done.add(); };
        const uint64_t id = http.start(std::move(request), i % 3);
        if (i % 4 == t) http.cancel(id);
        if (i % 4 == 1) http.set_priority(id, 5);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_TRUE(done.wait_for(kThreads * kEach));
  http.stop();
  EXPECT_EQ(done.value(), kThreads * kEach);
}

TEST(HttpClientConcurrent, StopWhileRequestsComeInAnswersEachOnce) {
  SlowServer slow;
  HttpClient http({});
  Counter done;
  std::atomic<int> started = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) {
        HttpRequest request = slow.request(i);
        request.on_done = [&](Result<HttpResponse>) { done.add(); };
        http.start(std::move(request));
        ++started;
      }
    });
  }
  ASSERT_TRUE(slow.arrived.wait_for(1));
  http.stop();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(done.value(), started);
  slow.gate.open();
}

TEST(RedactUrl, DropsQueriesAndCredentials) {
  EXPECT_EQ(redact_url("https://h.example/a/b?X-Sig=secret&y=1"), "https://h.example/a/b?...");
  EXPECT_EQ(redact_url("https://user:p@ss@h:80/a@b"), "https://h:80/a@b");
  EXPECT_EQ(redact_url("http://h/a#frag"), "http://h/a");
  EXPECT_EQ(redact_url("http://u:p@h?q=secret"), "http://h?...");
  EXPECT_EQ(redact_url("http://127.0.0.1:8000"), "http://127.0.0.1:8000");
  EXPECT_EQ(redact_url("user:pass@host/x"), "host/x");
  EXPECT_EQ(redact_url(""), "");
}

TEST(Url, OriginIsSchemeHostAndPort) {
  EXPECT_EQ(url_origin("https://Hub.Example/a"), "https://hub.example:443");
  EXPECT_EQ(url_origin("http://h:81"), "http://h:81");
  EXPECT_EQ(url_origin("http://[::1]:5/"), "http://[::1]:5");
  EXPECT_EQ(url_origin("https://h@evil.example/"), "https://evil.example:443");
  EXPECT_EQ(url_origin("ftp://h/"), "");
}

TEST(Url, ReferencesAreResolvedAndForeignSchemesRefused) {
  EXPECT_EQ(*join_url("http://h/a/b?q", "/c"), "http://h/c");
  EXPECT_EQ(*join_url("http://h/a/b", "c#f"), "http://h/a/c");
  EXPECT_EQ(*join_url("http://h/a", "https://cdn/x?sig=1"), "https://cdn/x?sig=1");
  EXPECT_EQ(*join_url("http://h/a", "//cdn/x"), "http://cdn/x");
  EXPECT_EQ(*join_url("http://h/a", "https://u:p@cdn/x"), "https://cdn/x");
  for (const char* bad :
       {"", "file:///etc/passwd", "javascript:alert(1)", "ftp://h/x", "http://"}) {
    EXPECT_FALSE(join_url("http://h/a", bad)) << bad;
  }
}

TEST(Url, PercentEncodingKeepsUnreservedCharacters) {
  EXPECT_EQ(percent_encode("refs/pr/1", false), "refs%2Fpr%2F1");
  EXPECT_EQ(percent_encode("a b/\xC3\xA9?#%.~_-", true), "a%20b/%C3%A9%3F%23%25.~_-");
}

}  // namespace
}  // namespace nexus
