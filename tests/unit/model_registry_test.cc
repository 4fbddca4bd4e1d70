// Which models are mounted: one resolution for many, absent names, and copies of dead origins.
#include <gtest/gtest.h>

#include <cstdint>

#include "backend/model/registry.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

using Mounted = std::shared_ptr<Model>;

class ModelRegistry : public ::testing::Test {
 protected:
  ModelRegistry() {
    bed.origin().put("config.json", "{}");
    options.hub = bed.shared_origin();
    open();
  }
  ~ModelRegistry() override {
    registry->stop();
    bed.origin().release();
    bed->stop();
    pool.stop();
    bed.origin().stop();
  }
  // A registry that knows what the store knows, as a new daemon's would.
  void open() { registry.emplace(options, bed.cache(), bed.store(), timers, pool); }
  Answer<Mounted> ask(const std::string& revision = "main", uint64_t* ticket = nullptr) {
    Answer<Mounted> answer;
    const uint64_t given = registry->get("org/m", revision, answer.callback());
    if (ticket) *ticket = given;
    return answer;
  }
  std::pair<std::string, std::string> refresh(const std::string& name) {
    Answer<std::pair<std::string, std::string>> answer;
    registry->refresh(name, answer.callback());
    return answer.get().value_or(std::make_pair("failed", "failed"));
  }

  CacheUnderTest bed;
  ManualExecutor timers;
  ThreadPool pool{"test-pool", 2};
  RegistryOptions options;
  std::optional<Registry> registry;
};

TEST_F(ModelRegistry, ManyAskersShareOneResolution) {
  bed.origin().hold();
  std::vector<Answer<Mounted>> answers;
  for (int i = 0; i < 10; ++i) answers.push_back(ask());
  bed.origin().loads_waiting(1);
  bed.origin().release();
  for (auto& answer : answers) EXPECT_EQ((*answer.get())->commit(), kCommit);
  EXPECT_EQ(bed.origin().loads(), 1u);
  EXPECT_NE(registry->mounted("org/m", "main"), nullptr);
  ask().get();
  EXPECT_EQ(bed.origin().loads(), 1u);
  EXPECT_EQ(registry->commits("org/m"), std::vector<std::string>{kCommit});
}

TEST_F(ModelRegistry, AnAbsentNameIsRememberedBriefly) {
  bed.origin().fail_loads(Error{Code::kNotFound, "404"});
  EXPECT_EQ(ask().get().error().code, Code::kNotFound);
  bed.origin().fail_loads(std::nullopt);
  EXPECT_EQ(ask().get().error().code, Code::kNotFound);
  EXPECT_EQ(bed.origin().loads(), 1u);
  options.absent_ttl = std::chrono::seconds(0);
  open();
  bed.origin().fail_loads(Error{Code::kNotFound, "404"});
  ask().get();
  bed.origin().fail_loads(std::nullopt);
  EXPECT_TRUE(ask().get().has_value());
}

TEST_F(ModelRegistry, TroubleIsNotRemembered) {
  bed.origin().fail_loads(Error{Code::kOffline, "no route"});
  EXPECT_EQ(ask().get().error().code, Code::kOffline);
  bed.origin().fail_loads(std::nullopt);
  EXPECT_TRUE(ask().get().has_value());
}

TEST_F(ModelRegistry, AKnownModelOfADeadOriginIsTheCopy) {
  ask().get();
  open();
  for (const Code code : {Code::kOffline, Code::kOrigin}) {
    bed.origin().fail_loads(Error{code, "dead"});
    open();
    auto model = ask().get();
    ASSERT_TRUE(model.has_value());
    EXPECT_EQ((*model)->find("config.json").state, FindState::kFound);
  }
  bed.origin().fail_loads(Error{Code::kNotFound, "deleted"});
  open();
  EXPECT_EQ(ask().get().error().code, Code::kNotFound);
}

TEST_F(ModelRegistry, AKnownModelOfASlowOriginIsTheCopyAfterAWhile) {
  ask().get();
  open();
  bed.origin().hold();
  auto answer = ask();
  bed.origin().loads_waiting(1);
  EXPECT_FALSE(answer.here());
  timers.advance(options.stale_wait);
  EXPECT_TRUE(answer.get().has_value());
  bed.origin().release();  // too late, and harmless
}

TEST_F(ModelRegistry, OfflineAsksNobody) {
  ask().get();
  const size_t before = bed.origin().loads();
  open();
  bed.origin().set_reachable(false);
  EXPECT_TRUE(ask().get().has_value());
  EXPECT_EQ(bed.origin().loads(), before);
}

TEST_F(ModelRegistry, ACommitDoesNotMoveSoWhatIsKnownOfItNeedsNoQuestion) {
  ask(kCommit).get();
  const size_t before = bed.origin().loads();
  open();
  EXPECT_TRUE(ask(kCommit).get().has_value());
  EXPECT_EQ(bed.origin().loads(), before);
}

