// Digests and hashes: wrong bytes go, with everything made from them, and do not come back.
#include <gtest/gtest.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <fstream>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

constexpr uint64_t kSize = 3 * kMiB + 7;

CacheOptions strict() {
  CacheOptions options;
  options.integrity = Integrity::kStrict;
  return options;
}

std::string flipped(std::string bytes, size_t at) {
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  return bytes;
}

// Puts a file whose bytes are not those that the hub's digest is of.
void put_with_digest_of(FakeOrigin& origin, const std::string& path, const std::string& bytes,
                        const std::string& truth) {
  FakeFile file;
  file.bytes = bytes;
  file.etag = file.sha256 = sha256_hex(truth);
  origin.put(path, file);
}

void flip_on_disk(const ObjectFile& file, uint64_t at) {
  std::fstream disk(file.path(), std::ios::in | std::ios::out | std::ios::binary);
  disk.seekg(static_cast<std::streamoff>(at));
  const int byte = disk.get();
  disk.seekp(static_cast<std::streamoff>(at));
  disk.put(static_cast<char>(byte ^ 1));
}

ObjectLayout slice(uint32_t file, uint64_t src, uint64_t length) {
  ObjectLayout layout;
  layout.size = kMiB + length;
  layout.literals = {{0, "a header"}};
  layout.extents = {{kMiB, length, file, src}};
  return layout;
}

TEST(CacheStrict, LetsNoByteOutBeforeTheDigestIsChecked) {
  CacheUnderTest bed(strict());
  const std::string truth = random_bytes(kSize, 3);
  bed.origin().put("model.safetensors", truth, true);
  bed.origin().hold();
  const auto object = bed.blob("model.safetensors");
  auto answer = bed.fetch(object, 0, 10);
  const auto read = bed.origin().reads(1)[0];
  EXPECT_EQ(read->range().length, kSize);  // a digest is of the whole file
  read->deliver(2 * kMiB);
  bed.settle();
  std::byte byte{};
  EXPECT_FALSE(bed->try_read(*object, 0, {&byte, 1}).has_value());
  bed.origin().release();
  EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(bed.read_all(object), truth);
  EXPECT_TRUE(object->info().verified);
}

TEST(CacheStrict, AFlippedByteIsNeverReadable) {
  CacheUnderTest bed(strict());
  const std::string truth = random_bytes(kSize, 4);
  put_with_digest_of(bed.origin(), "model.safetensors", flipped(truth, kSize - 1), truth);
  const auto object = bed.blob("model.safetensors");
  EXPECT_EQ(bed.try_to_read(object, 0, 10).error().code, Code::kCorrupt);
  EXPECT_EQ(bed.prepare(object).error().code, Code::kCorrupt);
  EXPECT_NE(object->info().error.find("digest mismatch"), std::string::npos);
  put_with_digest_of(bed.origin(), "model.safetensors", truth, truth);  // the hub is well again
  EXPECT_EQ(bed.read_all(object), truth);
}

TEST(CacheStrict, GitBlobsAreCheckedByTheirOid) {
  CacheUnderTest bed(strict());
  FakeFile config;
  config.bytes = "{}";
  config.etag = git_oid(config.bytes);
  bed.origin().put("config.json", config);
  config.bytes = "[]";
  config.etag = git_oid("()");
  bed.origin().put("wrong.json", config);
  EXPECT_EQ(bed.read(bed.blob("config.json"), 0, 10), "{}");
  EXPECT_EQ(bed.try_to_read(bed.blob("wrong.json"), 0, 10).error().code, Code::kCorrupt);
}

TEST(CacheStrict, AFileWithoutADigestIsRefused) {
  CacheUnderTest bed(strict());
  FakeFile file;
  file.bytes = "bytes";
  file.etag = "W/weak";
  bed.origin().put("file", file);
  EXPECT_EQ(bed.try_to_read(bed.blob("file"), 0, 10).error().code, Code::kOrigin);
}

