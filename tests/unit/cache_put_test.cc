// Files without an origin, put into the cache.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

PutRead reader_of(const std::string& bytes) {
  return [bytes](uint64_t offset, std::span<std::byte> into) -> Result<void> {
    std::memcpy(into.data(), bytes.data() + offset, into.size());
    return {};
  };
}

Result<void> put(CacheUnderTest& bed, const std::string& file, const std::string& bytes,
                 const std::string& model = "org/m") {
  Answer<void> answer;
  bed->put({model, file, bytes.size(), ""}, reader_of(bytes), answer.callback());
  return answer.get();
}

std::string content(CacheUnderTest& bed, const std::string& file,
                    const std::string& model = "org/m") {
  const auto object = bed->find_put(model, file);
  return object ? bed.read_all(object) : "(absent)";
}

ObjectFilter filter_of(const std::string& file) {
  ObjectFilter filter;
  filter.model = "org/m";
  filter.file = file;
  return filter;
}

TEST(CachePut, WhatIsPutIsReadAndSurvivesARestart) {
  CacheUnderTest bed;
  const std::string bytes = random_bytes(5 * kMiB + 17, 1);
  ASSERT_TRUE(put(bed, "layer_0.pt", bytes));
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
  EXPECT_EQ(bed->put_files("org/m"), std::vector<std::string>{"layer_0.pt"});
  EXPECT_EQ(bed->stats().disk_cache_bytes, bytes.size());
  bed.restart();
  EXPECT_EQ(bed->put_models(), std::vector<std::string>{"org/m"});
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
  EXPECT_EQ(content(bed, "layer_1.pt"), "(absent)");
}

TEST(CachePut, TheLaterPutReplacesTheEarlier) {
  CacheUnderTest bed;
  const std::string first = random_bytes(2 * kMiB, 1), second = random_bytes(kMiB, 2);
  ASSERT_TRUE(put(bed, "layer_0.pt", first));
  const auto old = bed->find_put("org/m", "layer_0.pt");
  ASSERT_TRUE(put(bed, "layer_0.pt", second));
  EXPECT_EQ(content(bed, "layer_0.pt"), second);
  EXPECT_FALSE(old->resident());
  EXPECT_EQ(bed->stats().disk_cache_bytes, second.size());
  // The same bytes again are the object that is here.
  ASSERT_TRUE(put(bed, "layer_0.pt", second));
  EXPECT_EQ(bed->stats().disk_cache_bytes, second.size());
  bed.restart();
  EXPECT_EQ(content(bed, "layer_0.pt"), second);
}

TEST(CachePut, WhatIsGoneIsSaidToBeGone) {
  CacheUnderTest bed;
  ASSERT_TRUE(put(bed, "layer_0.pt", random_bytes(kMiB, 1)));
  const auto object = bed->find_put("org/m", "layer_0.pt");
  Answer<Dropped> dropped;
  bed->invalidate(filter_of("layer_0.pt"),
                  [done = dropped.callback()](Dropped counts) { done(counts); });
  EXPECT_EQ(dropped.get()->objects, 1u);
  EXPECT_FALSE(bed->find_put("org/m", "layer_0.pt"));
  EXPECT_TRUE(bed->put_files("org/m").empty());
  // Whoever opens what it still knows gets an error, not bytes that nobody put in.
  const auto file = bed.prepare(object);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, Code::kNotFound);
  EXPECT_NE(file.error().what.find("put into the cache"), std::string::npos) << file.error().what;
  EXPECT_EQ(bed->stats().disk_cache_bytes, 0u);
  bed.restart();
  EXPECT_TRUE(bed->put_models().empty());
}

TEST(CachePut, IsEvictedAfterEverythingElse) {
  CacheOptions options;
  options.disk_bytes = 4 * kMiB;
  CacheUnderTest bed(options);
  const std::string bytes = random_bytes(2 * kMiB, 1);
  ASSERT_TRUE(put(bed, "layer_0.pt", bytes));
  for (int i = 0; i < 4; ++i) {
    const std::string name = "f" + std::to_string(i);
    bed.origin().put(name, random_bytes(2 * kMiB, 10 + static_cast<uint64_t>(i)));
    bed.read_all(bed.blob(name));
    pass_a_millisecond();
  }
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes <= 4 * kMiB; }));
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
  EXPECT_GE(bed->stats().total_evictions, 2u);
  // Of what was put in, the oldest goes when there is nothing else.
  ASSERT_TRUE(put(bed, "layer_1.pt", random_bytes(2 * kMiB, 2)));
  pass_a_millisecond();
  ASSERT_TRUE(put(bed, "layer_2.pt", random_bytes(2 * kMiB, 3)));
  bed.settle();
  EXPECT_EQ(content(bed, "layer_0.pt"), "(absent)");
  EXPECT_EQ(bed->put_files("org/m").size(), 2u);
}

