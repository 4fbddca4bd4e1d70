// Fetching: which bytes are asked for, who shares them, and who hears of a failure.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <fstream>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

constexpr uint64_t kSize = 6 * kMiB + 1234;

class CacheFetch : public ::testing::Test {
 protected:
  CacheFetch() { bed.origin().put("model.safetensors", truth); }
  std::shared_ptr<Object> shard() { return bed.blob("model.safetensors"); }
  std::string true_bytes(uint64_t offset, uint64_t length) { return truth.substr(offset, length); }

  const std::string truth = random_bytes(kSize, 1);
  CacheUnderTest bed;
};

TEST_F(CacheFetch, FetchesOnlyTheChunksThatAReadTouches) {
  EXPECT_EQ(bed.read(shard(), 2 * kMiB + 5, kMiB), true_bytes(2 * kMiB + 5, kMiB));
  const auto reads = bed.origin().reads();
  ASSERT_EQ(reads.size(), 1u);
  EXPECT_EQ(reads[0]->range(), (ByteRange{2 * kMiB, 2 * kMiB}));
  EXPECT_EQ(shard()->info().bytes_cached, 2 * kMiB);
  // A reader may be answered a moment before the last chunk is charged.
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 2 * kMiB; }));
}

TEST_F(CacheFetch, ReadsTheShortLastChunk) {
  EXPECT_EQ(bed.read(shard(), kSize - 10, 100), true_bytes(kSize - 10, 10));
  EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), 1234u);
}

TEST_F(CacheFetch, ASecondReadIsAHitThatAsksForNothing) {
  const auto object = shard();
  bed.read(object, 0, 100);
  bed.origin().forget_reads();
  EXPECT_EQ(bed.read(object, 500, 100), true_bytes(500, 100));
  EXPECT_TRUE(bed.origin().reads().empty());
  EXPECT_EQ(bed->stats().total_hits, 1u);
  EXPECT_EQ(bed->stats().total_misses, 1u);
}

TEST_F(CacheFetch, ManyReadersShareOneFlightAndEachByteComesOnce) {
  bed.origin().hold();
  std::vector<Answer<void>> answers;
  for (int i = 0; i < 50; ++i) answers.push_back(bed.fetch(shard(), i % 3 * kMiB, 3 * kMiB));
  bed.settle();
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
  for (const auto& answer : answers) EXPECT_FALSE(answer.here());
  bed.origin().release();
  for (auto& answer : answers) EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(bed->stats().bytes_downloaded, 5 * kMiB);
}

TEST_F(CacheFetch, AWaiterIsAnsweredAsSoonAsItsOwnChunksAreHere) {
  bed.origin().hold();
  auto all = bed.fetch(shard(), 0, 4 * kMiB);
  auto first = bed.fetch(shard(), 0, 100);
  bed.origin().reads(1)[0]->deliver(kMiB);
  EXPECT_TRUE(first.get().has_value());
  EXPECT_FALSE(all.here());
  bed.origin().release();
  EXPECT_TRUE(all.get().has_value());
}

TEST_F(CacheFetch, CancellingOneWaiterLeavesTheOthers) {
  bed.origin().hold();
  uint64_t ticket = 0;
  auto leaves = bed.fetch(shard(), 0, kMiB, &ticket);
  auto stays = bed.fetch(shard(), 0, kMiB);
  bed.origin().reads(1);
  bed->cancel(ticket);
  EXPECT_EQ(leaves.get().error().code, Code::kCancelled);
  bed.settle();
  EXPECT_FALSE(bed.origin().reads()[0]->cancelled());
  bed.origin().release();
  EXPECT_TRUE(stays.get().has_value());
}

TEST_F(CacheFetch, CancellingTheLastWaiterEndsTheTransfer) {
  bed.origin().hold();
  uint64_t first = 0, second = 0;
  auto one = bed.fetch(shard(), 0, kMiB, &first);
  auto two = bed.fetch(shard(), 100, 1, &second);
  bed.origin().reads(1);
  bed->cancel(first);
  bed->cancel(second);
  EXPECT_EQ(one.get().error().code, Code::kCancelled);
  EXPECT_EQ(two.get().error().code, Code::kCancelled);
  bed.settle();
  EXPECT_TRUE(bed.origin().reads()[0]->cancelled());
  EXPECT_EQ(bed->stats().active_downloads, 0u);
  EXPECT_EQ(shard()->info().state, ObjectState::kAbsent);
}