TEST_F(ModelRegistry, OfflineACommitKnownByAnotherRevisionIsFound) {
  ask("main").get();
  open();
  bed.origin().set_reachable(false);
  bed.origin().fail_loads(Error{Code::kOffline, "dead"});
  auto model = ask(kCommit).get();
  ASSERT_TRUE(model.has_value()) << model.error().what;
  EXPECT_EQ((*model)->commit(), kCommit);
}

TEST_F(ModelRegistry, AModelIsPinnedUntilARefreshMovesIt) {
  std::vector<std::string> told;
  registry->on_refresh([&](const std::string& repo, const std::string& revision) {
    told.push_back(repo + "@" + revision);
  });
  ask().get();
  const std::string moved(40, 'd');
  bed.origin().serve_commit(moved);
  EXPECT_EQ((*ask().get())->commit(), kCommit);
  EXPECT_EQ(refresh("org/m"), std::make_pair(kCommit, moved));
  EXPECT_EQ((*ask().get())->commit(), moved);
  EXPECT_EQ(told, std::vector<std::string>{"org/m@main"});
  const auto model = registry->mounted("org/m", "main");
  EXPECT_EQ(refresh("org/m@main"), std::make_pair(moved, moved));
  EXPECT_EQ(registry->mounted("org/m", "main"), model);  // unchanged: its nodes stay
  EXPECT_EQ(told.size(), 1u);
}

TEST_F(ModelRegistry, CancellingOneAskerLeavesTheOthers) {
  bed.origin().hold();
  uint64_t ticket = 0;
  auto leaves = ask("main", &ticket), stays = ask();
  registry->cancel(ticket);
  EXPECT_FALSE(leaves.here());  // a cancel may come from within an interrupt
  timers.run_all();
  EXPECT_EQ(leaves.get().error().code, Code::kCancelled);
  bed.origin().loads_waiting(1);
  bed.origin().release();
  EXPECT_TRUE(stays.get().has_value());
}

TEST_F(ModelRegistry, StopEndsEveryWaitAndALateAnswerIsHarmless) {
  bed.origin().hold();
  auto answer = ask();
  bed.origin().loads_waiting(1);
  registry->stop();
  EXPECT_EQ(answer.get().error().code, Code::kCancelled);
  EXPECT_EQ(ask().get().error().code, Code::kCancelled);
  registry.reset();
  bed.origin().release();
  open();
}

TEST_F(ModelRegistry, AModelWhoseFilesChangedIsResolvedOnceForAllWhoMetThat) {
  auto own = std::make_shared<FakeOrigin>("mine");
  own->put("config.json", "{}");
  options.aliases["mine"] = Alias{"mine", "main", own};
  open();
  Answer<Mounted> asked;
  registry->get_alias("mine", asked.callback());
  const Mounted old = *asked.get();
  const std::string moved(40, 'd');
  own->serve_commit(moved);
  own->hold();
  std::vector<Answer<void>> told(3);
  for (auto& one : told) registry->renew(old, [done = one.callback()] { done({}); });
  own->loads_waiting(1);
  EXPECT_FALSE(told[0].here());
  own->release();
  for (auto& one : told) EXPECT_TRUE(one.get());
  EXPECT_EQ(own->loads(), 2u);
  Answer<Mounted> again;
  registry->get_alias("mine", again.callback());
  EXPECT_EQ((*again.get())->commit(), moved);
  // Who comes late with the old model has nothing to wait for, and neither has a model of the hub.
  const Mounted hub = *ask().get();
  for (const Mounted& model : {old, hub}) {
    bool done = false;
    registry->renew(model, [&] { done = true; });
    EXPECT_TRUE(done);
  }
  EXPECT_EQ(own->loads(), 2u);
  registry->stop();
  pool.stop();
  own->stop();
}

TEST_F(ModelRegistry, AliasesAreModelsOfTheirOwnOrigin) {
  auto other = std::make_shared<FakeOrigin>("mine");
  other->put("layer_0.pt", "bytes");
  options.aliases = {{"mine", {"mine", "main", other}},
                     {"short", {"org/m", "main", bed.shared_origin()}}};
  open();
  Answer<Mounted> mine, hub, none;
  registry->get_alias("mine", mine.callback());
  registry->get_alias("short", hub.callback());
  registry->get_alias("nobody", none.callback());
  EXPECT_EQ((*mine.get())->find("layer_0.pt").state, FindState::kFound);
  EXPECT_EQ((*hub.get())->repo(), "org/m");
  EXPECT_EQ(none.get().error().code, Code::kNotFound);
  EXPECT_EQ(registry->known().size(), 1u);  // aliases are not of the hub
  registry->stop();
  pool.stop();
  other->stop();
}

}  // namespace
}  // namespace nexus::test
