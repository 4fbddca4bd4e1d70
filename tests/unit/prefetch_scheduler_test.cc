// The scheduler on a clock and a source that the test owns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "prefetch/scheduler.h"

namespace nexus::prefetch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

constexpr LayerView kView = LayerView::kTorch;

// Layers of 100 bytes; fetches end when the test says so.
class FakeSource final : public LayerSource {
 public:
  explicit FakeSource(int layers) : layers_(layers) {}
  int layer_count() override { return layers_; }
  std::vector<int> file_order() override { return files; }
  uint64_t missing(LayerView, int layer) override {
    if (here.count(layer)) return 0;
    const auto part = partly.find(layer);
    return part == partly.end() ? 100 : part->second;
  }
  std::map<std::string, uint64_t> missing_files(LayerView, int layer) override {
    const auto file = files_of.find(layer);
    if (file == files_of.end() || here.count(layer)) return {};
    return {{file->second, file_bytes}};
  }
  uint64_t fetch(LayerView view, int layer, int turn,
                 std::function<void(Result<void>)> done) override {
    EXPECT_TRUE(view == kView || view == LayerView::kShards);
    asked.push_back(layer);
    EXPECT_GT(turn, last_turn);
    last_turn = turn;
    running[next_ticket] = {layer, std::move(done)};
    return next_ticket++;
  }
  void cancel(uint64_t ticket) override {
    const auto found = running.find(ticket);
    if (found == running.end()) return;
    cancelled.push_back(found->second.first);
    auto done = std::move(found->second.second);
    running.erase(found);
    done(fail(Code::kCancelled, "cancelled"));
  }
  void finish(int layer) {
    const auto found = std::find_if(running.begin(), running.end(),
                                    [&](auto& entry) { return entry.second.first == layer; });
    ASSERT_NE(found, running.end());
    here.insert(layer);
    auto done = std::move(found->second.second);
    running.erase(found);
    done({});
  }
  std::vector<int> take_asked() { return std::exchange(asked, {}); }

  std::vector<int> files;
  std::map<int, std::string> files_of;  // what comes whole with a layer
  uint64_t file_bytes = 0;
  std::set<int> here;
  std::map<int, uint64_t> partly;
  std::vector<int> asked, cancelled;
  std::map<uint64_t, std::pair<int, std::function<void(Result<void>)>>> running;
  uint64_t next_ticket = 1;
  int last_turn = -1;

 private:
  const int layers_;
};

class FakeOrders final : public OrderStore {
 public:
  std::vector<int> load(const std::string& model) override { return orders[model]; }
  void save(const std::string& model, const std::vector<int>& order) override {
    orders[model] = order;
    ++saves;
  }
  std::map<std::string, std::vector<int>> orders;
  int saves = 0;
};

class PrefetchScheduler : public ::testing::Test {
 protected:
  void reach(int layer, LayerView view = kView) {
    scheduler->on_layer("org/m@1", source, view, layer, source->here.count(layer) > 0);
    source->here.insert(layer);  // the reader's own fetch
    executor.run_all();
  }
  void finish(int layer) {
    source->finish(layer);
    executor.run_all();
  }
  void wait(int ms) { now += std::chrono::milliseconds(ms); }
  void restart(SchedulerOptions options) {
    scheduler = std::make_unique<Scheduler>(options, executor, orders, [this] { return now; });
  }

  Scheduler::Time now{};
  ManualExecutor executor;
  FakeOrders orders;
  std::shared_ptr<FakeSource> source = std::make_shared<FakeSource>(16);
  std::unique_ptr<Scheduler> scheduler =
      std::make_unique<Scheduler>(SchedulerOptions{}, executor, orders, [this] { return now; });
};

TEST_F(PrefetchScheduler, LayerZeroBringsLayerOneAndThenTwoAhead) {
  reach(0);
  EXPECT_THAT(source->take_asked(), ElementsAre(1));
  finish(1);
  reach(1);
  EXPECT_THAT(source->take_asked(), ElementsAre(2, 3));
  finish(2);
  reach(2);
  EXPECT_THAT(source->take_asked(), ElementsAre(4));  // 3 is on its way
}