TEST(CachePut, WhatCannotBeKeptIsRefused) {
  CacheOptions options;
  options.disk_bytes = kMiB;
  CacheUnderTest bed(options);
  auto large = put(bed, "layer_0.pt", random_bytes(2 * kMiB, 1));
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, Code::kLimit);
  EXPECT_FALSE(put(bed, "layer_0.pt", ""));
  Answer<void> answer;
  bed->put(
      {"org/m", "layer_0.pt", 100, ""},
      [](uint64_t, std::span<std::byte>) -> Result<void> {
        return fail(Code::kInvalid, "it ends early");
      },
      answer.callback());
  EXPECT_EQ(answer.get().error().code, Code::kInvalid);
  EXPECT_FALSE(bed->find_put("org/m", "layer_0.pt"));
}

TEST(CachePut, ACorruptOneIsFoundAndIsNoMore) {
  CacheUnderTest bed;
  ASSERT_TRUE(put(bed, "layer_0.pt", random_bytes(2 * kMiB, 1)));
  const std::string path = bed->find_put("org/m", "layer_0.pt")->file()->path();
  bed.restart();
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(kMiB));
    file.put('x').put('y').put('z');
  }
  Answer<VerifyReport> answer;
  bed->verify({}, {}, answer.callback());
  EXPECT_EQ(answer.get()->corrupt.size(), 1u);
  EXPECT_FALSE(bed->find_put("org/m", "layer_0.pt"));
}

TEST(CachePut, StaysWhenAnOriginsFileOfTheModelIsWrong) {
  CacheUnderTest bed;
  const std::string bytes = random_bytes(kMiB, 1);
  ASSERT_TRUE(put(bed, "layer_0.pt", bytes));
  bed.restart();
  FakeFile wrong;
  wrong.bytes = random_bytes(2 * kMiB, 2);
  wrong.etag = wrong.sha256 = std::string(64, '0');
  bed.origin().put("shard", wrong);
  const auto shard = bed.blob("shard");
  bed.fetch(shard, 0, 2 * kMiB).get();
  EXPECT_TRUE(bed.until([&] { return !shard->resident(); }));
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
}

TEST(CachePut, StrictIntegrityServesIt) {
  CacheOptions options;
  options.integrity = Integrity::kStrict;
  CacheUnderTest bed(options);
  const std::string bytes = random_bytes(2 * kMiB, 1);
  ASSERT_TRUE(put(bed, "layer_0.pt", bytes));
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
  bed.restart(options);
  EXPECT_EQ(content(bed, "layer_0.pt"), bytes);
}

TEST(CachePutConcurrent, PutsAndReadersOfOneFileSeeWholeContents) {
  CacheUnderTest bed;
  std::vector<std::string> contents;
  for (uint64_t i = 0; i < 4; ++i)
    contents.push_back(std::string(kMiB + i, static_cast<char>('a' + i)));
  ASSERT_TRUE(put(bed, "layer_0.pt", contents[0]));
  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int turn = 0; turn < 8; ++turn) {
        auto done = put(bed, "layer_0.pt", contents[i]);
        EXPECT_TRUE(done || done.error().code == Code::kCancelled) << done.error().what;
        const auto object = bed->find_put("org/m", "layer_0.pt");
        if (!object) continue;
        // It may have been replaced since: then it is gone, but never something else.
        auto read = bed.try_to_read(object, 0, object->size());
        if (read) {
          EXPECT_EQ(*read, contents[object->size() - kMiB]);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(bed->find_put("org/m", "layer_0.pt"));
  bed.settle();
  EXPECT_EQ(bed->put_files("org/m").size(), 1u);
}

}  // namespace
}  // namespace nexus::test