TEST(CacheStrict, ALayerComesFromItsVerifiedShard) {
  CacheUnderTest bed(strict());
  const std::string truth = random_bytes(kSize, 5);
  bed.origin().put("model.safetensors", truth, true);
  const std::vector<TensorInfo> tensors = {tensor_at("a.b", 0, 1000, kMiB)};
  const auto layout = *torch_layer_layout("layer_0", tensors);
  const HeaderDigest header{0, {0, 1000}, 0};
  const auto mismatched = bed.view("bad", layout, {header});
  EXPECT_EQ(bed.try_to_read(mismatched, 0, 1).error().code, Code::kCorrupt);
  EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), kSize);
}

TEST(CacheStrict, APrefetchedLayersShardComesInTheBackgroundUntilAReaderComes) {
  CacheUnderTest bed(strict());
  const std::string truth = random_bytes(kSize, 5);
  bed.origin().put("model.safetensors", truth, true);
  const std::vector<TensorInfo> tensors = {tensor_at("a.b", 0, 1000, kMiB)};
  const std::string head = truth.substr(0, 1000);
  const HeaderDigest header{0, {0, 1000}, XXH3_64bits(head.data(), head.size())};
  bed.origin().hold();
  const auto layer = bed.view("pt", *torch_layer_layout("layer_0", tensors), {header});
  Answer<void> ahead;
  bed->prefetch(layer, {0, layer->size()}, kPrefetch + 3, ahead.callback());
  const auto reads = bed.origin().reads(1);
  for (const auto& read : reads) EXPECT_EQ(read->priority(), kPrefetch + 3);
  auto reader = bed.fetch(layer, 0, 1);
  EXPECT_TRUE(bed.until([&] { return reads[0]->priority() == kDemand; }));
  bed.origin().release();
  EXPECT_TRUE(reader.get());
  EXPECT_TRUE(ahead.get());
  EXPECT_EQ(check_zip(bed.read_all(layer)), 4);
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
}

TEST(CacheStrict, WhoTurnsAwayFromALayerEndsTheFetchOfItsShardAndWhoComesThenBeginsAnew) {
  CacheUnderTest bed(strict());
  const std::string truth = random_bytes(kSize, 5);
  bed.origin().put("model.safetensors", truth, true);
  const std::vector<TensorInfo> tensors = {tensor_at("a.b", 0, 1000, kMiB)};
  const HeaderDigest header{0, {0, 1000}, XXH3_64bits(truth.data(), 1000)};
  bed.origin().hold();
  const auto layer = bed.view("pt", *torch_layer_layout("layer_0", tensors), {header});
  Answer<void> ahead, again;
  const uint64_t ticket = bed->prefetch(layer, {0, layer->size()}, kPrefetch, ahead.callback());
  const auto reads = bed.origin().reads(1);
  bed->cancel(ticket);
  EXPECT_EQ(ahead.get().error().code, Code::kCancelled);
  EXPECT_TRUE(bed.until([&] { return reads[0]->cancelled(); }));
  // One is given up, and a reader comes before that has ended.
  const uint64_t second = bed->prefetch(layer, {0, layer->size()}, kPrefetch, again.callback());
  bed.origin().reads(reads.size() + 1);
  bed->cancel(second);
  auto reader = bed.fetch(layer, 0, 1);
  bed.origin().release();
  EXPECT_TRUE(reader.get());
  EXPECT_EQ(check_zip(bed.read_all(layer)), 4);
}

TEST(CacheStrict, AnArchiveWithoutOriginBytesIsReadable) {
  CacheUnderTest bed(strict());
  bed.origin().put("model.safetensors", "x", true);
  const auto object = bed.view("empty", *torch_layer_layout("non_layer", {}));
  EXPECT_EQ(check_zip(bed.read_all(object)), 3);
}