TEST_F(PrefetchScheduler, AReaderOfShardsGoesByTheOrderInThem) {
  source->files = {0, 1, 10, 11, 12, 13, 14, 15, 2, 3, 4, 5, 6, 7, 8, 9};
  reach(0, LayerView::kShards);
  finish(1);
  source->take_asked();
  reach(1, LayerView::kShards);
  EXPECT_THAT(source->take_asked(), ElementsAre(10, 11));
}

TEST_F(PrefetchScheduler, AWalkGoesOnThroughAFileWhoseReadsAreNotSeen) {
  source->files = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const auto open = [&](const std::vector<int>& layers) {
    for (const int layer : layers) source->here.insert(layer);
    scheduler->on_file("org/m@1", source, LayerView::kShards, layers);
    executor.run_all();
    return source->take_asked();
  };
  EXPECT_THAT(open({0, 1}), IsEmpty());  // nobody walks
  for (const int layer : {0, 1}) reach(layer, LayerView::kShards);
  source->take_asked();
  EXPECT_THAT(open({8, 9}), IsEmpty()) << "for its header";
  EXPECT_THAT(open({2, 3, 4}), ElementsAre(5, 6));
}

TEST_F(PrefetchScheduler, AReaderOfLayerFilesGoesByTheirNumbers) {
  source->files = {0, 1, 10, 11, 12, 13, 14, 15, 2, 3, 4, 5, 6, 7, 8, 9};
  reach(0);
  finish(1);
  source->take_asked();
  reach(1);
  EXPECT_THAT(source->take_asked(), ElementsAre(2, 3));
}

TEST_F(PrefetchScheduler, AFirstAccessElsewhereBringsNothing) {
  reach(7);
  EXPECT_THAT(source->asked, IsEmpty());
}

TEST_F(PrefetchScheduler, EachLayerIsAskedForOnceAndNoneBeyondTheLast) {
  std::vector<int> asked;
  for (int layer = 0; layer < 16; ++layer) {
    reach(layer);
    for (const int one : source->take_asked()) {
      asked.push_back(one);
      finish(one);
    }
  }
  std::vector<int> expected(15);
  for (int i = 0; i < 15; ++i) expected[static_cast<size_t>(i)] = i + 1;
  EXPECT_EQ(asked, expected);
  const PrefetchStats stats = scheduler->stats();
  EXPECT_EQ(stats.total_requests, 16u);
  EXPECT_EQ(stats.cache_hits, 15u);
  EXPECT_EQ(stats.fetches, 15u);
  EXPECT_EQ(stats.queue_depth, 0u);
}

TEST_F(PrefetchScheduler, WhatIsHereIsNotAskedFor) {
  source->here = {1, 2, 3};
  reach(0);
  reach(1);
  EXPECT_THAT(source->asked, IsEmpty());
  reach(2);
  EXPECT_THAT(source->asked, ElementsAre(4));
}

TEST_F(PrefetchScheduler, ALayerOnItsWayWhenTheReaderComesIsAHit) {
  reach(0);
  reach(1);  // still being fetched: the reader joins
  EXPECT_EQ(scheduler->stats().cache_hits, 1u);
  EXPECT_THAT(source->cancelled, IsEmpty());
}

TEST_F(PrefetchScheduler, TheSecondRankOfAWalkAsksForNothingMore) {
  for (int layer = 0; layer < 5; ++layer) {
    reach(layer);
    const auto before = source->asked.size();
    reach(layer);
    EXPECT_EQ(source->asked.size(), before);
  }
  EXPECT_EQ(scheduler->stats().total_requests, 5u);
}

TEST_F(PrefetchScheduler, ASlowLinkMakesItLookFartherAheadUpToItsBound) {
  reach(0);
  int fetched = 1;
  for (int layer = 1; layer < 8; ++layer) {
    wait(1000);  // the link: a second a layer; the reader computes a tenth of that
    if (fetched >= layer) finish(layer);
    wait(100);
    source->here.insert(layer);
    reach(layer);
    for (const int one : source->take_asked()) fetched = std::max(fetched, one);
    wait(100);
  }
  EXPECT_GE(fetched, 7 + 2);
  EXPECT_LE(fetched, 7 + 5);
}

TEST_F(PrefetchScheduler, AFastLinkStaysAtTheFloor) {
  reach(0);
  for (int layer = 1; layer < 8; ++layer) {
    if (layer == 2) source->take_asked();
    wait(10);
    for (const auto& [ticket, entry] : std::map(source->running)) finish(entry.first);
    wait(5000);
    reach(layer);
    if (layer > 1) {
      EXPECT_THAT(source->take_asked(), ElementsAre(layer + 2));
    }
  }
}

