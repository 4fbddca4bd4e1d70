#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "backend/format/object_layout.h"
#include "backend/format/safetensors.h"

namespace nexus {
namespace {

using ::testing::HasSubstr;

// The header `json` of a file that holds `data_bytes` of data.
Result<SafetensorsHeader> parse(const std::string& json, uint64_t data_bytes) {
  return parse_safetensors_header(json, 8 + json.size() + data_bytes);
}

std::string tensor(const std::string& dtype, const std::string& shape, uint64_t begin,
                   uint64_t end) {
  return R"({"dtype":")" + dtype + R"(","shape":[)" + shape + R"(],"data_offsets":[)" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

void expect_corrupt(const std::string& json, uint64_t data_bytes, const std::string& why) {
  const Result<SafetensorsHeader> header = parse(json, data_bytes);
  ASSERT_FALSE(header) << json.substr(0, 200);
  EXPECT_EQ(header.error().code, Code::kCorrupt);
  EXPECT_THAT(header.error().what, HasSubstr(why));
}

Result<uint64_t> length_of(uint64_t n, uint64_t file_size) {
  std::byte first8[8];
  for (int i = 0; i < 8; ++i) first8[i] = static_cast<std::byte>(n >> (8 * i));
  return safetensors_header_length(first8, file_size);
}

TEST(SafetensorsLength, ReadsLittleEndian) {
  EXPECT_EQ(length_of(2, 10), 2u);
  EXPECT_EQ(length_of(0x012345, 1'000'000), 0x012345u);
  EXPECT_EQ(length_of(100'000'000, 100'000'008), 100'000'000u);
}

TEST(SafetensorsLength, RejectsWhatCannotBe) {
  EXPECT_FALSE(length_of(0, 100));
  EXPECT_FALSE(length_of(1, 100));
  EXPECT_FALSE(length_of(3, 10)) << "past the end";
  EXPECT_FALSE(length_of(100'000'001, 1'000'000'000)) << "over 100 MB";
  EXPECT_FALSE(length_of(UINT64_MAX, UINT64_MAX));
  EXPECT_FALSE(length_of(UINT64_MAX - 7, 100)) << "8 + N overflows";
  EXPECT_FALSE(safetensors_header_length({}, 100));
  EXPECT_FALSE(length_of(2, 5)) << "file shorter than the length field";
}

TEST(SafetensorsHeader, GivesTensorsInFileOrderWithAbsoluteOffsets) {
  const std::string json = R"({"b":)" + tensor("BF16", "2,3", 4, 16) + R"(,"a":)" +
                           tensor("F32", "1", 0, 4) + R"(,"__metadata__":{"format":"pt"}})";
  const Result<SafetensorsHeader> header = parse(json, 16);
  ASSERT_TRUE(header) << header.error().what;
  EXPECT_EQ(header->data_begin, 8 + json.size());
  EXPECT_EQ(header->metadata.at("format"), "pt");
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->tensors[0].name, "a");
  EXPECT_EQ(header->tensors[0].begin, header->data_begin);
  EXPECT_EQ(header->tensors[1].name, "b");
  EXPECT_EQ(header->tensors[1].dtype, Dtype::kBF16);
  EXPECT_EQ(header->tensors[1].shape, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(header->tensors[1].begin, header->data_begin + 4);
  EXPECT_EQ(header->tensors[1].end, header->data_begin + 16);
}

TEST(SafetensorsHeader, AcceptsEveryDtype) {
  for (const std::string name :
       {"BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ",
        "I16",  "U16", "F16", "BF16",    "I32",     "U32",     "F32",         "C64",
        "F64",  "I64", "U64", "F4",      "F6_E2M3", "F6_E3M2"}) {
    const std::optional<Dtype> dtype = dtype_from_name(name);
    ASSERT_TRUE(dtype) << name;
    EXPECT_EQ(dtype_name(*dtype), name);
    const uint64_t bytes = 4 * dtype_bits(*dtype) / 8;
    EXPECT_TRUE(parse("{\"t\":" + tensor(name, "4", 0, bytes) + "}", bytes)) << name;
  }
  EXPECT_FALSE(dtype_from_name("C128")) << "torch's, not safetensors'";
}

TEST(SafetensorsHeader, AcceptsWhatWritersProduce) {
  EXPECT_TRUE(parse("{}", 0));
  EXPECT_TRUE(parse("{}" + std::string(5000, ' '), 0)) << "padded so that data starts on a page";
  EXPECT_TRUE(parse(R"({"__metadata__":{}})", 0));
  EXPECT_TRUE(parse(R"({"s":)" + tensor("F32", "", 0, 4) + "}", 4)) << "scalar";
  EXPECT_TRUE(parse(R"({"s":)" + tensor("F32", "0,4", 0, 0) + "}", 0)) << "empty";
  EXPECT_TRUE(
      parse(R"({"o":)" + tensor("U8", "1", 0, 1) + R"(,"p":)" + tensor("BF16", "1", 1, 3) + "}", 3))
      << "odd offset";
  EXPECT_TRUE(parse(R"({"e":)" + tensor("F32", "0", 4, 4) + R"(,"a":)" + tensor("F32", "1", 0, 4) +
                        R"(,"f":)" + tensor("F32", "0", 4, 4) + "}",
                    4))
      << "empties at the end share an offset";
}

TEST(SafetensorsHeader, RejectsWhatIsNotJson) {
  expect_corrupt("", 0, "does not start with {");
  expect_corrupt(" {}", 0, "does not start with {");
  expect_corrupt("[]", 0, "does not start with {");
  expect_corrupt("{", 0, "not JSON");
  expect_corrupt("{}{}", 0, "not JSON");
  expect_corrupt("{}\n}", 0, "not JSON");
  expect_corrupt(std::string("{}\0garbage", 10), 0, "not JSON at byte 3");
  expect_corrupt("{\"a\xff\":1}", 0, "not JSON");
  expect_corrupt(R"({"a":{"dtype":"F32","shape":[1],"data_off)", 0, "not JSON");
  expect_corrupt("{/**/}", 0, "not JSON");
}

TEST(SafetensorsHeader, RejectsOtherStructure) {
  expect_corrupt(R"({"a":1})", 0, "unexpected a number");
  expect_corrupt(R"({"a":null})", 0, "tensor \"a\"");
  expect_corrupt(R"({"a":[]})", 0, "an array");
  expect_corrupt(R"({"a":{}})", 0, "no dtype");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1]}})", 0, "no data_offsets");
  expect_corrupt(R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1, "no shape");
  expect_corrupt(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1,
                 "occurs twice");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}}})", 1,
                 "unknown key");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "an array");
  expect_corrupt(R"({"__metadata__":{"a":{}}})", 0, "__metadata__");
  expect_corrupt(R"({"__metadata__":{"a":1}})", 0, "__metadata__");
  expect_corrupt(R"({"__metadata__":[]})", 0, "__metadata__");
  expect_corrupt(R"({"__metadata__":{},"__metadata__":{}})", 0, "twice");
  expect_corrupt("{" + std::string(R"("a":)") + std::string(100'000, '['), 0, "an array");
}

TEST(SafetensorsHeader, RejectsWrongDtypeAndShape) {
  expect_corrupt(R"({"a":)" + tensor("F33", "1", 0, 4) + "}", 4, "unknown dtype \"F33\"");
  expect_corrupt(R"({"a":)" + tensor("C128", "1", 0, 16) + "}", 16, "unknown dtype");
  expect_corrupt(R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,1]}})", 1, "a number");
  expect_corrupt(R"({"a":)" + tensor("F32", "2", 0, 4) + "}", 4, "8 bytes");
  expect_corrupt(R"({"a":)" + tensor("F32", "-1", 0, 4) + "}", 4, "a negative number");
  expect_corrupt(R"({"a":)" + tensor("F32", "1.0", 0, 4) + "}", 4, "a fraction");
  expect_corrupt(R"({"a":)" + tensor("F4", "3", 0, 1) + "}", 1, "whole number of bytes");
  expect_corrupt(R"({"a":)" + tensor("U8", "18446744073709551616", 0, 1) + "}", 1, "a fraction");
  expect_corrupt(R"({"a":)" + tensor("U8", "4294967296,4294967296", 0, 0) + "}", 0, "overflows");
  expect_corrupt(R"({"a":)" + tensor("F64", "2305843009213693952", 0, 0) + "}", 0, "overflows");
  std::string rank = "1";
  for (int i = 0; i < 64; ++i) rank += ",1";
  expect_corrupt(R"({"a":)" + tensor("U8", rank, 0, 1) + "}", 1, "64 dimensions");
}