TEST_F(CacheFetch, ChunksThatArrivedBeforeACancelStayAndAreCharged) {
  bed.origin().hold();
  const auto object = shard();
  uint64_t ticket = 0;
  auto leaves = bed.fetch(object, 0, 4 * kMiB, &ticket);
  bed.origin().reads(1)[0]->deliver(2 * kMiB);
  bed->cancel(ticket);
  leaves.get();
  // Sealing runs on the pool, before or after the cancel.
  EXPECT_TRUE(bed.until([&] { return object->info().bytes_cached == 2 * kMiB; }));
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 2 * kMiB; }))
      << "charged " << bed->stats().disk_cache_bytes;
  bed.origin().release();
  bed.origin().forget_reads();
  bed.read(object, 0, 4 * kMiB);
  EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), 2 * kMiB);
}

TEST_F(CacheFetch, DemandThatJoinsReadAheadRaisesItsPriority) {
  bed.origin().hold();
  bed->fetch(shard(), {0, 4 * kMiB}, kReadAhead, {});
  EXPECT_EQ(bed.origin().reads(1)[0]->priority(), kReadAhead);
  auto answer = bed.fetch(shard(), kMiB, 10);
  bed.settle();
  EXPECT_EQ(bed.origin().reads()[0]->priority(), kDemand);
  EXPECT_EQ(bed.origin().reads().size(), 1u);
  bed.origin().release();
  EXPECT_TRUE(answer.get().has_value());
}

TEST_F(CacheFetch, ReadAheadGoesOnWhenItsDemandIsCancelled) {
  bed.origin().hold();
  uint64_t ticket = 0;
  bed->fetch(shard(), {4 * kMiB, kMiB}, kReadAhead, {});
  auto demand = bed.fetch(shard(), 0, 10, &ticket);
  bed.origin().reads(2);
  bed->cancel(ticket);
  demand.get();
  bed.settle();
  EXPECT_FALSE(bed.origin().reads()[0]->cancelled());
  EXPECT_TRUE(bed.origin().reads()[1]->cancelled());
}

CacheOptions linger(int ms) {
  CacheOptions options;
  options.linger = std::chrono::milliseconds(ms);
  return options;
}

// A file whose read-ahead is on its way and stays so: the origin's `nth` read.
std::shared_ptr<Object> read_ahead_held(CacheUnderTest& bed, size_t nth) {
  const std::string name = "model-" + std::to_string(nth) + ".safetensors";
  bed.origin().put(name, random_bytes(kSize, nth));
  bed.origin().hold();
  const auto file = bed.blob(name);
  bed->fetch(file, {4 * kMiB, kMiB}, kReadAhead, {});
  bed.origin().reads(nth);
  return file;
}

TEST(CacheLinger, ReadAheadOfAClosedFileEndsAfterAWhile) {
  CacheUnderTest bed(linger(20));
  const auto shard = read_ahead_held(bed, 1);
  bed->abandon(shard);
  EXPECT_TRUE(bed.until([&] { return bed.origin().reads()[0]->cancelled(); }));
}

TEST(CacheLinger, TheLastCloseCounts) {
  CacheUnderTest bed(linger(1000));
  const auto shard = read_ahead_held(bed, 1);
  bed->abandon(shard);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  const auto last = std::chrono::steady_clock::now();
  bed->abandon(shard);
  EXPECT_TRUE(bed.until([&] { return bed.origin().reads()[0]->cancelled(); }));
  EXPECT_GE(std::chrono::steady_clock::now() - last, std::chrono::seconds(1));
}

TEST(CacheLinger, AFileThatIsOpenedAgainKeepsItsReadAhead) {
  CacheUnderTest bed(linger(20));
  const auto again = read_ahead_held(bed, 1), closed = read_ahead_held(bed, 2);
  bed->abandon(again);
  again->add_open();
  bed->abandon(closed);  // its timer fires behind the other's
  EXPECT_TRUE(bed.until([&] { return bed.origin().reads()[1]->cancelled(); }));
  EXPECT_FALSE(bed.origin().reads()[0]->cancelled());
  again->drop_open();
  bed->abandon(again);
  EXPECT_TRUE(bed.until([&] { return bed.origin().reads()[0]->cancelled(); }));
}

TEST_F(CacheFetch, AFailureReachesTheWaitersOfItsBytesAndNoOthers) {
  bed.origin().hold();
  auto low = bed.fetch(shard(), 0, kMiB);
  auto high = bed.fetch(shard(), 5 * kMiB, 10);
  const auto reads = bed.origin().reads(2);
  reads[0]->fail(Code::kOffline, "the cable is out");
  const auto failed = low.get();
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, Code::kOffline);
  EXPECT_NE(failed.error().what.find("the cable is out"), std::string::npos);
  EXPECT_NE(shard()->info().error.find("the cable is out"), std::string::npos);
  EXPECT_FALSE(high.here());
  reads[1]->finish();
  EXPECT_TRUE(high.get().has_value());
}

