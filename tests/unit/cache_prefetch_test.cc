// Prefetches in the cache: whose they become, when they end, and what the books say of them.
#include <gtest/gtest.h>

#include <cstdint>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

class CachePrefetch : public ::testing::Test {
 protected:
  CachePrefetch() { bed.origin().put("model.safetensors", truth); }

  std::shared_ptr<Object> shard() { return bed.blob("model.safetensors"); }
  std::shared_ptr<Object> pt() {
    const std::vector<TensorInfo> tensors{tensor_at("l.0.a", 0, 0, 3 * kMiB)};
    return bed.view("pt", *torch_layer_layout("layer_0", tensors));
  }
  Answer<void> prefetch(const std::shared_ptr<Object>& object, ByteRange range,
                        uint64_t* ticket = nullptr) {
    Answer<void> answer;
    const uint64_t issued = bed->prefetch(object, range, kPrefetch, answer.callback());
    if (ticket) *ticket = issued;
    return answer;
  }
  Answer<void> prefetch(const std::shared_ptr<Object>& object, uint64_t* ticket = nullptr) {
    return prefetch(object, {0, object->size()}, ticket);
  }

  const std::string truth = random_bytes(8 * kMiB + 99, 2);
  CacheUnderTest bed;
};

TEST_F(CachePrefetch, AWholeObjectComesWithoutAReaderAndIsUsedByTheNextOpen) {
  const auto object = pt();
  ASSERT_TRUE(prefetch(object).get());
  EXPECT_TRUE(object->resident());
  EXPECT_TRUE(object->prefetched_unread());
  CacheStats stats = bed->stats();
  EXPECT_EQ(stats.prefetch_issued_bytes, 3 * kMiB);
  EXPECT_EQ(stats.prefetch_used_bytes, 0u);
  EXPECT_EQ(stats.total_misses, 0u);
  EXPECT_EQ(check_zip(bed.read_all(object)), 4);
  EXPECT_FALSE(object->prefetched_unread());
  stats = bed->stats();
  EXPECT_EQ(stats.prefetch_used_bytes, 3 * kMiB);
  EXPECT_EQ(stats.prefetch_wasted_bytes, 0u);
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
}

TEST_F(CachePrefetch, AReaderWhoComesMeanwhileMakesItDemand) {
  bed.origin().hold();
  const auto object = pt();
  auto ahead = prefetch(object);
  const auto reads = bed.origin().reads(3);
  for (const auto& read : reads) EXPECT_EQ(read->priority(), kPrefetch);
  auto reader = bed.fetch(object, 0, 1);
  bed.settle();
  for (const auto& read : reads) EXPECT_EQ(read->priority(), kDemand);
  EXPECT_FALSE(object->prefetched_unread());
  bed.origin().release();
  EXPECT_TRUE(reader.get());
  EXPECT_TRUE(ahead.get());
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
  EXPECT_EQ(bed->stats().prefetch_used_bytes, 3 * kMiB);
}

TEST_F(CachePrefetch, AReaderWhoLeavesDoesNotEndIt) {
  bed.origin().hold();
  const auto object = pt();
  auto ahead = prefetch(object);
  bed.origin().reads(3);
  uint64_t ticket = 0;
  auto reader = bed.fetch(object, 0, 1, &ticket);
  bed->cancel(ticket);
  EXPECT_FALSE(reader.get());
  bed.settle();
  for (const auto& read : bed.origin().reads()) EXPECT_FALSE(read->cancelled());
  bed.origin().release();
  EXPECT_TRUE(ahead.get());
}

TEST_F(CachePrefetch, CancellingItEndsItsTransfersAndCountsWhatCame) {
  bed.origin().hold();
  const auto object = pt();
  uint64_t ticket = 0;
  auto ahead = prefetch(object, &ticket);
  const auto reads = bed.origin().reads(3);
  reads[0]->deliver(kMiB / 2);
  bed->cancel(ticket);
  EXPECT_EQ(ahead.get().error().code, Code::kCancelled);
  bed.settle();
  for (const auto& read : reads) EXPECT_TRUE(read->cancelled());
  EXPECT_EQ(object->file(), nullptr);
  const CacheStats stats = bed->stats();
  EXPECT_EQ(stats.prefetch_issued_bytes, kMiB / 2);
  EXPECT_EQ(stats.prefetch_wasted_bytes, kMiB / 2);
  EXPECT_FALSE(object->prefetched_unread());
}