TEST(SafetensorsHeader, RejectsOffsetsThatDoNotTileTheData) {
  const std::string a = R"({"a":)" + tensor("U8", "4", 0, 4);
  expect_corrupt(a + R"(,"b":)" + tensor("U8", "4", 6, 10) + "}", 10, "tensor \"b\": hole");
  expect_corrupt(a + R"(,"b":)" + tensor("U8", "4", 2, 6) + "}", 6, "tensor \"b\": overlaps");
  expect_corrupt(R"({"a":)" + tensor("U8", "4", 1, 5) + "}", 5, "hole");
  expect_corrupt(a + "}", 5, "tensors end at 4 of 5");
  expect_corrupt(a + "}", 3, "past the file's");
  expect_corrupt(R"({"a":)" + tensor("U8", "4", 4, 0) + "}", 4, "end before they begin");
  expect_corrupt(R"({"a":)" + tensor("U8", "18446744073709551615", 0, UINT64_MAX) + "}", 4,
                 "overflows");
  expect_corrupt(R"({"a":)" + tensor("U8", "1", UINT64_MAX - 1, UINT64_MAX) + "}", 4, "hole");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "not a pair");
  expect_corrupt(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}})", 1, "not a pair");
}

TEST(SafetensorsHeader, RejectsDuplicateNames) {
  expect_corrupt(R"({"a":)" + tensor("U8", "1", 0, 1) + R"(,"a":)" + tensor("U8", "1", 1, 2) + "}",
                 2, "tensor \"a\" occurs twice");
  expect_corrupt(
      R"({"a":)" + tensor("U8", "1", 0, 1) + R"(,"\u0061":)" + tensor("U8", "1", 1, 2) + "}", 2,
      "occurs twice");
}

