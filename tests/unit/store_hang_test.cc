// A disk that does not answer: nobody waits for it longer than the patience, and when it is back it
// is used again.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "backend/store/catalog.h"
#include "backend/store/hang_guard.h"
#include "backend/store/zones.h"
#include "tests/unit/fake_origin.h"
#include "tests/unit/store_test_support.h"
#include "tests/unit/until.h"

namespace nexus {
namespace {

using std::chrono::milliseconds;
using test::until;
constexpr milliseconds kPatience{300};

// Calls that pass here wait while it is shut.
class Gate {
 public:
  void shut() { set(true); }
  void open() { set(false); }
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return !shut_; });
    --waiting_;
  }
  ~Gate() { open(); }

 private:
  void set(bool shut) {
    std::lock_guard lock(mutex_);
    shut_ = shut;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool shut_ = false;
  int waiting_ = 0;
};

// Shared with what hangs, which may outlive the test's own objects.
std::function<void()> through(const std::shared_ptr<Gate>& gate) {
  return [gate] { gate->pass(); };
}

TEST(HangGuardConcurrent, ACallThatReturnsIsJustACall) {
  HangGuard guard("disk", {});
  int ran = 0;
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(guard.run([&] { ++ran; }));
  EXPECT_EQ(ran, 100);
  EXPECT_FALSE(guard.hung());
}

TEST(HangGuardConcurrent, OneThatDoesNotIsLeftBehind) {
  const auto gate = std::make_shared<Gate>();
  HangGuard guard("disk", {kPatience, through(gate)});
  gate->shut();
  const auto late = std::make_shared<std::atomic<bool>>(false);
  EXPECT_FALSE(guard.run([late] { *late = true; }));
  EXPECT_TRUE(guard.hung());
  const auto never = std::make_shared<std::atomic<bool>>(false);
  EXPECT_FALSE(guard.run([never] { *never = true; })) << "refused at once";
  const auto queued = std::make_shared<std::atomic<bool>>(false);
  guard.run_sometime([queued] { *queued = true; });
  EXPECT_FALSE(*queued);
  gate->open();
  EXPECT_TRUE(until([&] { return !guard.hung() && *late && *queued; }));
  EXPECT_FALSE(*never);
  EXPECT_TRUE(until([&] { return guard.run([] {}); }));
}

TEST(HangGuardConcurrent, ManyCallersWaitOnceTogether) {
  const auto gate = std::make_shared<Gate>();
  HangGuard guard("disk", {kPatience, through(gate)});
  gate->shut();
  std::vector<std::thread> callers;
  std::atomic<int> refused{0};
  for (int i = 0; i < 3 * HangGuard::kThreadsMax; ++i) {
    callers.emplace_back([&] {
      if (!guard.run([] {})) ++refused;
    });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(refused, 3 * HangGuard::kThreadsMax);
  gate->open();
  EXPECT_TRUE(until([&] { return guard.run([] {}); }));
}

TEST(HangGuardConcurrent, CallsAtOnceDoNotWaitForOneAnother) {
  HangGuard guard("disk", {});
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> here{0};
    const auto meet = [&] {
      ++here;
      while (here < 2) std::this_thread::yield();
    };
    std::atomic<int> met{0};
    std::thread other([&] { met += guard.run(meet); });
    met += guard.run(meet);
    other.join();
    ASSERT_EQ(met, 2);
  }
}

TEST(HangGuardConcurrent, ACallWithinACallNeedsNoOtherThread) {
  HangGuard guard("disk", {});
  std::vector<std::thread> callers;
  std::atomic<int> ran{0};
  for (int i = 0; i < 3 * HangGuard::kThreadsMax; ++i) {
    callers.emplace_back([&] { guard.run([&] { guard.run([&] { ++ran; }); }); });
  }
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(ran, 3 * HangGuard::kThreadsMax);
  EXPECT_FALSE(guard.hung());
}

TEST(HangGuardConcurrent, ItsEndDoesNotWaitForWhatHangs) {
  const auto gate = std::make_shared<Gate>();
  const auto late = std::make_shared<std::atomic<bool>>(false);
  {
    HangGuard guard("disk", {kPatience, through(gate)});
    gate->shut();
    EXPECT_FALSE(guard.run([late] { *late = true; }));
  }
  EXPECT_FALSE(*late);
  EXPECT_GT(HangGuard::threads_alive(), 0);
  gate->open();
  EXPECT_TRUE(until([&] { return late->load(); }));
  EXPECT_TRUE(until([] { return HangGuard::threads_alive() == 0; }));
}

