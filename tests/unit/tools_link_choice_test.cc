// What a mount makes of a measured link.
#include <gtest/gtest.h>

#include "tools/common/link_choice.h"

namespace nexus::tools {
namespace {

constexpr const char* kOrigin = "http://127.0.0.1:8000";
constexpr uint64_t kMiB = 1 << 20;

Json measured(const Json& connections, const Json& range) {
  return {{"link",
           {{kOrigin,
             {{"measured_at", "2026-01-31T12:00:00Z"},
              {"best", {{"connections", connections}, {"range_bytes", range}}}}}}}};
}

TEST(ToolsLinkChoice, WhatWasMeasuredIsUsedForItsOriginAlone) {
  const Json machine = measured(16u, 16u * kMiB);
  const LinkChoice choice = choose_link(Config{}, machine, kOrigin);
  EXPECT_EQ(choice.shape.connections, 16);
  EXPECT_EQ(choice.shape.part_bytes, 16 * kMiB);
  EXPECT_EQ(choice.connections_from, "nexus-tune link");
  EXPECT_EQ(choice.part_bytes_from, "nexus-tune link");
  EXPECT_EQ(choice.measured_at, "2026-01-31T12:00:00Z");
  const LinkChoice other = choose_link(Config{}, machine, "http://127.0.0.1:9000");
  EXPECT_EQ(other.shape.connections, Config{}.max_connections);
  EXPECT_EQ(other.shape.part_bytes, 0u);
  EXPECT_EQ(other.connections_from, "default");
}

TEST(ToolsLinkChoice, TheConfigurationWins) {
  for (const char* text : {"max_connections = 3", "profile = \"network-constrained\""}) {
    Config config;
    ASSERT_TRUE(apply_toml(text, "test", "/root", config)) << text;
    const LinkChoice choice = choose_link(config, measured(16u, 16u * kMiB), kOrigin);
    EXPECT_EQ(choice.shape.connections, config.max_connections);
    EXPECT_EQ(choice.connections_from, "config");
    EXPECT_EQ(choice.shape.part_bytes, 16 * kMiB) << "which no key sets";
  }
}

TEST(ToolsLinkChoice, RangesAreBroughtWithinBounds) {
  EXPECT_EQ(choose_link(Config{}, measured(1u, 1u * kMiB), kOrigin).shape.part_bytes,
            kPartBytesLeast);
  EXPECT_EQ(choose_link(Config{}, measured(1u, UINT64_MAX), kOrigin).shape.part_bytes,
            kPartBytesMost);
}

TEST(ToolsLinkChoice, WhatMakesNoSenseIsNotUsed) {
  const Json bad[] = {
      Json(), Json(7), Json::object(), {{"link", 7}}, {{"link", {{kOrigin, nullptr}}}},
      {{"link", {{kOrigin, {{"best", nullptr}}}}}}, measured(0u, kMiB), measured(65u, kMiB),
      measured(-1, kMiB), measured("8", kMiB), measured(8u, 0u), measured(8u, -5), measured(8.5, 1u),
      measured(8u, nullptr)};
  for (const Json& machine : bad) {
    const LinkChoice choice = choose_link(Config{}, machine, kOrigin);
    EXPECT_EQ(choice.shape.connections, Config{}.max_connections) << machine.dump();
    EXPECT_EQ(choice.shape.part_bytes, 0u) << machine.dump();
    EXPECT_EQ(choice.connections_from, "default") << machine.dump();
  }
}

}  // namespace
}  // namespace nexus::tools
