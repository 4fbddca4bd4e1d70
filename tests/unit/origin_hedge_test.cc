// A connection that goes quiet, and the second request beside it.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "backend/origin/hedge.h"
#include "tests/unit/origin_test_support.h"

namespace nexus {
namespace {

using std::chrono::milliseconds;
using test::Gate;
using test::HubTest;
using test::Reading;
using test::ReadOutcome;

TEST(StallLimit, IsTheDefaultUntilEnoughWasSeen) {
  StallLimit limit({milliseconds(100), milliseconds(900), milliseconds(500)});
  for (int i = 0; i < 15; ++i) limit.note(milliseconds(1));
  EXPECT_EQ(limit.limit(), milliseconds(500));
  limit.note(milliseconds(1));
  EXPECT_EQ(limit.limit(), milliseconds(100));
}

TEST(StallLimit, FollowsTheSlowestWithinItsBounds) {
  StallLimit limit({milliseconds(100), milliseconds(900), milliseconds(500)});
  for (int i = 0; i < 20; ++i) limit.note(milliseconds(30));
  limit.note(milliseconds(60));
  EXPECT_EQ(limit.limit(), milliseconds(240));
  limit.note(milliseconds(10000));
  EXPECT_EQ(limit.limit(), milliseconds(900));
}

TEST(StallLimit, ForgetsWhatIsLongAgo) {
  StallLimit limit({milliseconds(100), milliseconds(900), milliseconds(500)});
  limit.note(milliseconds(10000));
  for (int i = 0; i < 128; ++i) limit.note(milliseconds(50));
  EXPECT_EQ(limit.limit(), milliseconds(200));
}

TEST(StallLimit, KnowsHowLittleIsATrickle) {
  StallLimit limit;
  for (int i = 0; i < 15; ++i) limit.note(milliseconds(1), 8e6);
  limit.note(milliseconds(1));  // too short to say
  EXPECT_EQ(limit.trickle(), 0);
  limit.note(milliseconds(1), 4e6);
  EXPECT_EQ(limit.trickle(), 4e6 / 8);
  for (int i = 0; i < 128; ++i) limit.note(milliseconds(1), 1e9);
  EXPECT_EQ(limit.trickle(), StallLimit::kTrickleMost);
}

// Handlers may still run when their test is over: they hold copies of its gates, and this opens those.
struct Opened {
  explicit Opened(Gate gate_) : gate(std::move(gate_)) {}
  ~Opened() { gate.open(); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  const Gate gate;
};

class OriginHedge : public HubTest {
 public:
  static constexpr size_t kBegun = 100000;

  void SetUp() override {
    HubTest::SetUp();
    options.stall = {milliseconds(1), milliseconds(300), milliseconds(300)};
  }
  // The rest of what `request` asks for comes only once `gate` is open; its first `begun` bytes at once.
  // Uses members of HubTest alone, which outlive its servers' threads.
  static void stall(HubTest& test, const Request& request, Response& response, size_t begun,
                    const Gate& gate) {
    const auto [first, last] = request.ranges.at(0);
    const size_t start = static_cast<size_t>(first), length = static_cast<size_t>(last - first + 1);
    response.status = 206;
    response.set_header("Content-Range", "bytes " + std::to_string(first) + "-" +
                                             std::to_string(last) + "/" +
                                             std::to_string(test.data.size()));
    response.set_content_provider(
        length, "application/octet-stream",
        [&test, start, length, begun, gate](size_t offset, size_t, httplib::DataSink& sink) {
          if (offset >= begun && !gate.wait()) return false;
          const size_t end = offset < begun ? begun : length;
          return sink.write(test.data.data() + start + offset, end - offset);
        });
  }

  std::shared_ptr<Origin> patient_origin() {
    hub.start();
    cdn.start();
    options.endpoint = hub.url();
    return make_hub_origin(options, patient_, timers);
  }