TEST(HangingZone, IsDownAndHasNoRoom) {
  const auto gate = std::make_shared<Gate>();
  Zone zone(0, "/tmp", "ssd", 0, 0, {kPatience, through(gate)});
  const auto before = zone.disk();
  EXPECT_GT(before.size_bytes, 0u);
  gate->shut();
  EXPECT_EQ(zone.free_bytes(), 0u);
  EXPECT_TRUE(zone.hung());
  EXPECT_FALSE(zone.healthy());
  EXPECT_FALSE(zone.worth_trying());
  EXPECT_EQ(zone.health(), Zone::Health::kDown);
  EXPECT_EQ(zone.disk().size_bytes, before.size_bytes) << "as last seen";
  gate->open();
  EXPECT_TRUE(until([&] { return zone.health() == Zone::Health::kOk; }));
  EXPECT_EQ(zone.disk().size_bytes, before.size_bytes);
}

// A cache over `zones`; calls on the disk of zone number `hanging` pass a gate.
class GatedCache : public testing::Test {
 protected:
  GatedCache(std::vector<ZoneOptions> zones, int hanging)
      : bed_(options(), "", std::move(zones), [gate = gate_, hanging](int zone) {
          if (zone == hanging) gate->pass();
        }) {
    for (int i = 0; i < 4; ++i) {
      truth_.push_back(test::random_bytes(kSize, 40 + static_cast<uint64_t>(i)));
      bed_.origin().put("f" + std::to_string(i), truth_.back());
    }
  }
  ~GatedCache() override { gate_->open(); }
  static CacheOptions options() {
    CacheOptions options;
    options.linger = milliseconds(0);
    return options;
  }
  std::shared_ptr<Object> file(int i) { return bed_.blob("f" + std::to_string(i)); }

  static constexpr uint64_t kSize = 2 * test::kMiB + 1;
  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  std::vector<std::string> truth_;
  test::CacheUnderTest bed_;
};

// A cache over two zones, the first of which can be made to hang.
class HangingCacheConcurrent : public GatedCache {
 protected:
  HangingCacheConcurrent() : GatedCache({{"one", 0, "ssd", 0}, {"two", 0, "ssd", 0}}, 0) {}
};

TEST_F(HangingCacheConcurrent, NewObjectsGoToAnotherZone) {
  gate_->shut();
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  EXPECT_EQ(file(0)->info().zone, 1);
  EXPECT_EQ(bed_->stats().zones[0].health, "down");
  gate_->open();
  EXPECT_TRUE(bed_.until([&] { return bed_->stats().zones[0].health == "ok"; }));
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);
  EXPECT_EQ(file(1)->info().zone, 0) << "used again";
}

TEST_F(HangingCacheConcurrent, AnObjectThatLiesThereComesFromTheOrigin) {
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  ASSERT_EQ(file(0)->info().zone, 0);
  gate_->shut();
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);  // and so it is known to hang
  ASSERT_TRUE(file(0)->file()->hung());
  EXPECT_FALSE(bed_->ready_file(*file(0))) << "not to be handed to the kernel";
  const auto prepared = bed_.prepare(file(0));
  ASSERT_TRUE(prepared.has_value()) << prepared.error().what;
  EXPECT_EQ((*prepared)->zone(), 1);
  std::string bytes(kSize, '\0');
  ASSERT_TRUE((*prepared)->read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  EXPECT_EQ(bytes, truth_[0]);
}

TEST_F(HangingCacheConcurrent, ATransferThatWritesThereBeginsAnewElsewhere) {
  bed_.origin().hold("f0");
  auto answer = bed_.fetch(file(0), 0, kSize);
  bed_.origin().reads(1);
  ASSERT_TRUE(bed_.until([&] { return file(0)->file() != nullptr; }));
  ASSERT_EQ(file(0)->file()->zone(), 0);
  gate_->shut();
  bed_.origin().release();
  EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
}

// A store that opens while a disk hangs. What is patient enough for the one that does not, also
// with sanitizers on a busy machine, is waited for once a test.
class HangingStartConcurrent : public testing::Test {
 protected:
  static constexpr milliseconds kStartPatience{4000};
  static constexpr int kObjects = 40;

