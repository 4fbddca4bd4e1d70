// nodeids, their lookup counts, and the rule that one nodeid is read one way only.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "fs/inodes.h"
#include "fs/limits.h"

namespace nexus::fs {
namespace {

NodePtr file_node(const std::string& path, uint64_t size = 5,
                  std::shared_ptr<Object> object = nullptr) {
  auto node = std::make_shared<Node>();
  node->kind = NodeKind::kModelFile;
  node->path = path;
  node->entry.size = size;
  node->entry.object = std::move(object);
  return node;
}

std::shared_ptr<Object> object_of(const std::string& key) {
  ObjectSpec spec;
  spec.key = key;
  return std::make_shared<Object>(std::move(spec));
}

class FsInodes : public testing::Test {
 protected:
  Inodes inodes_{std::make_shared<Node>()};
};

TEST_F(FsInodes, ANameKeepsItsNodeidUntilEveryLookupIsForgotten) {
  const auto first = inodes_.look_up(1, "a", file_node("a"));
  const auto second = inodes_.look_up(1, "a", file_node("a"));
  EXPECT_EQ(first->nodeid, second->nodeid);
  inodes_.forget(first->nodeid, 1);
  EXPECT_TRUE(inodes_.get(first->nodeid));
  inodes_.forget(first->nodeid, 1);
  EXPECT_FALSE(inodes_.get(first->nodeid));
  EXPECT_NE(inodes_.look_up(1, "a", file_node("a"))->nodeid, first->nodeid);
}

TEST_F(FsInodes, TheRootIsNeverForgotten) {
  inodes_.forget(Inodes::kRoot, 100);
  EXPECT_TRUE(inodes_.get(Inodes::kRoot));
}

TEST_F(FsInodes, ADifferentThingOfTheSameNameGetsANewNodeidAndTheOldOneLivesOn) {
  const auto before = inodes_.look_up(1, "a", file_node("a", 5));
  const auto after = inodes_.look_up(1, "a", file_node("a", 6));
  EXPECT_NE(before->nodeid, after->nodeid);
  EXPECT_EQ(inodes_.get(before->nodeid)->node()->size(), 5u);
  inodes_.forget(before->nodeid, 1);  // must not take the name from the new one
  EXPECT_EQ(inodes_.look_up(1, "a", file_node("a", 6))->nodeid, after->nodeid);
}

TEST_F(FsInodes, AnUnfitNodeidIsReplacedUnderTheSameInodeNumber) {
  const auto open = inodes_.look_up(1, "a", file_node("a"));
  open->io.opens = 1;
  open->io.mode = IoMode::kPages;
  const auto unfit = [](const Inode& inode) { return inode.io.opens > 0; };
  const auto next = inodes_.look_up(1, "a", file_node("a"), unfit);
  EXPECT_NE(next->nodeid, open->nodeid);
  EXPECT_EQ(next->node()->inode(), open->node()->inode());
  EXPECT_EQ(inodes_.look_up(1, "a", file_node("a"), unfit)->nodeid, next->nodeid);
}

TEST_F(FsInodes, ObjectsAreFoundUnderAllTheirNames) {
  const auto object = object_of("k");
  const auto a = inodes_.look_up(1, "a", file_node("a", 5, object));
  inodes_.look_up(1, "b", file_node("b", 5, object));
  EXPECT_EQ(inodes_.of_object(*object).size(), 2u);
  inodes_.forget(a->nodeid, 1);
  ASSERT_EQ(inodes_.of_object(*object).size(), 1u);
  EXPECT_EQ(inodes_.of_object(*object)[0]->name, "b");
}

TEST_F(FsInodes, ALookupRefreshesWhatIsKnownOfThePlace) {
  auto broken = std::make_shared<Node>(*file_node("a"));
  broken->entry.error = "header truncated";
  const auto inode = inodes_.look_up(1, "a", broken);
  EXPECT_EQ(inodes_.look_up(1, "a", file_node("a"))->nodeid, inode->nodeid);
  EXPECT_EQ(inode->node()->entry.error, "");
}

TEST_F(FsInodes, AThreadIsSentBackToThePathOnceAndThenServed) {
  const auto now = Inodes::Time::clock::now();
  EXPECT_TRUE(inodes_.may_answer_stale(42, 1000, now));
  EXPECT_FALSE(inodes_.may_answer_stale(42, 1000, now));  // a reopen of /proc/self/fd/N
  EXPECT_TRUE(inodes_.may_answer_stale(42, 1001, now));
  EXPECT_TRUE(inodes_.may_answer_stale(43, 1000, now));
  EXPECT_TRUE(inodes_.may_answer_stale(42, 1000, now + 2 * Inodes::kStaleWindow));
}

constexpr uid_t kOwner = 500, kUser = 1000, kOther = 1001;

LimitOptions small_limits() {
  LimitOptions options;
  options.parked_max = 6;
  options.parked_per_uid = 2;
  options.resolving_per_uid = 2;
  options.new_models_burst = 3;
  options.new_models_per_s = 1;
  return options;
}

TEST(FsLimits, AUserMayParkSoMuchAndLeavesRoomForOthers) {
  UidLimits limits(small_limits(), kOwner);
  EXPECT_TRUE(limits.park(kUser));
  EXPECT_TRUE(limits.park(kUser));
  EXPECT_FALSE(limits.park(kUser));
  EXPECT_TRUE(limits.park(kOther));
  limits.unpark(kUser);
  EXPECT_TRUE(limits.park(kUser));
}

TEST(FsLimits, RootAndTheOwnerAreBoundByTheTotalAlone) {
  UidLimits limits(small_limits(), kOwner);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(limits.park(0));
    EXPECT_TRUE(limits.park(kOwner));
  }
  EXPECT_FALSE(limits.park(0));
  EXPECT_EQ(limits.parked(), 6u);
}

TEST(FsLimits, NewModelsComeFromABucketThatRefills) {
  UidLimits limits(small_limits(), kOwner);
  auto now = UidLimits::Time::clock::now();
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(limits.begin_resolution(kUser, now));
    limits.end_resolution(kUser);
  }
  EXPECT_FALSE(limits.begin_resolution(kUser, now));
  EXPECT_TRUE(limits.begin_resolution(kOther, now));
  EXPECT_TRUE(limits.begin_resolution(kOwner, now));
  now += std::chrono::seconds(1);
  EXPECT_TRUE(limits.begin_resolution(kUser, now));
  EXPECT_FALSE(limits.begin_resolution(kUser, now));
}

TEST(FsLimits, AUserResolvesSoManyModelsAtOnce) {
  UidLimits limits(small_limits(), kOwner);
  const auto now = UidLimits::Time::clock::now();
  EXPECT_TRUE(limits.begin_resolution(kUser, now));
  EXPECT_TRUE(limits.begin_resolution(kUser, now));
  EXPECT_FALSE(limits.begin_resolution(kUser, now));
  limits.end_resolution(kUser);
  EXPECT_TRUE(limits.begin_resolution(kUser, now));
}

}  // namespace
}  // namespace nexus::fs
