// Read-ahead by layers over a real cache: from what fs/ says to bytes that are here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstdint>
#include <thread>

#include "prefetch/read_ahead.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

constexpr int kLayers = 8;
constexpr uint64_t kLayerBytes = 2 * kMiB;

// Eight layers of 2 MiB in one file; as archives too.
class FakeLayers final : public Model {
 public:
  explicit FakeLayers(CacheUnderTest& bed, std::vector<HeaderDigest> headers = {})
      : bed_(bed), headers_(std::move(headers)) {}
  const std::string& repo() const override { return repo_; }
  const std::string& revision() const override { return revision_; }
  const std::string& commit() const override { return commit_; }
  bool restricted() const override { return false; }
  int64_t mtime_s() const override { return 0; }
  std::string source() const override { return "fake"; }
  FindResult find(const std::string&) override { return {}; }
  std::optional<std::vector<ModelNode>> list(const std::string&) override { return std::nullopt; }
  uint64_t when_ready(std::function<void()>) override { return 0; }
  void cancel_wait(uint64_t) override {}
  std::string error() const override { return ""; }

  int layer_count() const override { return kLayers; }
  std::vector<LayerPiece> layer_pieces(LayerView view, int layer) override {
    const uint64_t begin = static_cast<uint64_t>(layer) * kLayerBytes;
    if (view == LayerView::kShards) {
      // In two pieces, as in a file whose writer sorts otherwise.
      const auto shard = bed_.blob("model.safetensors");
      return {{shard, {begin, kMiB}}, {shard, {begin + kMiB, kMiB}}};
    }
    const auto object = archive(layer);
    return {{object, {0, object->size()}}};
  }
  std::shared_ptr<Object> archive(int layer) {
    const std::string name = "layer_" + std::to_string(layer);
    const std::vector<TensorInfo> tensors{
        tensor_at("l.w", 0, static_cast<uint64_t>(layer) * kLayerBytes, kLayerBytes)};
    return bed_.view(name, *torch_layer_layout(name, tensors), headers_);
  }

 private:
  CacheUnderTest& bed_;
  const std::vector<HeaderDigest> headers_;
  const std::string repo_ = "org/m", revision_ = "main", commit_ = kCommit;
};

class PrefetchReadAhead : public ::testing::Test {
 protected:
  PrefetchReadAhead() {
    bed.origin().put("model.safetensors", random_bytes(kLayers * kLayerBytes, 4));
  }
  ~PrefetchReadAhead() override {
    ahead.stop();
    bed->stop();  // its callbacks end before `ahead` does
  }
  void reach(LayerView view, int layer) { ahead.on_layer(model, view, layer, false); }

  CacheUnderTest bed;
  std::shared_ptr<FakeLayers> model = std::make_shared<FakeLayers>(bed);
  prefetch::LayerReadAhead ahead{{}, bed.cache(), bed.store()};
};

TEST_F(PrefetchReadAhead, TheNextArchiveComesWholeAndUnread) {
  reach(LayerView::kTorch, 0);
  const auto next = model->archive(1);
  EXPECT_TRUE(bed.until([&] { return next->resident() && ahead.stats().queue_depth == 0; }));
  EXPECT_TRUE(next->prefetched_unread());
  EXPECT_EQ(model->archive(2)->file(), nullptr);
  EXPECT_EQ(ahead.stats().fetches, 1u);
}

TEST_F(PrefetchReadAhead, OfAShardTheNextLayersPiecesCome) {
  reach(LayerView::kShards, 0);
  const auto shard = bed.blob("model.safetensors");
  EXPECT_TRUE(bed.until([&] { return shard->info().bytes_cached == kLayerBytes; }));
  EXPECT_TRUE(shard->file()->has(ByteRange{kLayerBytes, kLayerBytes}));
  EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), kLayerBytes);
}