TEST_F(PrefetchScheduler, WhatASlowLinkMadeItAskForStaysWantedWhenTheReaderSlowsDown) {
  reach(0);
  wait(4000);  // the link
  finish(1);
  for (int layer = 1; layer < 3; ++layer) {
    source->here.insert(layer);
    reach(layer);
    wait(100);  // the reader
  }
  ASSERT_THAT(source->take_asked(), ElementsAre(1, 2, 3, 4, 5, 6, 7));
  for (int layer = 3; layer < 6; ++layer) {
    source->here.insert(layer);
    wait(600'000);
    reach(layer);
  }
  EXPECT_THAT(source->take_asked(), IsEmpty());  // it looks less far now
  EXPECT_THAT(source->cancelled, IsEmpty());
}

TEST_F(PrefetchScheduler, RanksInStepCancelNothingOfEachOther) {
  std::mt19937 random(1);
  for (int round = 0; round < 100; ++round) {
    source = std::make_shared<FakeSource>(16);
    orders.orders.clear();
    restart({});
    for (int step = 0; step < 8; ++step) {
      std::vector<int> events{step, 8 + step, step, 8 + step};  // two ranks in each half
      std::shuffle(events.begin(), events.end(), random);
      for (const int layer : events) reach(layer);
    }
    EXPECT_THAT(source->cancelled, IsEmpty());
  }
}

TEST_F(PrefetchScheduler, WhatTheReaderTurnedAwayFromIsCancelledWhileLittleOfItIsHere) {
  reach(0);
  reach(1);
  finish(1);
  EXPECT_THAT(source->take_asked(), ElementsAre(1, 2, 3));
  source->partly[2] = 87;  // 13 of 100 are here
  source->partly[3] = 88;
  for (const int layer : {15, 9, 12, 5, 7}) reach(layer);
  EXPECT_THAT(source->cancelled, ElementsAre(3));
  EXPECT_EQ(scheduler->stats().queue_depth, 1u);
}

TEST_F(PrefetchScheduler, AFetchThatFailedIsTriedAgainWhenItIsPredictedAgain) {
  reach(0);
  auto done = source->running.begin()->second.second;
  source->running.clear();
  done(fail(Code::kOffline, "gone"));
  executor.run_all();
  EXPECT_EQ(scheduler->stats().queue_depth, 0u);
  source->take_asked();
  reach(1);
  EXPECT_THAT(source->take_asked(), ElementsAre(2, 3));
}

TEST_F(PrefetchScheduler, TheBudgetBoundsWhatIsAheadAndUnread) {
  restart({5, 5, 250});
  reach(0);
  reach(1);
  EXPECT_THAT(source->take_asked(), ElementsAre(1, 2, 3));
  finish(1);
  finish(2);
  reach(2);  // 3 still counts, 1 and 2 were read
  EXPECT_THAT(source->take_asked(), ElementsAre(4));
}

TEST_F(PrefetchScheduler, FilesThatComeWholeCountOnceForAllTheirLayers) {
  SchedulerOptions options;
  options.lookahead = 4;
  options.budget_bytes = 1400;
  restart(options);
  source->file_bytes = 1000;
  source->files_of = {{2, "a"}, {3, "a"}, {4, "a"}, {5, "b"}};
  reach(0);
  reach(1);
  // 1000 of the file and 100 of each layer; file b would be too much.
  EXPECT_THAT(source->take_asked(), ElementsAre(1, 2, 3, 4));
  for (const int layer : {2, 3}) {
    finish(layer);
    reach(layer);
    EXPECT_THAT(source->take_asked(), IsEmpty());
  }
  finish(4);
  reach(4);  // the last of file a was read
  EXPECT_THAT(source->take_asked(), ElementsAre(5, 6, 7, 8));
}

TEST_F(PrefetchScheduler, LayersInAFileThatComesWholeCostThatFileAlone) {
  SchedulerOptions options;
  options.lookahead = 3;
  options.budget_bytes = 1000;
  restart(options);
  source->file_bytes = 1000;
  for (int layer = 0; layer < 4; ++layer) source->files_of[layer] = "a";
  reach(0, LayerView::kShards);
  reach(1, LayerView::kShards);
  EXPECT_THAT(source->take_asked(), ElementsAre(1, 2, 3));
}

TEST_F(PrefetchScheduler, NothingNewIsFetchedWhileMemoryIsShort) {
  bool is_short = true;
  SchedulerOptions options;
  options.memory_short = [&] { return is_short; };
  restart(options);
  reach(0);
  reach(1);
  EXPECT_THAT(source->take_asked(), IsEmpty());
  is_short = false;
  reach(2);
  EXPECT_THAT(source->take_asked(), ElementsAre(3, 4));
}

TEST_F(PrefetchScheduler, AnEvictedLayerIsFetchedAnewWhileItIsWanted) {
  reach(0);
  reach(1);
  finish(2);
  finish(3);
  source->here.erase(3);
  source->take_asked();
  reach(2);
  EXPECT_THAT(source->take_asked(), ElementsAre(3, 4));
}

TEST_F(PrefetchScheduler, AWholeWalkIsRecordedAndReplayedNextTime) {
  const std::vector<int> order{3, 11, 0, 8, 15, 5, 13, 1, 9, 6, 14, 2, 10, 4, 12, 7};
  for (const int layer : order) reach(layer);
  EXPECT_EQ(orders.orders["org/m@1"], order);
  EXPECT_EQ(orders.saves, 1);

  source = std::make_shared<FakeSource>(16);
  restart({});
  reach(3);
  EXPECT_THAT(source->take_asked(), ElementsAre(11));
  reach(11);
  EXPECT_THAT(source->take_asked(), ElementsAre(0, 8));
  EXPECT_EQ(scheduler->plan("org/m@1"), order);
}

TEST_F(PrefetchScheduler, APlanIsDroppedAndRecordedAnew) {
  for (int layer = 0; layer < 16; ++layer) reach(layer);
  scheduler->drop_plan("org/m@1");
  EXPECT_THAT(scheduler->plan("org/m@1"), IsEmpty());
  EXPECT_THAT(orders.orders["org/m@1"], IsEmpty());
  for (int layer = 15; layer >= 0; --layer) reach(layer);
  EXPECT_EQ(scheduler->plan("org/m@1").front(), 15);
  scheduler->record_plan("org/m@1");
  for (int layer = 0; layer < 16; ++layer) reach(layer);
  EXPECT_EQ(scheduler->plan("org/m@1").front(), 0);
}

TEST_F(PrefetchScheduler, AWrongPredictorStopsItself) {
  // Pairs of neighbours, each elsewhere: whoever predicts a third is wrong.
  source = std::make_shared<FakeSource>(200);
  size_t early = 0;
  for (int pair = 0; pair < 40; ++pair) {
    reach(199 - 5 * pair);
    if (pair == 10) early = source->asked.size();
    reach(199 - 5 * pair - 1);
  }
  EXPECT_GT(early, 0u);
  EXPECT_LE(source->asked.size(), early + 3);
}

TEST_F(PrefetchScheduler, StopCancelsWhatRunsAndLaterEventsDoNothing) {
  reach(0);
  reach(1);
  scheduler->stop();
  executor.run_all();
  EXPECT_THAT(source->cancelled, UnorderedElementsAre(1, 2, 3));
  source->take_asked();
  reach(2);
  EXPECT_THAT(source->asked, IsEmpty());
}

TEST_F(PrefetchScheduler, AnAnswerAfterItsEndIsIgnored) {
  reach(0);
  auto done = source->running.begin()->second.second;
  scheduler.reset();
  done({});
  EXPECT_EQ(executor.run_all(), 1);
}

TEST_F(PrefetchScheduler, ModelsAreKeptApartAndTheirNumberIsBounded) {
  for (int model = 0; model < 200; ++model) {
    auto one = std::make_shared<FakeSource>(4);
    scheduler->on_layer("org/" + std::to_string(model), one, kView, 0, false);
    EXPECT_THAT(one->asked, ElementsAre(1));
  }
  executor.run_all();
  EXPECT_LE(scheduler->stats().queue_depth, 64u);
}

TEST_F(PrefetchScheduler, LayersThatAreNoneAreIgnored) {
  reach(-1);
  reach(16);
  EXPECT_EQ(scheduler->stats().total_requests, 0u);
}

}  // namespace
}  // namespace nexus::prefetch