TEST_F(CacheFetch, ALaterReadTriesAgainAndSucceeds) {
  bed.origin().fail_reads_of("model.safetensors", Error{Code::kOffline, "no route"});
  EXPECT_EQ(bed.read(shard(), 0, 10), "offline: no route");
  bed.origin().fail_reads_of("model.safetensors", std::nullopt);
  EXPECT_EQ(bed.read(shard(), 0, 10), true_bytes(0, 10));
  EXPECT_EQ(shard()->info().error, "");
}

TEST_F(CacheFetch, AFailureKeepsTheChunksThatCameBefore) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, 3 * kMiB);
  auto first = bed.fetch(shard(), 0, 1);
  const auto read = bed.origin().reads(1)[0];
  read->deliver(kMiB + 100);
  EXPECT_TRUE(first.get().has_value());
  read->fail(Code::kOrigin, "reset");
  EXPECT_EQ(answer.get().error().code, Code::kOrigin);
  bed.origin().release();
  EXPECT_EQ(bed.read(shard(), 0, 3 * kMiB), true_bytes(0, 3 * kMiB));
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 3 * kMiB; }));
}

TEST_F(CacheFetch, ATransferThatClaimsSuccessWithTooFewBytesIsAFailure) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, kMiB);
  const auto read = bed.origin().reads(1)[0];
  read->deliver(1000);
  read->claim_success();
  EXPECT_EQ(answer.get().error().code, Code::kOrigin);
  bed.origin().release();
  EXPECT_EQ(bed.read(shard(), 0, kMiB), true_bytes(0, kMiB));
}

TEST_F(CacheFetch, BytesThatDoNotFollowTheLastOnesAreRefused) {
  const struct {
    uint64_t offset;
    const char* what;
  } wrong[] = {{0, "the first bytes twice"}, {2000, "a hole"}};
  for (const auto& [offset, what] : wrong) {
    bed.origin().hold();
    bed.origin().forget_reads();
    auto answer = bed.fetch(shard(), 0, kMiB);
    const auto read = bed.origin().reads(1)[0];
    read->deliver(1000);
    EXPECT_FALSE(read->deliver_bytes(offset, true_bytes(offset, 1000)).has_value()) << what;
    EXPECT_EQ(answer.get().error().code, Code::kOrigin) << what;
    EXPECT_EQ(shard()->info().bytes_cached, 0u) << what;
  }
  bed.origin().release();
  EXPECT_EQ(bed.read(shard(), 0, kMiB), true_bytes(0, kMiB));
}

TEST_F(CacheFetch, BytesPastTheRangeAreNotKept) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, kMiB);
  const auto read = bed.origin().reads(1)[0];
  EXPECT_FALSE(read->deliver_bytes(0, std::string(2 * kMiB, 'x')).has_value());
  EXPECT_FALSE(answer.get().has_value());
  bed.origin().release();
  EXPECT_EQ(bed.read(shard(), 0, 2 * kMiB), true_bytes(0, 2 * kMiB));
}

TEST_F(CacheFetch, ATransferThatTheOriginItselfCancelsDoesNotLeaveItsWaitersBehind) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, kMiB);
  bed.origin().reads(1)[0]->fail(Code::kCancelled, "the origin is closing");
  bed.origin().reads(2)[1]->finish();
  EXPECT_TRUE(answer.get().has_value());
}