  HangingStartConcurrent() {
    auto store = open();
    for (int i = 0; i < kObjects; ++i) {
      zone_of_.push_back(store_test::put(*store, std::to_string(i), 100, seed(i))->zone());
    }
  }
  ~HangingStartConcurrent() override { gate_->open(); }

  static uint64_t seed(int i) { return 1 + static_cast<uint64_t>(i); }
  std::unique_ptr<Store> open(int zones_hang = 1) {
    StoreOptions options;
    options.cache_dir = dir_ / "cache";
    options.zones = {{dir_ / "a", 0, "ssd", 0}, {dir_ / "b", 0, "ssd", 0}};
    options.hang_patience = kStartPatience;
    options.before_zone_call = [gate = gate_, shut_at = shut_at_, zones_hang](int zone) {
      if (zone < 0 || zone >= zones_hang) return;
      if (--*shut_at == 0) gate->shut();
      gate->pass();
    };
    auto store = Store::open(options);
    if (!store) ADD_FAILURE() << store.error().what;
    return store ? std::move(*store) : nullptr;
  }
  int lie_in(int zone) const { return static_cast<int>(std::ranges::count(zone_of_, zone)); }
  // Every object is there, whole, and once.
  void expect_all(const std::vector<StoredObject>& objects) {
    for (int i = 0; i < kObjects; ++i) {
      const StoredObject* found = store_test::find(objects, std::to_string(i));
      ASSERT_TRUE(found) << i;
      EXPECT_TRUE(found->file->complete() && store_test::all_chunks_true(*found->file, seed(i)));
    }
  }
  static std::string health(const Store& store) { return store.zones()[0].health; }

  const std::shared_ptr<Gate> gate_ = std::make_shared<Gate>();
  // The gate is shut by the first zone's so manieth call.
  const std::shared_ptr<std::atomic<int>> shut_at_ = std::make_shared<std::atomic<int>>(0);
  store_test::TempDir dir_;
  std::vector<int> zone_of_;
};

TEST_F(HangingStartConcurrent, GoesOnWithoutThatZoneAndUsesItWhenItIsBack) {
  ASSERT_GT(lie_in(0), 1);
  ASSERT_GT(lie_in(1), 1);
  gate_->shut();
  auto store = open();
  ASSERT_TRUE(store);
  EXPECT_EQ(health(*store), "down");
  EXPECT_TRUE(store->zones()[0].unread);
  EXPECT_FALSE(store->zones()[1].unread);
  EXPECT_EQ(store->zones()[0].used_bytes, 100u * static_cast<uint64_t>(lie_in(0)));
  const auto objects = store->take_objects();
  EXPECT_EQ(static_cast<int>(objects.size()), lie_in(1));
  for (const auto& object : objects) EXPECT_EQ(object.file->zone(), 1);
  // What lies in it comes from the origin again, and the new one is the newer.
  const int again = static_cast<int>(std::ranges::find(zone_of_, 0) - zone_of_.begin());
  EXPECT_EQ(store_test::put(*store, std::to_string(again), 100, seed(again))->zone(), 1);
  EXPECT_EQ(store->remove_orphans().files, 0u);
  gate_->open();
  ASSERT_TRUE(until([&] { return health(*store) == "ok"; }));
  int back = -1;
  for (int i = 0; i < 10 && back != 0; ++i) {
    back = store_test::put(*store, "new" + std::to_string(i), kChunkBytes, 7)->zone();
  }
  EXPECT_EQ(back, 0) << "its room is used";
  EXPECT_EQ(store->remove_orphans().files, 0u) << "what lies there is somebody's";
  store.reset();
  store = open();
  EXPECT_FALSE(store->zones()[0].unread);
  const auto all = store->take_objects();
  expect_all(all);
  EXPECT_EQ(store_test::find(all, std::to_string(again))->file->zone(), 1);
}

TEST_F(HangingStartConcurrent, LosesNothingWhenTheDiskHangsInTheMiddle) {
  *shut_at_ = 100;
  auto store = open();
  ASSERT_TRUE(store);
  EXPECT_TRUE(store->zones()[0].unread);
  int elsewhere = 0;
  for (const auto& object : store->take_objects()) elsewhere += object.file->zone() == 1;
  EXPECT_EQ(elsewhere, lie_in(1));
  store.reset();
  gate_->open();
  store = open();
  expect_all(store->take_objects());
}

