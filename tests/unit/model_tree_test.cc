// The tree of a model: the origin's files, the views by name, and what bad headers spoil.
#include <gtest/gtest.h>

#include "backend/model/loaded_model.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

class ModelTree : public ::testing::Test {
 protected:
  ~ModelTree() override {
    bed.origin().release();
    bed->stop();
    pool.stop();
  }
  std::shared_ptr<LoadedModel> mount() {
    auto model = std::make_shared<LoadedModel>("org/m", bed.origin().source(), options, bed.cache(),
                                               bed.store(), pool);
    model->start();
    return model;
  }
  static void wait_for(LoadedModel& model) {
    Answer<int> ready;
    model.when_ready([done = ready.callback()] { done(0); });
    ready.get();
  }
  std::shared_ptr<LoadedModel> mount_and_wait() {
    auto model = mount();
    wait_for(*model);
    return model;
  }
  static std::string names(LoadedModel& model, const std::string& directory) {
    auto nodes = model.list(directory);
    if (!nodes) return "pending";
    std::string text;
    for (const ModelNode& node : *nodes) text += (text.empty() ? "" : " ") + node.path;
    return text;
  }
  static FindState state(LoadedModel& model, const std::string& path) {
    return model.find(path).state;
  }

  const std::string a0 = random_bytes(5000, 1), a1 = random_bytes(6000, 2), head = "head";
  const std::string shard = safetensors_file(
      {{"model.layers.0.a", a0}, {"model.layers.1.a", a1}, {"lm_head.weight", head}});
  ModelOptions options{.list_views = false, .header_bytes_max = 1'000'000, .retry_after = {}};
  CacheUnderTest bed;
  ThreadPool pool{"test-pool", 2};
};

TEST_F(ModelTree, ShowsTheOriginsFilesAndOneLayerFileEach) {
  bed.origin().put("model.safetensors", shard);
  bed.origin().put("config.json", "{}");
  bed.origin().put("onnx/model.onnx", "onnx");
  const auto model = mount_and_wait();
  EXPECT_EQ(names(*model, ""),
            "config.json layer_0.pt layer_1.pt model.safetensors non_layer.pt onnx");
  EXPECT_EQ(names(*model, "onnx"), "onnx/model.onnx");
  const ModelNode layer = model->find("layer_1.pt").node;
  EXPECT_EQ(layer.layer, 1);
  EXPECT_EQ(layer.tensors, 1u);
  const std::string zip = bed.read_all(layer.object);
  EXPECT_EQ(zip.size(), layer.size);
  EXPECT_EQ(check_zip(zip), 4);
  EXPECT_NE(zip.find(a1), std::string::npos);
}

TEST_F(ModelTree, ViewsResolveByNameAndAreListedOnlyWhenAskedFor) {
  bed.origin().put("model.safetensors", shard);
  const auto model = mount_and_wait();
  EXPECT_TRUE(model->find("layers").node.directory);
  EXPECT_NE(bed.read_all(model->find("layers/layer_0.safetensors").node.object).find(a0),
            std::string::npos);
  EXPECT_EQ(model->find("splitted_model/model.layers.1.safetensors").node.layer, 1);
  const FindResult done = model->find("splitted_model/lm_head.safetensors.done");
  EXPECT_EQ(done.state, FindState::kFound);
  EXPECT_EQ(done.node.size, 0u);
  EXPECT_EQ(names(*model, "layers"),
            "layers/layer_0.safetensors layers/layer_1.safetensors layers/non_layer.safetensors");
  options.list_views = true;
  EXPECT_NE(names(*mount_and_wait(), "").find("splitted_model"), std::string::npos);
}

TEST_F(ModelTree, WhatNothingOwnsIsAbsent) {
  bed.origin().put("model.safetensors", shard);
  const auto model = mount_and_wait();
  for (const char* path :
       {"layer_2.pt", "layer_00.pt", "layer_-1.pt", "layers/layer_2.safetensors",
        "layers/sub/layer_0.safetensors", "splitted_model/model.layers.1.mmap",
        "splitted_model/model.layers.7.safetensors", "splitted_model/x/lm_head.safetensors"}) {
    EXPECT_EQ(state(*model, path), FindState::kAbsent) << path;
  }
}

TEST_F(ModelTree, TheOriginsOwnFileWinsOverAView) {
  bed.origin().put("model.safetensors", shard);
  bed.origin().put("layer_0.pt", "the origin's");
  bed.origin().put("layers/layer_1.safetensors", "own");
  const auto model = mount_and_wait();
  EXPECT_EQ(bed.read_all(model->find("layer_0.pt").node.object), "the origin's");
  EXPECT_EQ(bed.read_all(model->find("layers/layer_1.safetensors").node.object), "own");
  EXPECT_EQ(names(*model, ""), "layer_0.pt layer_1.pt layers model.safetensors non_layer.pt");
}