TEST(SafetensorsHeader, KeepsMessagesShortAndOnOneLine) {
  const std::string name(1'000'000, 'x');
  const Result<SafetensorsHeader> header = parse(R"({"\n)" + name + R"(":1})", 0);
  ASSERT_FALSE(header);
  EXPECT_LT(header.error().what.size(), 300u);
  EXPECT_EQ(header.error().what.find('\n'), std::string::npos);
}

TEST(SafetensorsHeader, RejectsAHeaderLongerThanTheFile) {
  EXPECT_FALSE(parse_safetensors_header("{}", 9));
  EXPECT_FALSE(parse_safetensors_header("{}", 0));
}

TEST(SafetensorsHeader, ParsesAHundredThousandTensors) {
  std::string json = "{";
  for (uint64_t i = 0; i < 100'000; ++i) {
    json += (i ? ",\"" : "\"") + ("model.layers." + std::to_string(i)) +
            ".w\":" + tensor("BF16", "4,2", i * 16, i * 16 + 16);
  }
  json += "}";
  const Result<SafetensorsHeader> header = parse(json, 1'600'000);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->tensors.size(), 100'000u);
}

TEST(WeightIndex, GivesTheFileOfEachTensor) {
  const auto map = parse_weight_index(
      R"({"metadata":{"total_size":16.0,"x":[{"weight_map":{"z":1}},null,true,-1]},)"
      R"("weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"},"more":[[]]})");
  ASSERT_TRUE(map) << map.error().what;
  EXPECT_EQ(*map, (std::map<std::string, std::string>{{"a", "m-1.safetensors"},
                                                      {"b", "m-2.safetensors"}}));
  EXPECT_TRUE(parse_weight_index(R"({"weight_map":{}})"));
}

TEST(WeightIndex, RejectsAnyOtherShape) {
  for (const std::string bad :
       {"", "[]", "1", "null", "{}", R"({"weight_map":[]})", R"({"weight_map":null})",
        R"({"weight_map":"x"})", R"({"weight_map":{"a":1}})", R"({"weight_map":{"a":{}}})",
        R"({"weight_map":{"a":["x"]}})", R"({"weight_map":{"a":"x","a":"y"}})",
        R"({"weight_map":{},"weight_map":{}})", R"({"weight_map":{"a":"x"})", "<html>"}) {
    const auto map = parse_weight_index(bad);
    ASSERT_FALSE(map) << bad;
    EXPECT_EQ(map.error().code, Code::kCorrupt) << bad;
  }
}

}  // namespace
}  // namespace nexus