TEST(CacheDefault, AMismatchDropsTheBlobAndWhatIsMadeFromIt) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 6);
  put_with_digest_of(bed.origin(), "a.safetensors", flipped(truth, 5), truth);
  bed.origin().put("b.safetensors", random_bytes(kSize, 60), true);
  const auto blob = bed.blob("a.safetensors");
  const auto made = bed.view("made", slice(0, 0, kMiB)),
             other = bed.view("other", slice(1, 0, kMiB));
  bed.read_all(made);
  bed.read_all(other);
  bed.read_all(blob);  // complete: its digest is looked at
  ASSERT_TRUE(bed.until([&] { return !blob->file() && !made->file(); }));
  EXPECT_TRUE(other->resident());
  put_with_digest_of(bed.origin(), "a.safetensors", truth, truth);
  EXPECT_EQ(bed.read(made, kMiB, kMiB), truth.substr(0, kMiB));
  EXPECT_EQ(bed.read_all(blob), truth);
  EXPECT_TRUE(bed.until([&] { return blob->info().verified; }));
}

TEST(CacheDefault, ReadersWaitingForViewsGetNoByteOfABadBlobThatIsGoing) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 7);
  put_with_digest_of(bed.origin(), "a.safetensors", flipped(truth, 5), truth);
  bed.origin().put("b.safetensors", random_bytes(kMiB, 8));
  const auto blob = bed.blob("a.safetensors");
  bed.read(blob, 0, kMiB);
  bed.origin().hold();
  // Each holds a chunk of the bad blob and waits for one of the other file.
  std::vector<std::shared_ptr<Object>> views;
  std::vector<Answer<void>> answers;
  for (uint64_t i = 0; i < 8; ++i) {
    ObjectLayout layout = slice(0, 0, kMiB);
    layout.size += kMiB;
    layout.extents.push_back({2 * kMiB, kMiB - i, 1, i});
    views.push_back(bed.view("view", layout));
    answers.push_back(bed.fetch(views[i], 0, layout.size));
  }
  for (const auto& view : views) {
    ASSERT_TRUE(bed.until([&] { return view->info().bytes_cached == 2 * kMiB; }));
  }
  bed.origin().forget_reads();
  auto last = bed.fetch(blob, kMiB, kSize - kMiB);
  put_with_digest_of(bed.origin(), "a.safetensors", truth, truth);
  bed.origin().reads(1)[0]->finish();  // the digest does not match
  EXPECT_TRUE(last.get().has_value());
  bed.origin().reads(1 + 8);  // everybody begins anew, and asks the origin for those bytes
  bed.origin().release();
  for (auto& answer : answers) EXPECT_TRUE(answer.get().has_value());
  for (const auto& view : views) EXPECT_EQ(bed.read(view, kMiB, kMiB), truth.substr(0, kMiB));
}

TEST(CacheDefault, AMismatchAlsoDropsViewsOfAnEarlierRun) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 9);
  put_with_digest_of(bed.origin(), "a.safetensors", flipped(truth, 5), truth);
  bed.read_all(bed.view("made", slice(0, 0, kMiB)));
  bed.restart();
  const auto blob = bed.blob("a.safetensors");
  bed.read_all(blob);
  ASSERT_TRUE(bed.until([&] { return !blob->file(); }));
  bed.settle();
  EXPECT_FALSE(bed.view("made", slice(0, 0, kMiB))->file());
}

TEST(CacheDefault, AnEmptyFileWithAWrongDigestDoesNoHarm) {
  CacheUnderTest bed;
  put_with_digest_of(bed.origin(), "empty", "", "not empty");
  const auto object = bed.blob("empty");
  bed.prepare(object);  // answered before or after the digest is looked at
  EXPECT_TRUE(bed.until([&] { return !object->info().error.empty(); }));
}