TEST_F(CacheFetch, AReadBehindTheEndIsAnsweredWithoutARequest) {
  EXPECT_EQ(bed.read(shard(), kSize, 10), "");
  EXPECT_TRUE(bed.fetch(shard(), kSize + 5, 10).get().has_value());
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(CacheFetch, AnEmptyFileIsThereWithoutARequest) {
  bed.origin().put("empty", "");
  const auto object = bed.blob("empty");
  EXPECT_EQ(bed.read(object, 0, 10), "");
  auto file = bed.prepare(object);
  ASSERT_TRUE(file.has_value());
  EXPECT_EQ((*file)->size(), 0u);
  EXPECT_EQ(object->info().state, ObjectState::kResident);
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(CacheFetch, ChunksOfLiteralsAndPaddingNeedNoRequest) {
  ObjectLayout layout;
  layout.size = 4 * kMiB;
  layout.literals.push_back({0, std::string(kMiB + 10, 'a')});
  layout.extents.push_back({3 * kMiB, kMiB, 0, 0});
  const auto object = bed.view("padded", layout);
  EXPECT_EQ(bed.read(object, 0, 3 * kMiB),
            std::string(kMiB + 10, 'a') + std::string(2 * kMiB - 10, '\0'));
  EXPECT_TRUE(bed.origin().reads().empty());
  EXPECT_EQ(bed.read(object, 3 * kMiB, kMiB), true_bytes(0, kMiB));
}

TEST_F(CacheFetch, PrepareGivesTheCompleteFileAndIsReadyFromThenOn) {
  const auto object = shard();
  EXPECT_EQ(bed->ready_file(*object), nullptr);
  auto file = bed.prepare(object);
  ASSERT_TRUE(file.has_value());
  EXPECT_TRUE((*file)->complete());
  EXPECT_EQ(bed->ready_file(*object), *file);
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
}

TEST_F(CacheFetch, CompletionAndDropAreAnnounced) {
  std::atomic<int> changes{0};
  bed->on_change([&](const std::shared_ptr<Object>&) { ++changes; });
  const auto object = shard();
  bed.prepare(object);
  EXPECT_TRUE(bed.until([&] { return changes == 1; }));
  bed->drop(object);
  EXPECT_TRUE(bed.until([&] { return changes == 2; }));
  EXPECT_FALSE(object->resident());
  EXPECT_EQ(bed->stats().disk_cache_bytes, 0u);
}

TEST_F(CacheFetch, AReaderThatHoldsADroppedFileKeepsItsBytes) {
  const auto object = shard();
  const auto file = *bed.prepare(object);
  bed->drop(object);
  bed.settle();
  std::string bytes(kSize, '\0');
  ASSERT_TRUE(file->read(0, std::as_writable_bytes(std::span(bytes))).has_value());
  EXPECT_EQ(bytes, truth);
  EXPECT_NE(*bed.prepare(object), file);
}

TEST_F(CacheFetch, ADropUnderAWaiterBeginsTheFetchAnew) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, 2 * kMiB);
  bed.origin().reads(1)[0]->deliver(kMiB);
  bed->drop(shard());
  bed.origin().reads(2)[1]->finish();
  EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(bed.read(shard(), 0, 2 * kMiB), true_bytes(0, 2 * kMiB));
}

TEST_F(CacheFetch, StopAnswersEveryWaiterAndReturns) {
  bed.origin().hold();
  std::vector<Answer<void>> answers;
  for (int i = 0; i < 20; ++i) answers.push_back(bed.fetch(shard(), i % 6 * kMiB, 10));
  Answer<std::shared_ptr<ObjectFile>> opened;
  bed->prepare(shard(), opened.callback());
  bed.origin().reads(1);
  bed->stop();
  for (auto& answer : answers) EXPECT_EQ(answer.get().error().code, Code::kCancelled);
  EXPECT_EQ(opened.get().error().code, Code::kCancelled);
  EXPECT_EQ(bed.fetch(shard(), 0, 10).get().error().code, Code::kCancelled);
  for (const auto& read : bed.origin().reads()) EXPECT_TRUE(read->cancelled());
}

TEST_F(CacheFetch, ProgressNamesWhatIsOnItsWay) {
  bed.origin().hold();
  auto answer = bed.fetch(shard(), 0, 2 * kMiB);
  auto first = bed.fetch(shard(), 0, 1);
  bed.origin().reads(1)[0]->deliver(kMiB);
  first.get();
  const auto progress = bed->progress();
  ASSERT_EQ(progress.size(), 1u);
  EXPECT_EQ(progress[0].name, "org/m@" + kCommit + "/model.safetensors");
  EXPECT_EQ(progress[0].bytes_done, kMiB);
  EXPECT_EQ(progress[0].bytes_total, kSize);
  bed.origin().release();
  answer.get();
  EXPECT_TRUE(bed.until([&] { return bed->progress().empty(); }));
}

TEST_F(CacheFetch, AFileOfTheUsersOwnIsServedFromWhereItLies) {
  const std::string path = "/tmp/nexus-local-" + std::to_string(::getpid());
  { std::ofstream(path, std::ios::binary) << truth; }
  FakeFile file;
  file.bytes = truth;
  file.local_path = path;
  bed.origin().put("local.safetensors", file);
  const auto object = bed.blob("local.safetensors");
  EXPECT_EQ(bed.read_all(object), truth);
  ASSERT_TRUE(bed.prepare(object).has_value());
  EXPECT_EQ(bed->stats().disk_cache_bytes, 0u);
  EXPECT_TRUE(bed.origin().reads().empty());
  bed->drop(object);
  bed.settle();
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace nexus::test
