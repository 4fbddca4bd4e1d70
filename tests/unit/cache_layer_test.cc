// Layers made from shards: whole archives with true CRCs, and objects filled from each other.
#include <gtest/gtest.h>

#include <cstdint>

#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

// One shard of a layer's tensors between other bytes; `shard` is its object.
class CacheLayers : public ::testing::Test {
 protected:
  CacheLayers() { bed.origin().put("model.safetensors", truth); }

  static std::vector<TensorInfo> tensors() {
    return {tensor_at("l.0.a", 0, 3000, 2 * kMiB + 17), tensor_at("l.0.b", 0, 3 * kMiB, 1),
            tensor_at("l.0.c", 0, 4 * kMiB + 1, kMiB), tensor_at("l.0.none", 0, 0, 0)};
  }
  std::shared_ptr<Object> shard() { return bed.blob("model.safetensors"); }
  std::shared_ptr<Object> pt() { return bed.view("pt", *torch_layer_layout("layer_0", tensors())); }
  std::shared_ptr<Object> st() { return bed.view("st", *safetensors_layer_layout(tensors())); }
  std::string expected(const std::shared_ptr<Object>& object) {
    return expected_bytes(object->spec().layout, bed.origin().snapshot(), bed.origin());
  }

  const std::string truth = random_bytes(8 * kMiB + 99, 2);
  CacheUnderTest bed;
};

TEST_F(CacheLayers, AnArchiveIsFetchedWholeAndItsCrcsAreTrue) {
  const std::string zip = bed.read(pt(), 10, 1);  // one byte brings all of it
  ASSERT_EQ(zip.size(), 1u);
  EXPECT_TRUE(pt()->resident());
  EXPECT_EQ(check_zip(bed.read_all(pt())), 7);  // data.pkl, byteorder, version, four storages
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
}

TEST_F(CacheLayers, AnArchiveCostsLittleMoreThanItsTensors) {
  bed.prepare(pt());
  EXPECT_LE(bed.origin().bytes_asked("model.safetensors"), (3 * kMiB + 18) * 102 / 100);
}

TEST_F(CacheLayers, AnArchiveIsNeverReadBeforeAllOfItIsHere) {
  bed.origin().hold();
  const auto object = pt();
  auto answer = bed.fetch(object, 0, 100);
  const auto reads = bed.origin().reads(1);
  reads[0]->deliver(kMiB);
  bed.settle();
  std::byte byte{};
  EXPECT_FALSE(bed->try_read(*object, 0, {&byte, 1}).has_value());
  EXPECT_FALSE(answer.here());
  bed.origin().release();
  EXPECT_TRUE(answer.get().has_value());
  EXPECT_EQ(check_zip(bed.read_all(object)), 7);
}

TEST_F(CacheLayers, AFailedArchiveLeavesNothingAndALaterOpenSucceeds) {
  bed.origin().hold();
  const auto object = pt();
  auto answer = bed.fetch(object, 0, 1);
  const auto reads = bed.origin().reads(1);
  reads[0]->deliver(kMiB + 10);
  reads[0]->fail(Code::kOrigin, "500");
  EXPECT_EQ(answer.get().error().code, Code::kOrigin);
  EXPECT_TRUE(bed.until([&] { return bed->stats().disk_cache_bytes == 0; }));
  EXPECT_EQ(object->file(), nullptr);
  bed.origin().release();
  EXPECT_EQ(check_zip(bed.read_all(object)), 7);
}

