#include <gtest/gtest.h>

#include <chrono>

#include "backend/format/layer_names.h"

namespace nexus {
namespace {

std::vector<TensorInfo> named(const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  for (const std::string& name : names) {
    tensors.emplace_back();
    tensors.back().name = name;
  }
  return tensors;
}

using Names = std::vector<std::string>;

Names names_at(const std::vector<TensorInfo>& tensors, const std::vector<uint32_t>& indices) {
  Names names;
  for (const uint32_t i : indices) names.push_back(tensors[i].name);
  return names;
}

// "stack#index", or "-" outside the layers.
std::string position(std::string_view name) {
  const std::optional<LayerPosition> found = layer_position(name);
  return found ? found->stack + "#" + std::to_string(found->index) : "-";
}

TEST(LayerPosition, KnowsEveryFamily) {
  EXPECT_EQ(position("model.layers.11.self_attn.q_proj.weight"), "model.layers#11");
  EXPECT_EQ(position("model.layers.3.block_sparse_moe.experts.7.w1.weight"), "model.layers#3");
  EXPECT_EQ(position("h.0.attn.c_attn.weight"), "h#0");
  EXPECT_EQ(position("transformer.h.47.ln_1.weight"), "transformer.h#47");
  EXPECT_EQ(position("encoder.layer.5.output.dense.weight"), "encoder.layer#5");
  EXPECT_EQ(position("bert.encoder.layer.0.attention.self.key.bias"), "bert.encoder.layer#0");
  EXPECT_EQ(position("vit.encoder.layer.2.intermediate.dense.bias"), "vit.encoder.layer#2");
  EXPECT_EQ(position("distilbert.transformer.layer.1.ffn.lin1.weight"),
            "distilbert.transformer.layer#1");
  EXPECT_EQ(position("gpt_neox.layers.9.attention.dense.weight"), "gpt_neox.layers#9");
  EXPECT_EQ(position("model.decoder.layers.4.fc1.weight"), "model.decoder.layers#4");
  EXPECT_EQ(position("decoder.layers.4.fc1.weight"), "decoder.layers#4");
  EXPECT_EQ(position("encoder.block.0.layer.1.DenseReluDense.wi.weight"), "encoder.block#0");
  EXPECT_EQ(position("decoder.block.11.layer.0.SelfAttention.q.weight"), "decoder.block#11");
  EXPECT_EQ(position("transformer.blocks.6.ffn.up_proj.weight"), "transformer.blocks#6");
  EXPECT_EQ(position("backbone.layers.63.mixer.A_log"), "backbone.layers#63");
  EXPECT_EQ(position("language_model.model.layers.2.mlp.gate_proj.weight"),
            "language_model.model.layers#2");
  EXPECT_EQ(position("model.language_model.layers.2.mlp.gate_proj.weight"),
            "model.language_model.layers#2");
  EXPECT_EQ(position("transformer_blocks.18.attn.to_q.weight"), "transformer_blocks#18");
  EXPECT_EQ(position("single_transformer_blocks.37.proj_out.weight"),
            "single_transformer_blocks#37");
  EXPECT_EQ(position("layers.layers.3.w"), "layers.layers#3");
  EXPECT_EQ(position("model.decoder_layer.1.w"), "model.decoder_layer#1");
  EXPECT_EQ(position("transformer_encoder.1.w"), "transformer_encoder#1");
}

TEST(LayerPosition, LeavesTheRestOutsideTheLayers) {
  for (const std::string_view name : {"model.embed_tokens.weight",
                                      "model.norm.weight",
                                      "lm_head.weight",
                                      "transformer.wte.weight",
                                      "ln_f.weight",
                                      "word_embeddings.weight",
                                      "embeddings.word_embeddings.weight",
                                      "pooler.dense.bias",
                                      "gpt_neox.embed_in.weight",
                                      "shared.weight",
                                      "encoder.final_layer_norm.weight",
                                      "transformer.norm_f.weight",
                                      "",
                                      ".",
                                      "..",
                                      "h",
                                      "h.",
                                      "h.0",
                                      "h..w",
                                      "layers.1x.w",
                                      "layers.x1.w",
                                      "xlayers.0.w",
                                      "layersx.0.w",
                                      "h.-1.w",
                                      "layers. 1.w",
                                      "model.layers",
                                      "layers.0"}) {
    EXPECT_EQ(position(name), "-") << name;
  }
}

TEST(LayerPosition, LeavesVisionAndAudioOutsideTheLayers) {
  EXPECT_EQ(position("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"), "-");
  EXPECT_EQ(position("model.visual.blocks.3.attn.qkv.weight"), "-");
  EXPECT_EQ(position("visual.blocks.3.attn.qkv.weight"), "-");
  EXPECT_EQ(position("audio_tower.layers.1.fc1.weight"), "-");
  EXPECT_EQ(position("model.embed_vision.layers.1.fc1.weight"), "-");
  EXPECT_EQ(position("supervisual.layers.1.fc1.weight"), "supervisual.layers#1");
  EXPECT_EQ(position("layers.1.vision.w"), "layers#1") << "only a prefix counts";
}

TEST(LayerPosition, TakesTheFirstMatchAndNoAbsurdIndex) {
  EXPECT_EQ(position("layers.2.layers.5.w"), "layers#2");
  EXPECT_EQ(position("layers.x.layers.5.w"), "layers.x.layers#5");
  EXPECT_EQ(position("layers.99999.w"), "layers#99999");
  EXPECT_EQ(position("layers.100000.w"), "-");
  EXPECT_EQ(position("layers.18446744073709551616.w"), "-");
  EXPECT_EQ(position("layers.000000007.w"), "layers#7");
  EXPECT_EQ(position("layers.00000000.w"), "layers#0");
}

TEST(AssignLayers, NumbersOneStackDenselyInIndexOrder) {
  const auto tensors = named({"model.layers.10.b", "model.layers.2.z", "model.norm.weight",
                              "model.layers.2.a", "model.embed_tokens.weight", "model.layers.0.a"});
  const LayerAssignment assignment = assign_layers(tensors);
  ASSERT_EQ(assignment.layers.size(), 3u);
  EXPECT_EQ(names_at(tensors, assignment.layers[0].tensors), (Names{"model.layers.0.a"}));
  EXPECT_EQ(names_at(tensors, assignment.layers[1].tensors),
            (Names{"model.layers.2.a", "model.layers.2.z"}));
  EXPECT_EQ(assignment.layers[1].index, 2u);
  EXPECT_EQ(assignment.layers[1].stack, "model.layers");
  EXPECT_EQ(assignment.layers[2].index, 10u);
  EXPECT_EQ(names_at(tensors, assignment.non_layer),
            (Names{"model.embed_tokens.weight", "model.norm.weight"}));
}

TEST(AssignLayers, PutsEncoderBeforeDecoderAndTheRestByName) {
  const auto t5 = named({"decoder.block.0.w", "encoder.block.1.w", "encoder.block.0.w",
                         "shared.weight", "decoder.block.1.w"});
  const LayerAssignment assignment = assign_layers(t5);
  ASSERT_EQ(assignment.layers.size(), 4u);
  EXPECT_EQ(assignment.layers[0].stack, "encoder.block");
  EXPECT_EQ(assignment.layers[1].index, 1u);
  EXPECT_EQ(assignment.layers[2].stack, "decoder.block");
  EXPECT_EQ(assignment.layers[2].index, 0u);

  const auto flux = named({"transformer_blocks.0.w", "single_transformer_blocks.0.w"});
  EXPECT_EQ(assign_layers(flux).layers[0].stack, "single_transformer_blocks");
}

TEST(AssignLayers, TakesNothing) {
  EXPECT_TRUE(assign_layers({}).layers.empty());
  EXPECT_TRUE(assign_layers({}).non_layer.empty());
}

TEST(AssignLayers, IsQuickForAHundredThousandTensors) {
  Names names;
  for (int i = 0; i < 100'000; ++i) {
    names.push_back("model.layers." + std::to_string(i % 60) + ".mlp.experts." +
                    std::to_string(i / 60) + ".down_proj.weight");
  }
  const auto tensors = named(names);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(assign_layers(tensors).layers.size(), 60u);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(TensorsOfPrefix, OwnsWhatIsBelowTheDot) {
  const auto tensors = named({"model.layers.10.w", "model.layers.1.z", "model.layers.1.a",
                              "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"});
  const auto owned = [&tensors](std::string_view prefix) {
    return names_at(tensors, tensors_of_prefix(tensors, prefix));
  };
  EXPECT_EQ(owned("model.layers.1"), (Names{"model.layers.1.a", "model.layers.1.z"}));
  EXPECT_EQ(owned("lm_head"), (Names{"lm_head.weight"}));
  EXPECT_EQ(owned("model.norm"), (Names{"model.norm.weight"}));
  EXPECT_EQ(owned("model.embed_tokens"), (Names{"model.embed_tokens.weight"}));
  EXPECT_EQ(owned("model").size(), 5u);
  EXPECT_TRUE(owned("").empty());
  EXPECT_TRUE(owned("model.").empty());
  EXPECT_TRUE(owned("model.layers.2").empty());
  EXPECT_TRUE(owned("lm_head.weight").empty()) << "a tensor is not a prefix";
}

}  // namespace
}  // namespace nexus