TEST_F(HangingStartConcurrent, LosesNothingWithoutACatalogEither) {
  for (const char* suffix : {"", "-wal", "-shm"}) {
    std::filesystem::remove(dir_ / (std::string("cache/catalog.db") + suffix));
  }
  gate_->shut();
  auto store = open();
  ASSERT_TRUE(store);
  EXPECT_EQ(static_cast<int>(store->take_objects().size()), lie_in(1));
  store.reset();
  gate_->open();
  store = open();
  expect_all(store->take_objects());
}

TEST_F(HangingStartConcurrent, WithNoZoneAtAllItStartsToo) {
  gate_->shut();
  auto store = open(2);
  ASSERT_TRUE(store);
  EXPECT_TRUE(store->take_objects().empty());
  EXPECT_EQ(store->create(store_test::meta_of("k", 100), true).error().code, Code::kNoSpace);
  gate_->open();
  EXPECT_TRUE(
      until([&] { return store->create(store_test::meta_of("k", 100), true).has_value(); }));
}

TEST(HangingCacheDirConcurrent, AStartIsRefusedUntilItAnswers) {
  const auto gate = std::make_shared<Gate>();
  const store_test::TempDir temp;
  StoreOptions options = store_test::options_at(temp / "cache");
  options.hang_patience = kPatience;
  options.before_zone_call = [gate](int zone) {
    if (zone == kCacheDirCall) gate->pass();
  };
  gate->shut();
  auto store = Store::open(options);
  ASSERT_FALSE(store);
  EXPECT_EQ(store.error().code, Code::kDisk);
  EXPECT_NE(store.error().what.find("does not answer"), std::string::npos) << store.error().what;
  gate->open();
  // The call that was left behind may hold the lock for a moment.
  EXPECT_TRUE(until([&] { return Store::open(options).has_value(); }));
}

// cache_dir's own disk hangs, which holds the catalog and the pins; the zones' do not.
class HangingCatalogConcurrent : public GatedCache {
 protected:
  HangingCatalogConcurrent() : GatedCache({{"one", 0, "ssd", 0}}, kCacheDirCall) {}
};

TEST_F(HangingCatalogConcurrent, ReadsAndFetchesGoOnAndWhatWasToBeWrittenIsWrittenLater) {
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  bed_.store().save_header("before", "1");
  bed_.store().flush();
  gate_->shut();
  EXPECT_FALSE(bed_.store().load_header("before")) << "not known, so it is asked for elsewhere";
  EXPECT_TRUE(bed_->stats().cache_dir_hangs);
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);
  EXPECT_EQ(file(1)->info().zone, 0);
  bed_.store().save_header("meanwhile", "2");
  EXPECT_EQ(bed_.store().load_header("meanwhile"), "2");
  test::Answer<void> pinned;
  bed_->pin({"org/m", ""}, pinned.callback());
  EXPECT_EQ(pinned.get().error().code, Code::kDisk);
  gate_->open();
  EXPECT_TRUE(until([&] { return !bed_->stats().cache_dir_hangs; }));
  EXPECT_EQ(bed_.store().load_header("before"), "1");
  EXPECT_TRUE(until([&] {
    bed_.store().flush();  // the time of the next attempt has come
    return Catalog::open(bed_.dir() + "/cache/catalog.db").value()->load_header("meanwhile") == "2";
  }));
  bed_.restart();
  EXPECT_EQ(bed_.store().load_header("meanwhile"), "2");
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);
  EXPECT_TRUE(bed_.origin().reads().empty()) << "it was not lost";
}

TEST_F(HangingCatalogConcurrent, TheCacheEndsAlthoughItHangs) {
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  gate_->shut();
  EXPECT_FALSE(bed_.store().load_header("x"));
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);
}

TEST_F(HangingCacheConcurrent, TheCacheEndsAlthoughItHangs) {
  EXPECT_EQ(bed_.read_all(file(0)), truth_[0]);
  gate_->shut();
  EXPECT_EQ(bed_.read_all(file(1)), truth_[1]);
  bed_->stop();
}

}  // namespace
}  // namespace nexus
