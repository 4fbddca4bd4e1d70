// Which request goes on the wire when: limits, priorities, the background, hedges.
#include <gtest/gtest.h>

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
using test::SlowServer;
using test::TestServer;

TEST(HttpQueue, WaitingRequestsGoByPriorityThenArrival) {
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

TEST(HttpQueue, NeverMoreTransfersThanTheLimitAndThenAllOfThem) {
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

TEST(HttpQueue, ARequestMaySayHowManyItsHostTakes) {
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

TEST(HttpQueue, TheBackgroundWaitsForItsHostToBeIdle) {
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

TEST(HttpQueue, TheBackgroundBeginsBesideTheLastBytesOfOthers) {
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

TEST(HttpQueue, AReaderTakesTheConnectionOfTheBackgroundRequestThatIsWantedLast) {
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

TEST(HttpQueue, ABackgroundRequestThatAReaderCameForDoesNotGiveWay) {
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

TEST(HttpQueue, AFewHedgesGoBeyondTheLimitAndTheRestWait) {
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

TEST(HttpQueue, ListingsDoNotWaitBehindStalledTransfers) {
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

}  // namespace
}  // namespace nexus