TEST_F(CacheLayers, ALayerIsMadeFromAResidentShardWithoutADownload) {
  bed.prepare(shard());
  bed.origin().forget_reads();
  EXPECT_EQ(check_zip(bed.read_all(pt())), 7);
  EXPECT_EQ(bed.read_all(st()), expected(st()));
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(CacheLayers, ALayerTakesFromTheShardTheChunksThatAreThere) {
  bed.read(shard(), kMiB, kMiB);
  bed.origin().forget_reads();
  EXPECT_EQ(bed.read_all(st()), expected(st()));
  for (const auto& read : bed.origin().reads()) {
    EXPECT_TRUE(read->range().end() <= kMiB || read->range().offset >= 2 * kMiB);
  }
}

TEST_F(CacheLayers, AShardChunkIsFilledFromALayer) {
  bed.prepare(st());
  bed.origin().forget_reads();
  EXPECT_EQ(bed.read(shard(), kMiB, kMiB), truth.substr(kMiB, kMiB));
  EXPECT_TRUE(bed.origin().reads().empty());
  EXPECT_EQ(bed.read_all(shard()), truth);
}

TEST_F(CacheLayers, AShardChunkIsFilledFromAnArchive) {
  bed.prepare(pt());
  bed.origin().forget_reads();
  EXPECT_EQ(bed.read(shard(), kMiB, kMiB), truth.substr(kMiB, kMiB));
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(CacheLayers, TheSameBytesAtTwoPlacesAreBothFilled) {
  ObjectLayout layout;
  layout.size = 2 * kMiB;
  layout.extents = {{0, kMiB, 0, 500}, {kMiB, kMiB, 0, 500}};
  const auto object = bed.view("twice", layout);
  EXPECT_EQ(bed.read_all(object), truth.substr(500, kMiB) + truth.substr(500, kMiB));
}

TEST_F(CacheLayers, AnArchiveOfNoTensorsIsMadeFromNothing) {
  const auto object = bed.view("empty", *torch_layer_layout("non_layer", {}));
  EXPECT_EQ(check_zip(bed.read_all(object)), 3);
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(CacheLayers, ManySmallTensorsComeInFewRequests) {
  std::vector<TensorInfo> small;
  for (uint64_t i = 0; i < 500; ++i) {
    small.push_back(tensor_at("l.0." + std::to_string(i), 0, 100 + i * 8000, 8000 - i % 3));
  }
  const auto object = bed.view("small", *torch_layer_layout("layer_0", small));
  EXPECT_EQ(check_zip(bed.read_all(object)), 503);
  EXPECT_LE(bed.origin().reads().size(), 8u);
}

// Two connections, so that parts are large enough to be cut where writes end.
TEST(CacheLargeLayer, IsTrueAndComesInAsManyRequestsAsThereAreConnections) {
  CacheOptions options;
  options.max_connections = 2;
  CacheUnderTest bed(options);
  bed.origin().put("model.safetensors", random_bytes(21 * kMiB, 8));
  const std::vector<TensorInfo> tensors = {tensor_at("l.0.a", 0, 77, 13 * kMiB + 5),
                                           tensor_at("l.0.b", 0, 14 * kMiB, 6 * kMiB)};
  const auto object = bed.view("pt", *torch_layer_layout("layer_0", tensors));
  EXPECT_EQ(check_zip(bed.read_all(object)), 5);
  EXPECT_LE(bed.origin().reads().size(), 3u);  // what lies between the tensors is not fetched
  EXPECT_EQ(bed.origin().most_asked("model.safetensors"), 1u);
  const auto sparse = bed.view("st", *safetensors_layer_layout(tensors));
  bed->drop(object);
  EXPECT_EQ(bed.read_all(sparse),
            expected_bytes(sparse->spec().layout, bed.origin().snapshot(), bed.origin()));
}

TEST(CacheLargeLayer, ComesInRequestsAsItsOriginsLinkWantsThem) {
  const auto requests = [](int connections, uint64_t part_bytes) {
    CacheOptions options;
    options.max_connections = 2;
    options.links["fake"] = {connections, part_bytes};
    CacheUnderTest bed(options);
    bed.origin().put("model.safetensors", random_bytes(33 * kMiB, 8));
    const std::vector<TensorInfo> tensors = {tensor_at("l.0.a", 0, 4096, 32 * kMiB)};
    const auto object = bed.view("pt", *torch_layer_layout("layer_0", tensors));
    EXPECT_EQ(check_zip(bed.read_all(object)), 4);
    return bed.origin().reads().size();
  };
  EXPECT_EQ(requests(1, 0), 1u);
  EXPECT_EQ(requests(1, 16 * kMiB), 2u);
  EXPECT_EQ(requests(1, 1), 4u) << "below the least";
  EXPECT_GE(requests(4, uint64_t{1} << 50), 4u) << "beyond the most";
}

}  // namespace
}  // namespace nexus::test
