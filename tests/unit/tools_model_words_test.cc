#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tools/common/model_words.h"

namespace nexus::tools {
namespace {

using testing::ElementsAre;

TEST(ToolsModelWords, LayersAreNumbersRangesAndNames) {
  EXPECT_EQ(file_of_layer("3"), "layer_3.pt");
  EXPECT_EQ(file_of_layer("non_layer"), "non_layer.pt");
  EXPECT_EQ(file_of_layer("layers/layer_0.safetensors"), "layers/layer_0.safetensors");
  EXPECT_EQ(file_of_layer("-1"), "-1");
  EXPECT_THAT(files_of_layers("0-2,7,non_layer,1").value(),
              ElementsAre("layer_0.pt", "layer_1.pt", "layer_2.pt", "layer_7.pt", "non_layer.pt"));
  EXPECT_THAT(files_of_layers("model-00001.safetensors").value(),
              ElementsAre("model-00001.safetensors"));
  for (const char* wrong : {"", "3-1", "1,,2", "1-", "2-x", "0-99999999999"}) {
    EXPECT_FALSE(files_of_layers(wrong)) << wrong;
  }
}

TEST(ToolsModelWords, AModelMayBeNamedWithoutItsOrganisation) {
  const std::vector<std::string> known = {"one/twin", "two/twin", "org/m", "gpt2", "org/m"};
  EXPECT_EQ(complete_model_name("m", known).value(), "org/m");
  EXPECT_EQ(complete_model_name("gpt2", known).value(), "gpt2");
  EXPECT_EQ(complete_model_name("new/m", known).value(), "new/m");
  EXPECT_EQ(complete_model_name("unknown", known).value(), "unknown");
  EXPECT_EQ(complete_model_name("twin", known).error().what,
            "'twin' may be any of one/twin, two/twin");
}

}  // namespace
}  // namespace nexus::tools