TEST(CacheRestart, NothingIsFetchedAgainAndChunksAreCheckedBeforeUse) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 10);
  bed.origin().put("a.safetensors", truth, true);
  bed.read(bed.blob("a.safetensors"), 0, 2 * kMiB);
  bed.restart();
  const auto object = bed.blob("a.safetensors");
  EXPECT_EQ(bed.read(object, 0, 2 * kMiB), truth.substr(0, 2 * kMiB));
  EXPECT_TRUE(bed.origin().reads().empty());
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 2 * kMiB; }));
  EXPECT_EQ(bed.read_all(object), truth);
  EXPECT_EQ(bed.origin().bytes_asked("a.safetensors"), kSize - 2 * kMiB);
}

TEST(CacheRestart, ACompleteFileIsPreparedWithoutADownload) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 11);
  bed.origin().put("a.safetensors", truth, true);
  bed.prepare(bed.blob("a.safetensors"));
  ASSERT_TRUE(bed.until([&] { return bed.blob("a.safetensors")->info().verified; }));
  bed.restart();
  ASSERT_TRUE(bed.prepare(bed.blob("a.safetensors")).has_value());
  EXPECT_TRUE(bed.blob("a.safetensors")->info().verified);
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST(CacheRestart, ACorruptedFileIsDroppedAndFetchedAgain) {
  for (const bool open : {false, true}) {
    CacheUnderTest bed;
    const std::string truth = random_bytes(kSize, 12);
    bed.origin().put("a.safetensors", truth, true);
    flip_on_disk(**bed.prepare(bed.blob("a.safetensors")), kMiB + 3);
    bed.restart();
    const auto object = bed.blob("a.safetensors");
    if (open) {
      ASSERT_TRUE(bed.prepare(object).has_value());
    }
    EXPECT_EQ(bed.read_all(object), truth);
    EXPECT_EQ(bed.origin().most_asked("a.safetensors"), 1u);
    EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == kSize; }));
  }
}

TEST(CacheRestart, ALayerIsNotMadeFromACorruptedShard) {
  CacheUnderTest bed;
  const std::string truth = random_bytes(kSize, 13);
  bed.origin().put("a.safetensors", truth, true);
  flip_on_disk(**bed.prepare(bed.blob("a.safetensors")), 20);
  bed.restart();
  bed.blob("a.safetensors");
  const auto view = bed.view("made", slice(0, 0, kMiB));
  EXPECT_EQ(bed.read(view, kMiB, kMiB), truth.substr(0, kMiB));
}

TEST(CacheRestart, StrictKeepsOnlyWhatWasVerified) {
  CacheUnderTest bed;
  FakeFile file;
  file.bytes = random_bytes(kSize, 14);
  file.etag = sha256_hex(file.bytes);
  bed.origin().put("unchecked", file);  // no sha256: default integrity never looks
  bed.origin().put("checked", random_bytes(kSize, 15), true);
  bed.prepare(bed.blob("unchecked"));
  bed.prepare(bed.blob("checked"));
  ASSERT_TRUE(bed.until([&] { return bed.blob("checked")->info().verified; }));
  bed.restart(strict());
  EXPECT_FALSE(bed.blob("unchecked")->resident());
  EXPECT_TRUE(bed.blob("checked")->resident());
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == kSize; }));
}

TEST(CacheRestart, AFileThatIsNowServedInPlaceReplacesItsCachedPart) {
  CacheUnderTest bed;
  FakeFile file;
  file.bytes = random_bytes(kSize, 16);
  file.etag = sha256_hex(file.bytes);
  bed.origin().put("a.safetensors", file);
  bed.read(bed.blob("a.safetensors"), 0, 10);
  bed.restart();
  file.local_path = "/tmp/nexus-in-place-" + std::to_string(::getpid());
  { std::ofstream(file.local_path, std::ios::binary) << file.bytes; }
  bed.origin().put("a.safetensors", file);
  EXPECT_EQ(bed.read_all(bed.blob("a.safetensors")), file.bytes);
  EXPECT_EQ(bed->stats().disk_cache_bytes, 0u);
  EXPECT_TRUE(bed.origin().reads().empty());
  ::unlink(file.local_path.c_str());
}

}  // namespace
}  // namespace nexus::test
