// Reads that are cancelled, and origins that are out of reach.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <list>
#include <thread>
#include <vector>

#include "tests/unit/origin_test_support.h"

namespace nexus {
namespace {

using test::Counter;
using test::Gate;
using test::HubTest;
using test::kCommit;
using test::load;
using test::Reading;
using test::ReadOutcome;

using OriginReach = HubTest;

// --- cancelling

TEST_F(OriginReach, CancelEndsAReadOnTheWire) {
  Gate gate;
  on_blob = [this, gate](int, const Request&, Response& res) {
    res.status = 206;
    res.set_header("Content-Range", "bytes 0-1048575/1048576");
    res.set_content_provider(1 << 20, "application/octet-stream",
                             [this, gate](size_t offset, size_t, httplib::DataSink& sink) {
                               if (offset > 0) return gate.wait() && false;
                               return sink.write(data.data(), 1000);
                             });
    return true;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  Reading reading(*from, snapshot, file(snapshot, "model.safetensors"), {0, 1 << 20});
  ASSERT_TRUE(reading.received.wait_for(1000));
  reading.transfer->cancel();
  reading.transfer->cancel();
  ReadOutcome outcome = reading.wait();
  EXPECT_EQ(outcome.result.error().code, Code::kCancelled);
  EXPECT_EQ(outcome.bytes, data.substr(0, 1000));
  gate.open();
  reading.transfer->cancel();  // over: nothing happens
}

TEST_F(OriginReach, CancelEndsAReadThatWaitsForItsNextTry) {
  options.retry_base = std::chrono::hours(1);
  on_blob = [](int, const Request&, Response& res) {
    res.status = 503;
    return true;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  Reading reading(*from, snapshot, file(snapshot, "model.safetensors"), {0, 100});
  ASSERT_TRUE(blobs.wait_for(1));
  reading.transfer->cancel();
  EXPECT_EQ(reading.wait().result.error().code, Code::kCancelled);
}

TEST_F(OriginReach, AReadWhoseTimersAreGoneIsStillAnswered) {
  options.retry_base = std::chrono::hours(1);
  test::Later<Result<void>> done;
  std::shared_ptr<Transfer> transfer;
  {
    LoopExecutor doomed("doomed");
    hub.start();
    cdn.start();
    options.endpoint = hub.url();
    on_blob = [](int, const Request&, Response& res) {
      res.status = 503;
      return true;
    };
    HttpClient client({});
    auto from = make_hub_origin(options, client, doomed);
    Snapshot snapshot = loaded(*from);
    ReadRequest request;
    request.file = file(snapshot, "model.safetensors");
    request.range = {0, 10};
    request.sink = [](uint64_t, std::span<const std::byte>) { return Result<void>(); };
    request.on_done = [&](Result<void> r) { done.set(std::move(r)); };
    transfer = from->read(snapshot, std::move(request));
    ASSERT_TRUE(blobs.wait_for(1));
    client.stop();  // what is on the wire ends; what waits is dropped with the timers
  }
  EXPECT_EQ(done.get().error().code, Code::kCancelled);
}

TEST_F(OriginReach, AnOriginsOwnNumberOfConnectionsIsKeptTo) {
  Gate gate;
  Counter running;
  std::atomic<int> most{0};
  on_blob = [&, gate](int, const Request&, Response&) {
    const int now = running.add(1);
    for (int before = most; before < now && !most.compare_exchange_weak(before, now);) {
    }
    gate.wait();
    running.add(-1);
    return false;
  };
  options.max_connections = 3;  // the client's is 8
  auto from = origin();
  const Snapshot snapshot = loaded(*from);
  std::list<Reading> readings;
  for (uint64_t i = 0; i < 6; ++i) {
    readings.emplace_back(*from, snapshot, file(snapshot, "model.safetensors"), ByteRange{i * 100, 100});
  }
  ASSERT_TRUE(running.wait_for(3));
  gate.open();
  for (Reading& reading : readings) EXPECT_TRUE(reading.wait().result);
  EXPECT_EQ(most, 3);
}

TEST_F(OriginReach, TheLastReaderToLeaveEndsTheResolution) {
  Gate gate;
  Counter asked;
  on_hub = [&asked, gate](const Request& req, Response&) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    if (asked.add() == 1) gate.wait();
    return false;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  const OriginFile weights = file(snapshot, "model.safetensors");
  Reading first(*from, snapshot, weights, {0, 10});
  ASSERT_TRUE(asked.wait_for(1));
  first.transfer->cancel();
  EXPECT_EQ(first.wait().result.error().code, Code::kCancelled);
  // The next reader asks anew, and does not wait for the stuck one.
  EXPECT_TRUE(read(*from, snapshot, "model.safetensors", {0, 10}).result);
  gate.open();
}


// --- out of reach

TEST_F(OriginReach, ADeadHubCostsOneFailureAndThenIsKnown) {
  options.endpoint = "http://127.0.0.1:" + std::to_string(test::dead_port());
  auto from = origin();
  EXPECT_TRUE(from->reachable());
  auto first = load(*from, "org/m", "main");
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, Code::kOffline);
  EXPECT_NE(first.error().what.find("onnection refused"), std::string::npos) << first.error().what;
  EXPECT_FALSE(from->reachable());
  auto second = load(*from, "org/m", "main");
  ASSERT_FALSE(second);
  EXPECT_NE(second.error().what.find("a moment ago"), std::string::npos) << second.error().what;
}

TEST_F(OriginReach, ADeadCdnDoesNotMakeTheHubUnreachable) {
  const int dead = test::dead_port();
  on_hub = [&](const Request& req, Response& res) {
    if (req.path.find("/resolve/") == std::string::npos) return false;
    res.set_redirect("http://127.0.0.1:" + std::to_string(dead) + "/x?sig=secret");
    return true;
  };
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {0, 10});
  ASSERT_FALSE(outcome.result);
  EXPECT_EQ(outcome.result.error().code, Code::kOffline);
  EXPECT_EQ(outcome.result.error().what.find("secret"), std::string::npos);
  EXPECT_TRUE(from->reachable());
  EXPECT_TRUE(load(*from, "org/m", "main"));
}

TEST_F(OriginReach, ASuccessEndsTheOutOfReachWindow) {
  Reachability::Clock::time_point now{};
  Reachability reach(std::chrono::seconds(5), [&] { return now; });
  reach.failed("http://h:1");
  EXPECT_TRUE(reach.out("http://h:1"));
  EXPECT_FALSE(reach.out("http://h:2"));
  reach.answered("http://h:1");
  EXPECT_FALSE(reach.out("http://h:1"));
  reach.failed("http://h:1");
  now += std::chrono::seconds(5);
  EXPECT_FALSE(reach.out("http://h:1"));
}

TEST_F(OriginReach, OfflineModeAsksNobody) {
  options.offline = true;
  auto from = origin();
  EXPECT_FALSE(from->reachable());
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kOffline);
  Snapshot known;
  known.repo = "org/m";
  known.commit = kCommit;
  OriginFile weights;
  weights.path = "model.safetensors";
  weights.size = 1 << 20;
  EXPECT_EQ(Reading(*from, known, weights, {0, 10}).wait().result.error().code, Code::kOffline);
  EXPECT_TRUE(seen.empty());
}

TEST_F(OriginReach, AStalledListingIsReportedSoon) {
  options.metadata_timeout = std::chrono::milliseconds(200);
  Gate gate;
  on_hub = [gate](const Request&, Response&) {
    gate.wait();
    return false;
  };
  auto from = origin();
  auto snapshot = load(*from, "org/m", "main");
  ASSERT_FALSE(snapshot);
  EXPECT_EQ(snapshot.error().code, Code::kOffline);
  gate.open();
}

using OriginReadConcurrent = HubTest;

TEST_F(OriginReadConcurrent, ManyReadersGetTheirBytesFromAFlakyOrigin) {
  on_blob = [](int number, const Request&, Response& res) {
    if (number % 5 != 0) return false;
    res.status = 503;
    return true;
  };
  options.retry_max = 30;  // chance may give one read every fifth request for a while
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  const OriginFile weights = file(snapshot, "model.safetensors");
  std::vector<std::thread> threads;
  Counter good;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 25; ++i) {
        const ByteRange range{(t * 25 + i) * 10000, 9000};
        ReadOutcome outcome = Reading(*from, snapshot, weights, range).wait();
        EXPECT_TRUE(outcome.result) << outcome.result.error().what;
        if (outcome.result && outcome.bytes == data.substr(range.offset, range.length)) good.add();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good.value(), 100);
}

TEST_F(OriginReadConcurrent, CancelledReadsAreEachAnsweredOnce) {
  auto from = origin();
  Snapshot snapshot = loaded(*from);
  const OriginFile weights = file(snapshot, "model.safetensors");
  on_blob = [](int number, const Request&, Response& res) {
    if (number % 7 != 0) return false;
    res.status = number % 2 ? 403 : 503;
    return true;
  };
  std::vector<std::thread> threads;
  Counter answered;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 60; ++i) {
        Reading reading(*from, snapshot, weights, {i * 1000, 100000});
        if (i % 3 == t) std::this_thread::yield();
        if (i % 2 == 0) reading.transfer->cancel();
        if (i % 5 == 0) reading.transfer->set_priority(10);
        reading.wait();
        answered.add();
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(answered.value(), 180);
}

}  // namespace
}  // namespace nexus
