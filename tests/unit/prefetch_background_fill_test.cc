#include "prefetch/background_fill.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>

#include "tests/unit/fake_origin.h"

namespace nexus::prefetch {
namespace {

using std::chrono::milliseconds;
using test::kMiB;

class BackgroundFillTest : public ::testing::Test {
 protected:
  BackgroundFillTest() {
    bed.origin().put("a.safetensors", truth);
    bed.origin().put("b.safetensors", test::random_bytes(3 * kMiB, 4));
    a = bed.blob("a.safetensors");
    b = bed.blob("b.safetensors");
    FillOptions options;
    options.idle = milliseconds(5000);
    options.check_every = milliseconds(1000);
    options.step_bytes = 2 * kMiB;
    FillHooks hooks{[this] { return activity; }, [this] { return room; },
                    [this] { return std::vector{a, b}; }};
    fill = std::make_shared<BackgroundFill>(options, std::move(hooks), bed.cache(), executor);
    fill->start();
    executor.run_all();
  }

  // Goes on until `condition`: the cache's callbacks come from its own thread.
  bool until(const std::function<bool()>& condition) {
    return bed.until([&] {
      executor.run_all();
      return condition();
    });
  }
  // In the steps of the fill's checks: a timer that is set in between counts from then on.
  void pass(milliseconds time) {
    for (milliseconds step(1000); time >= step; time -= step) executor.advance(step);
  }
  size_t asked() { return bed.origin().reads().size(); }

  const std::string truth = test::random_bytes(5 * kMiB + 99, 3);
  ManualExecutor executor;  // the cache's last callbacks find it
  test::CacheUnderTest bed;
  std::shared_ptr<Object> a, b;
  uint64_t activity = 0, room = 100 * kMiB;
  std::shared_ptr<BackgroundFill> fill;
};

TEST_F(BackgroundFillTest, BringsEverythingOnceNobodyReads) {
  pass(milliseconds(4000));
  bed.settle();
  EXPECT_EQ(asked(), 0u);
  pass(milliseconds(1000));
  EXPECT_TRUE(until([&] { return a->resident() && b->resident(); }));
  EXPECT_EQ(bed.origin().most_asked("a.safetensors"), 1u);
  for (const auto& read : bed.origin().reads()) EXPECT_EQ(read->priority(), kFill);
  EXPECT_EQ(bed->stats().prefetch_issued_bytes, 0u);  // not the layers' prefetcher's
  EXPECT_FALSE(a->prefetched_unread());
  EXPECT_EQ(bed.read_all(a), truth);
}

TEST_F(BackgroundFillTest, AReadersRequestCancelsItUntilItIsQuietAgain) {
  bed.origin().hold();
  pass(milliseconds(5000));
  const auto first = bed.origin().reads(1);
  ++activity;
  pass(milliseconds(1000));
  EXPECT_TRUE(until([&] { return first[0]->cancelled(); }));
  bed.origin().forget_reads();
  pass(milliseconds(4000));
  bed.settle();
  EXPECT_EQ(asked(), 0u);
  bed.origin().release();
  pass(milliseconds(1000));
  EXPECT_TRUE(until([&] { return a->resident() && b->resident(); }));
}

TEST_F(BackgroundFillTest, OneStepAtATimeAndWhatFits) {
  bed.origin().hold();
  room = 3 * kMiB - 1;  // less than b, more than a step of a
  pass(milliseconds(9000));
  EXPECT_EQ(bed.origin().reads(1)[0]->range().length, 2 * kMiB);
  EXPECT_EQ(asked(), 1u);
  room = kMiB;
  bed.origin().release();
  // The rest of a is larger than what is left now.
  EXPECT_TRUE(until([&] { return a->info().bytes_cached == 2 * kMiB; }));
  pass(milliseconds(3000));
  bed.settle();
  EXPECT_EQ(asked(), 1u);
}

TEST_F(BackgroundFillTest, WhatFailsIsLeftAlone) {
  bed.origin().fail_reads_of("a.safetensors", Error{Code::kOrigin, "gone"});
  pass(milliseconds(5000));
  EXPECT_TRUE(until([&] {
    pass(milliseconds(1000));
    return b->resident();
  }));
  const size_t before = asked();
  pass(milliseconds(10000));
  bed.settle();
  executor.run_all();
  EXPECT_EQ(asked(), before);
}

TEST_F(BackgroundFillTest, StopEndsIt) {
  bed.origin().hold();
  pass(milliseconds(5000));
  const auto first = bed.origin().reads(1);
  fill->stop();
  EXPECT_TRUE(until([&] { return first[0]->cancelled(); }));
  pass(milliseconds(60000));
  bed.settle();
  EXPECT_EQ(asked(), first.size());
}

// On threads of its own, against a reader of the same bytes.
TEST(BackgroundFillConcurrent, AReaderAndTheFillShareEveryByte) {
  LoopExecutor executor("nx-fill");
  test::CacheUnderTest bed;
  const std::string truth = test::random_bytes(20 * kMiB, 5);
  bed.origin().put("a.safetensors", truth);
  const auto object = bed.blob("a.safetensors");
  std::atomic<uint64_t> activity{0};
  FillOptions options;
  options.idle = milliseconds(0);
  options.check_every = milliseconds(1);
  options.step_bytes = kMiB;
  const auto fill = std::make_shared<BackgroundFill>(
      options, FillHooks{[&] { return activity.load(); }, [] { return 100 * kMiB; },
                         [&] { return std::vector{object}; }},
      bed.cache(), executor);
  fill->start();
  for (uint64_t at = 0; at < truth.size(); at += 2 * kMiB) {
    ++activity;
    EXPECT_EQ(bed.read(object, at, kMiB), truth.substr(at, kMiB));
  }
  EXPECT_TRUE(bed.until([&] { return object->resident(); }));
  fill->stop();
  executor.stop();
  EXPECT_EQ(bed.read_all(object), truth);
}

}  // namespace
}  // namespace nexus::prefetch