 private:
  HttpClient patient_{HttpOptions{}};  // so that its own stall detection stays out of this
};

TEST_F(OriginHedge, TheRestComesFromASecondRequest) {
  const Opened never{Gate()};
  on_blob = [this, gate = never.gate](int number, const Request& req, Response& res) {
    if (number > 1) return false;
    stall(*this, req, res, kBegun, gate);
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  const ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {0, data.size()});
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_TRUE(outcome.bytes == data);
  EXPECT_EQ(from->activity().hedges, 1u);
  EXPECT_EQ(from->activity().retries, 0u);
  std::lock_guard lock(mutex);
  ASSERT_EQ(cdn_queries.size(), 2u);
  // Nothing that is here already is asked for again.
  EXPECT_EQ(cdn_queries[1], "/blob?sig=1 bytes=" + std::to_string(kBegun) + "-1048575");
}

TEST_F(OriginHedge, OneThatTricklesIsGivenUp) {
  constexpr int kQuick = 16;  // as many as make the usual rate known
  on_blob = [this](int number, const Request& req, Response& res) {
    if (number != kQuick + 1) return false;
    const auto [first, last] = req.ranges.at(0);
    res.status = 206;
    res.set_header("Content-Range",
                   "bytes " + std::to_string(first) + "-" + std::to_string(last) + "/" + std::to_string(data.size()));
    res.set_content_provider(static_cast<size_t>(last - first + 1), "application/octet-stream",
                             [this](size_t offset, size_t length, httplib::DataSink& sink) {
                               if (offset > 0) std::this_thread::sleep_for(milliseconds(50));
                               return sink.write(data.data() + offset, std::min<size_t>(length, 1024));
                             });
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  for (int i = 0; i <= kQuick; ++i) {
    const ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {0, data.size()});
    ASSERT_TRUE(outcome.result) << outcome.result.error().what;
    EXPECT_TRUE(outcome.bytes == data);
  }
  EXPECT_GE(from->activity().hedges, 1u);
  std::lock_guard lock(mutex);
  // Only what had not come was asked for again.
  ASSERT_GE(cdn_queries.size(), kQuick + 2u);
  EXPECT_NE(cdn_queries[kQuick + 1], cdn_queries[kQuick]);
}

TEST_F(OriginHedge, ARequestThatNeverAnswersIsHedgedToo) {
  const Opened never{Gate()};
  on_blob = [gate = never.gate](int number, const Request&, Response& res) {
    if (number > 1) return false;
    gate.wait();  // opened when the test is over
    res.status = 503;
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  const ReadOutcome outcome = read(*from, snapshot, "model.safetensors", {5, 1000});
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_TRUE(outcome.bytes == data.substr(5, 1000));
}

TEST_F(OriginHedge, TheFirstOneMayStillWin) {
  const Gate first;
  const Opened never{Gate()};
  on_blob = [this, first, gate = never.gate](int number, const Request& req, Response& res) {
    stall(*this, req, res, number == 1 ? kBegun : 0, number == 1 ? first : gate);
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  Reading reading(*from, snapshot, file(snapshot, "model.safetensors"), {0, data.size()});
  ASSERT_TRUE(blobs.wait_for(2));
  first.open();
  const ReadOutcome outcome = reading.wait();
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_TRUE(outcome.bytes == data);
}

TEST_F(OriginHedge, CancelEndsBoth) {
  const Opened never{Gate()};
  on_blob = [this, gate = never.gate](int number, const Request& req, Response& res) {
    stall(*this, req, res, number == 1 ? kBegun : 0, gate);
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  Reading reading(*from, snapshot, file(snapshot, "model.safetensors"), {0, data.size()});
  ASSERT_TRUE(blobs.wait_for(2));
  reading.transfer->cancel();
  EXPECT_EQ(reading.wait().result.error().code, Code::kCancelled);
}

TEST_F(OriginHedge, TheErrorOfOneLeavesTheOtherAtWork) {
  const Gate first;
  on_blob = [this, first](int number, const Request& req, Response& res) {
    if (number == 1) {
      stall(*this, req, res, kBegun, first);
    } else {
      res.status = 404;
    }
    return true;
  };
  auto from = patient_origin();
  const Snapshot snapshot = loaded(*from);
  Reading reading(*from, snapshot, file(snapshot, "model.safetensors"), {0, data.size()});
  ASSERT_TRUE(blobs.wait_for(2));
  first.open();
  const ReadOutcome outcome = reading.wait();
  ASSERT_TRUE(outcome.result) << outcome.result.error().what;
  EXPECT_TRUE(outcome.bytes == data);
}

}  // namespace
}  // namespace nexus
