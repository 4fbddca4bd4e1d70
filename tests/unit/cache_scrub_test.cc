// The background scrub: it finds what rots, drops nothing else, and goes on over restarts.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

constexpr uint64_t kSize = 2 * kMiB + 3;

CacheOptions scrubbing(std::chrono::milliseconds interval) {
  CacheOptions options;
  options.scrub_interval = interval;
  return options;
}

void flip_on_disk(const std::string& path, uint64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  const int byte = file.get();
  file.seekp(static_cast<std::streamoff>(at));
  file.put(static_cast<char>(byte ^ 1));
}

class CacheScrub : public testing::Test {
 protected:
  explicit CacheScrub(CacheOptions options = scrubbing(std::chrono::milliseconds(1)))
      : bed_(std::move(options)) {
    for (int i = 0; i < 3; ++i) {
      truth_.push_back(random_bytes(kSize, 90 + static_cast<uint64_t>(i)));
      bed_.origin().put("f" + std::to_string(i), truth_.back());
      bed_.read_all(bed_.blob("f" + std::to_string(i)));
    }
  }
  bool pass_more() {
    const uint64_t before = bed_->stats().scrub.passes;
    // The one that runs may have begun before what the test did.
    return bed_.until([&] { return bed_->stats().scrub.passes >= before + 2; });
  }
  std::vector<std::string> truth_;
  CacheUnderTest bed_;
};

TEST_F(CacheScrub, GoesOverEverythingAgainAndAgain) {
  ASSERT_TRUE(pass_more());
  const ScrubState scrub = bed_->stats().scrub;
  EXPECT_TRUE(scrub.on);
  EXPECT_GE(scrub.checked_bytes, 3 * kSize);
  EXPECT_EQ(scrub.corrupt, 0u);
  EXPECT_GT(scrub.last_pass_ms, 0);
  for (const char* name : {"f0", "f1", "f2"}) EXPECT_TRUE(bed_.blob(name)->resident());
}

TEST_F(CacheScrub, DropsAndCountsWhatRotted) {
  const auto object = bed_.blob("f1");
  flip_on_disk(object->file()->path(), kMiB + 17);
  ASSERT_TRUE(bed_.until([&] { return bed_->stats().scrub.corrupt > 0 && !object->resident(); }));
  EXPECT_EQ(bed_->stats().scrub.corrupt, 1u);
  EXPECT_TRUE(bed_.blob("f0")->resident());
  EXPECT_EQ(bed_.read_all(object), truth_[1]);
  ASSERT_TRUE(pass_more());
  EXPECT_EQ(bed_->stats().scrub.corrupt, 1u) << "the new copy is sound";
}

TEST_F(CacheScrub, ReachesWhatAnEarlierRunLeft) {
  const std::string path = bed_.blob("f2")->file()->path();
  bed_.restart(scrubbing(std::chrono::milliseconds(1)));
  flip_on_disk(path, 0);
  ASSERT_TRUE(bed_.until([&] { return bed_->stats().scrub.corrupt == 1; }));
  EXPECT_TRUE(bed_.until([&] { return bed_->stats().disk_cache_entries == 2; }));
  EXPECT_EQ(bed_.read_all(bed_.blob("f2")), truth_[2]);
}

TEST_F(CacheScrub, WaitsWhileSomethingIsFetched) {
  bed_.origin().put("slow", random_bytes(kSize, 5));
  bed_.origin().hold("slow");
  auto answer = bed_.fetch(bed_.blob("slow"), 0, kSize);
  bed_.origin().reads(1);
  bed_.settle();
  const uint64_t passes = bed_->stats().scrub.passes;
  for (int i = 0; i < 50; ++i) bed_.settle();
  EXPECT_LE(bed_->stats().scrub.passes, passes + 1) << "one may have been at its end";
  bed_.origin().release();
  EXPECT_TRUE(answer.get().has_value());
  EXPECT_TRUE(pass_more());
}

TEST_F(CacheScrub, TheLastPassIsRememberedAcrossRestarts) {
  ASSERT_TRUE(pass_more());
  bed_.restart(scrubbing(std::chrono::hours(1)));
  EXPECT_TRUE(bed_.until([&] { return bed_->stats().scrub.last_pass_ms > 0; }));
  EXPECT_EQ(bed_->stats().scrub.passes, 0u);
}

TEST(CacheScrubOff, NothingRuns) {
  CacheUnderTest bed;
  EXPECT_FALSE(bed->stats().scrub.on);
}

}  // namespace
}  // namespace nexus::test