TEST_F(ModelTree, WhileHeadersAreOnTheirWayOnlyPossibleViewsArePending) {
  bed.origin().put("model.safetensors", shard);
  bed.origin().put("config.json", "{}");
  bed.origin().hold();
  const auto model = mount();
  EXPECT_EQ(state(*model, "layer_0.pt"), FindState::kPending);
  EXPECT_EQ(state(*model, "splitted_model/lm_head.safetensors"), FindState::kPending);
  EXPECT_EQ(state(*model, "config.json"), FindState::kFound);
  for (const char* path : {"adapter_config.json", "layer_x.pt", "splitted_model/M.mmap"}) {
    EXPECT_EQ(state(*model, path), FindState::kAbsent) << path;
  }
  EXPECT_EQ(names(*model, ""), "pending");
  Answer<int> ready, cancelled;
  model->when_ready([done = ready.callback()] { done(0); });
  model->cancel_wait(model->when_ready([done = cancelled.callback()] { done(0); }));
  bed.origin().reads(1);
  bed.origin().release();
  ready.get();
  EXPECT_FALSE(cancelled.here());
  EXPECT_EQ(state(*model, "layer_0.pt"), FindState::kFound);
}

TEST_F(ModelTree, ABadHeaderIsThatFilesErrorAndTheOthersAreFine) {
  bed.origin().put("model-00001-of-00002.safetensors", shard);
  bed.origin().put("model-00002-of-00002.safetensors",
                   "\x10\0\0\0\0\0\0\0 not JSON at all"
                   "                    ");
  bed.origin().put("model.safetensors.index.json",
                   R"({"weight_map":{"model.layers.0.a":"model-00001-of-00002.safetensors",
                       "model.layers.1.a":"model-00001-of-00002.safetensors",
                       "model.layers.1.b":"model-00002-of-00002.safetensors",
                       "lm_head.weight":"model-00001-of-00002.safetensors"}})");
  const auto model = mount_and_wait();
  EXPECT_NE(model->find("model-00002-of-00002.safetensors").node.error, "");
  EXPECT_EQ(model->find("model-00001-of-00002.safetensors").node.error, "");
  EXPECT_EQ(model->find("layer_0.pt").node.error, "");
  EXPECT_NE(model->find("layer_1.pt").node.error.find("model-00002"), std::string::npos);
  EXPECT_NE(model->error(), "");
}

TEST_F(ModelTree, AHeaderThatCouldNotBeReadIsTriedAgainLater) {
  bed.origin().put("model.safetensors", shard);
  bed.origin().fail_reads_of("model.safetensors", Error{Code::kOffline, "no route"});
  const auto model = mount_and_wait();
  bed.origin().set_reachable(false);  // no new try while the breaker is open
  EXPECT_EQ(model->find("model.safetensors").node.error, "");
  bed.origin().fail_reads_of("model.safetensors", std::nullopt);
  bed.origin().set_reachable(true);
  pass_a_millisecond();
  EXPECT_EQ(state(*model, "layer_0.pt"), FindState::kPending);
  wait_for(*model);
  EXPECT_EQ(state(*model, "layer_0.pt"), FindState::kFound);
}

TEST_F(ModelTree, HeadersComeFromTheCatalogTheSecondTime) {
  bed.origin().put("model.safetensors", shard);
  mount_and_wait();
  bed.origin().forget_reads();
  mount_and_wait();
  EXPECT_TRUE(bed.origin().reads().empty());
}

TEST_F(ModelTree, ADamagedHeaderInTheCatalogIsReadAgain) {
  bed.origin().put("model.safetensors", shard);
  const auto file = bed.origin().file("model.safetensors");
  bed.store().save_header("org/m/" + file.etag + "/model.safetensors", "damaged bytes");
  const auto model = mount_and_wait();
  EXPECT_EQ(model->find("model.safetensors").node.error, "");
  EXPECT_EQ(state(*model, "layer_1.pt"), FindState::kFound);
}

TEST_F(ModelTree, HeadersOverTheModelsLimitAreAnErrorNotADownload) {
  bed.origin().put("model.safetensors", shard);
  options.header_bytes_max = 100;
  const auto model = mount_and_wait();
  EXPECT_NE(model->find("model.safetensors").node.error, "");
  EXPECT_TRUE(bed.origin().reads().empty());
}

}  // namespace
}  // namespace nexus::test
