#include <gtest/gtest.h>

#include "backend/net/http_client.h"
#include "tests/unit/net_http_test_support.h"

namespace nexus {
namespace {

using test::Answer;
using test::Call;
using test::Counter;
using test::Gate;
using test::get;
using test::get_range;
using test::Later;
using test::RawServer;
using test::SlowServer;
using test::TestServer;

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

}  // namespace
}  // namespace nexus
