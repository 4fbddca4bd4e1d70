// Which files hold the tensors, and what an index and the headers say together.
#include <gtest/gtest.h>

#include <algorithm>

#include "backend/model/weights.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

Snapshot repo_of(std::vector<std::string> paths) {
  Snapshot snapshot;
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    OriginFile file;
    file.path = path;
    file.size = 1000;
    snapshot.files.push_back(std::move(file));
  }
  return snapshot;
}

std::vector<std::string> chosen(const std::vector<std::string>& paths) {
  const Snapshot snapshot = repo_of(paths);
  std::vector<std::string> names;
  for (const uint32_t file : choose_weight_files(snapshot).files) {
    names.push_back(snapshot.files[file].path);
  }
  return names;
}

using Paths = std::vector<std::string>;

TEST(ModelWeights, SafetensorsComeBeforeTorchCheckpoints) {
  EXPECT_EQ(chosen({"model.safetensors", "pytorch_model.bin"}), Paths{"model.safetensors"});
  EXPECT_EQ(chosen({"pytorch_model.bin", "tokenizer.bin"}), Paths{"pytorch_model.bin"});
  EXPECT_EQ(chosen({"config.json", "tokenizer.bin"}), Paths{});
}

TEST(ModelWeights, ShardsComeBeforeASingleFileBesideThem) {
  EXPECT_EQ(chosen({"model.safetensors", "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors"}),
            (Paths{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}));
}

TEST(ModelWeights, AdaptersAndConsolidatedCopiesAreNotTakenTwice) {
  EXPECT_EQ(chosen({"model.safetensors", "adapter_model.safetensors", "consolidated.safetensors"}),
            Paths{"model.safetensors"});
  EXPECT_EQ(chosen({"adapter_model.safetensors"}), Paths{});
}

TEST(ModelWeights, ADiffusersRepoIsItsLargestSubdirectory) {
  Snapshot snapshot = repo_of({"vae/diffusion_pytorch_model.safetensors",
                               "unet/diffusion_pytorch_model.safetensors", "model_index.json"});
  snapshot.files[1].size = 1 << 20;  // unet/
  const WeightFiles files = choose_weight_files(snapshot);
  EXPECT_EQ(files.files, std::vector<uint32_t>{1});
}

TEST(ModelWeights, PreSplitLayersAreNoWeightFiles) {
  Snapshot snapshot = repo_of({"model.safetensors"});
  snapshot.pre_split = true;
  EXPECT_EQ(choose_weight_files(snapshot).kind, WeightKind::kNone);
}

class Gathering : public ::testing::Test {
 protected:
  const Snapshot snapshot =
      repo_of({"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"});
  const WeightFiles files = choose_weight_files(snapshot);
  std::map<uint32_t, WeightHeader> headers{{0, {{tensor_at("m.layers.0.a", 0, 0, 4)}, ""}},
                                           {1, {{tensor_at("m.layers.1.a", 0, 0, 4)}, ""}}};
  std::map<std::string, std::string> index{{"m.layers.0.a", "model-00001-of-00002.safetensors"},
                                           {"m.layers.1.a", "model-00002-of-00002.safetensors"}};

  ModelTensors gather(bool with_index = true) {
    return gather_tensors(snapshot, files, headers, with_index ? &index : nullptr, "");
  }
  static std::string missing(const ModelTensors& model, const std::string& name) {
    for (size_t i = 0; i < model.tensors.size(); ++i) {
      if (model.tensors[i].name == name) return model.missing[i];
    }
    return "no such tensor";
  }
};

TEST_F(Gathering, EveryTensorGetsTheFileOfItsHeader) {
  const auto model = gather();
  ASSERT_EQ(model.tensors.size(), 2u);
  EXPECT_EQ(model.tensors[1].file, 1u);
  EXPECT_EQ(model.assignment.layers.size(), 2u);
  EXPECT_TRUE(model.complaints.empty());
}

TEST_F(Gathering, AnIndexThatNamesAnAbsentFileSpoilsItsTensorsOnly) {
  index["m.layers.1.b"] = "model-00003-of-00003.safetensors";
  const auto model = gather();
  EXPECT_NE(missing(model, "m.layers.1.b").find("not in the repo"), std::string::npos);
  EXPECT_EQ(missing(model, "m.layers.0.a"), "");
  EXPECT_EQ(model.complaints.size(), 1u);
}

TEST_F(Gathering, AnIndexThatNamesAnAbsentTensorSaysSo) {
  index["m.layers.0.b"] = "model-00001-of-00002.safetensors";
  EXPECT_NE(missing(gather(), "m.layers.0.b").find("does not hold it"), std::string::npos);
}

TEST_F(Gathering, TheIndexDecidesBetweenTwoFilesWithOneTensor) {
  headers[0].tensors.push_back(tensor_at("m.layers.1.a", 0, 4, 4));
  const auto model = gather();
  ASSERT_EQ(model.tensors.size(), 2u);
  EXPECT_EQ(model.tensors[1].file, 1u);
}

TEST_F(Gathering, WithoutAnIndexTheFirstFileWinsAndTheSecondIsComplainedOf) {
  headers[0].tensors.push_back(tensor_at("m.layers.1.a", 0, 4, 4));
  const auto model = gather(false);
  ASSERT_EQ(model.tensors.size(), 2u);
  EXPECT_EQ(model.tensors[1].file, 0u);
  EXPECT_EQ(model.complaints.size(), 1u);
}

TEST_F(Gathering, ABadHeaderSpoilsWhatTheIndexPutsInItsFile) {
  headers[1] = {{}, "not JSON"};
  const auto model = gather();
  EXPECT_NE(missing(model, "m.layers.1.a").find("not JSON"), std::string::npos);
  EXPECT_EQ(missing(model, "m.layers.0.a"), "");
  EXPECT_EQ(model.unknown, "");
}

TEST_F(Gathering, ABadHeaderWithoutAnIndexLeavesNoLayerKnownToBeWhole) {
  headers[1] = {{}, "not JSON"};
  EXPECT_NE(gather(false).unknown.find("not JSON"), std::string::npos);
}

}  // namespace
}  // namespace nexus::test