// A layer of a shard is the whole shard then, which the budget has to have room for.
TEST(PrefetchReadAheadStrict, TheBudgetCountsTheFilesBelowALayer) {
  constexpr uint64_t kFile = kLayers * kLayerBytes;
  for (const LayerView view : {LayerView::kShards, LayerView::kTorch}) {
    for (const bool fits : {false, true}) {
      CacheOptions strict;
      strict.integrity = Integrity::kStrict;
      CacheUnderTest bed(strict);
      const std::string bytes = random_bytes(kFile, 4);
      bed.origin().put("model.safetensors", bytes, true);
      const HeaderDigest header{0, {0, 1000}, XXH3_64bits(bytes.data(), 1000)};
      auto model = std::make_shared<FakeLayers>(bed, std::vector<HeaderDigest>{header});
      prefetch::SchedulerOptions options;
      options.strict = true;
      const uint64_t own = view == LayerView::kShards ? 0 : model->archive(1)->size();
      options.budget_bytes = kFile + own - (fits ? 0 : 1);
      prefetch::LayerReadAhead ahead{options, bed.cache(), bed.store()};
      ahead.on_layer(model, view, 0, false);
      if (fits) {
        EXPECT_TRUE(bed.until([&] { return ahead.stats().fetches == 1; }));
        EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), kFile);
      } else {
        EXPECT_TRUE(bed.until([&] { return ahead.stats().total_requests == 1; }));
      }
      ahead.stop();  // what was posted before has run
      if (!fits) {
        EXPECT_EQ(bed.origin().bytes_asked("model.safetensors"), 0u);
      }
      bed->stop();
    }
  }
}

TEST_F(PrefetchReadAhead, StopEndsWhatIsOnItsWay) {
  bed.origin().hold();
  reach(LayerView::kTorch, 0);
  const auto reads = bed.origin().reads(1);
  ahead.stop();
  EXPECT_TRUE(bed.until([&] { return reads[0]->cancelled(); }));
  bed.origin().release();
}

TEST_F(PrefetchReadAhead, TheOrderOfAWalkOutlivesTheMount) {
  for (const int layer : {5, 0, 7, 2, 6, 1, 4, 3}) reach(LayerView::kShards, layer);
  EXPECT_TRUE(bed.until([&] { return ahead.stats().total_requests == kLayers; }));
  ahead.stop();
  bed.restart();
  prefetch::LayerReadAhead again{{}, bed.cache(), bed.store()};
  bed->drop(bed.blob("model.safetensors"));
  bed.settle();
  again.on_layer(model, LayerView::kTorch, 5, false);
  const auto next = model->archive(0);
  EXPECT_TRUE(bed.until([&] { return next->resident(); }));
  again.stop();
  bed->stop();
}

TEST(PrefetchReadAheadConcurrent, ManyReadersMoveWhileLayersComeAndGo) {
  CacheUnderTest bed;
  bed.origin().put("model.safetensors", random_bytes(kLayers * kLayerBytes, 4));
  const auto model = std::make_shared<FakeLayers>(bed);
  {
    prefetch::LayerReadAhead ahead{{}, bed.cache(), bed.store()};
    std::vector<std::thread> readers;
    for (int reader = 0; reader < 4; ++reader) {
      readers.emplace_back([&, reader] {
        const LayerView view = reader % 2 ? LayerView::kShards : LayerView::kTorch;
        for (int step = 0; step < 3 * kLayers; ++step) {
          const int layer = reader < 2 ? step % kLayers : (step * 5 + reader) % kLayers;
          const auto pieces = model->layer_pieces(view, layer);
          ahead.on_layer(model, view, layer, pieces[0].object->resident());
          const std::string bytes = bed.read(pieces[0].object, pieces[0].range.offset, 1000);
          EXPECT_EQ(bytes.size(), 1000u);
          if (step % 7 == 3) bed->drop(pieces[0].object);
          (void)ahead.stats();
          (void)bed->stats();
        }
      });
    }
    for (auto& reader : readers) reader.join();
    ahead.stop();
    bed->stop();
  }
}

}  // namespace
}  // namespace nexus::test