TEST_F(CachePrefetch, CancellingItLeavesAReaderWhoJoined) {
  bed.origin().hold();
  const auto object = pt();
  uint64_t ticket = 0;
  auto ahead = prefetch(object, &ticket);
  bed.origin().reads(3);
  auto reader = bed.fetch(object, 0, 1);
  bed->cancel(ticket);
  EXPECT_FALSE(ahead.get());
  bed.origin().release();
  EXPECT_TRUE(reader.get());
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
}

TEST_F(CachePrefetch, OfASparseObjectOnlyWhatIsMissingIsAskedFor) {
  bed.read(shard(), 0, 2 * kMiB);
  bed.origin().forget_reads();
  ASSERT_TRUE(prefetch(shard(), {kMiB, 3 * kMiB}).get());
  EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), 2 * kMiB);
  EXPECT_EQ(bed->stats().prefetch_issued_bytes, 2 * kMiB);
  bed.read(shard(), 0, 100);  // not of it
  EXPECT_EQ(bed->stats().prefetch_used_bytes, 0u);
  bed.read(shard(), 3 * kMiB, 100);
  EXPECT_EQ(bed->stats().prefetch_used_bytes, 2 * kMiB);
}

TEST_F(CachePrefetch, WhatIsCopiedFromASiblingCostsTheOriginNothing) {
  bed.prepare(shard());
  bed.origin().forget_reads();
  ASSERT_TRUE(prefetch(pt()).get());
  EXPECT_TRUE(bed.origin().reads().empty());
  EXPECT_EQ(bed->stats().prefetch_issued_bytes, 0u);
  EXPECT_FALSE(pt()->prefetched_unread());
}

TEST_F(CachePrefetch, WhatIsDroppedUnreadIsWasted) {
  ASSERT_TRUE(prefetch(pt()).get());
  bed->drop(pt());
  bed.settle();
  EXPECT_EQ(bed->stats().prefetch_wasted_bytes, 3 * kMiB);
  EXPECT_FALSE(pt()->prefetched_unread());
}

TEST_F(CachePrefetch, AFailureIsToldAndLeavesNothing) {
  bed.origin().fail_reads_of("model.safetensors", Error{Code::kOrigin, "500"});
  EXPECT_EQ(prefetch(pt()).get().error().code, Code::kOrigin);
  EXPECT_EQ(pt()->file(), nullptr);
  bed.origin().fail_reads_of("model.safetensors", std::nullopt);
  EXPECT_EQ(check_zip(bed.read_all(pt())), 4);
}

TEST_F(CachePrefetch, StopEndsIt) {
  bed.origin().hold();
  auto ahead = prefetch(pt());
  bed.origin().reads(3);
  bed->stop();
  EXPECT_EQ(ahead.get().error().code, Code::kCancelled);
}

TEST(CachePrefetchEviction, AnUnreadLayerOutlivesOlderOnesThatWereRead) {
  CacheOptions options;
  options.disk_bytes = 3 * kMiB;
  CacheUnderTest bed(options);
  for (const char* name : {"a.bin", "b.bin", "c.bin"})
    bed.origin().put(name, std::string(kMiB + 9, *name));
  Answer<void> ahead;
  const auto unread = bed.blob("a.bin");
  bed->prefetch(unread, {0, unread->size()}, kPrefetch, ahead.callback());
  ASSERT_TRUE(ahead.get());
  bed.read_all(bed.blob("b.bin"));
  // Uses are told apart by the millisecond.
  const auto wall = [] { return std::chrono::system_clock::now().time_since_epoch(); };
  const auto then = wall();
  ASSERT_TRUE(bed.until([&] { return wall() - then > std::chrono::milliseconds(2); }));
  bed.read_all(bed.blob("c.bin"));  // over the limit: b goes, though a was touched before it
  EXPECT_TRUE(bed.until([&] { return bed->stats().total_evictions == 1; }));
  EXPECT_TRUE(unread->resident());
  EXPECT_EQ(bed->stats().prefetch_wasted_bytes, 0u);
}

}  // namespace
}  // namespace nexus::test
