// The layer files: layouts are checked as bytes, then read back by the repo's own parsers. Real
// torch and safetensors read them in tests/clients.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>

#include "backend/format/little_endian.h"
#include "backend/format/object_layout.h"
#include "backend/format/safetensors.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kGiB = uint64_t{1} << 30;

TensorInfo dense(const std::string& name, Dtype dtype, std::vector<uint64_t> shape,
                 uint64_t begin) {
  TensorInfo tensor;
  tensor.name = name;
  tensor.dtype = dtype;
  tensor.shape = std::move(shape);
  tensor.begin = begin;
  tensor.end = begin + dense_bytes(dtype, tensor.shape).value();
  return tensor;
}

void expect_invariants(const ObjectLayout& layout) {
  std::vector<std::pair<uint64_t, uint64_t>> pieces;
  for (const Literal& literal : layout.literals) {
    pieces.emplace_back(literal.dest, literal.dest + literal.bytes.size());
  }
  EXPECT_TRUE(std::is_sorted(pieces.begin(), pieces.end()));
  EXPECT_TRUE(std::is_sorted(layout.extents.begin(), layout.extents.end(),
                             [](const Extent& a, const Extent& b) { return a.dest < b.dest; }));
  for (const Extent& extent : layout.extents) {
    EXPECT_GT(extent.length, 0u);
    pieces.emplace_back(extent.dest, extent.dest + extent.length);
  }
  std::sort(pieces.begin(), pieces.end());
  uint64_t at = 0;
  for (const auto& [begin, end] : pieces) {
    EXPECT_GE(begin, at) << "overlap";
    at = end;
  }
  EXPECT_LE(at, layout.size);
}

// The object over `origin`, as the cache would fill it.
std::string fill(const ObjectLayout& layout, std::string_view origin) {
  std::string bytes(layout.size, '\0');
  for (const Literal& literal : layout.literals) {
    bytes.replace(literal.dest, literal.bytes.size(), literal.bytes);
  }
  for (const Extent& extent : layout.extents) {
    bytes.replace(extent.dest, extent.length, origin.substr(extent.src, extent.length));
  }
  for (const CrcRecord& record : layout.crc_records) {
    std::string crc;
    put_le(
        crc,
        crc32_z(0, reinterpret_cast<const Bytef*>(&bytes[record.begin]), record.end - record.begin),
        4);
    for (const uint64_t at : record.crc_at) bytes.replace(at, 4, crc);
  }
  return bytes;
}

std::string counting_bytes(size_t size) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>(i * 7 + i / 256);
  return bytes;
}

struct Parsed {
  TorchArchive archive;
  std::vector<TensorInfo> tensors;
};

Parsed parse(const std::string& zip) {
  const auto bytes = std::as_bytes(std::span(zip));
  const auto where =
      find_zip_directory(bytes.last(std::min<size_t>(bytes.size(), kZipTailBytes)), bytes.size());
  EXPECT_TRUE(where) << where.error().what;
  auto archive =
      parse_torch_archive(bytes.subspan(where->offset, where->length), *where, bytes.size());
  EXPECT_TRUE(archive) << archive.error().what;
  auto tensors = read_torch_pickle(
      std::string_view(zip).substr(archive->pickle.offset, archive->pickle.length), *archive);
  EXPECT_TRUE(tensors) << tensors.error().what;
  return {std::move(*archive), std::move(*tensors)};
}

void expect_same(const std::string& a, const TensorInfo& in_a, const std::string& b,
                 const TensorInfo& in_b) {
  EXPECT_EQ(in_a.name, in_b.name);
  EXPECT_EQ(in_a.dtype, in_b.dtype);
  EXPECT_EQ(in_a.shape, in_b.shape);
  EXPECT_EQ(in_a.stride, in_b.stride);
  EXPECT_EQ(in_a.storage_offset, in_b.storage_offset);
  EXPECT_EQ(a.substr(in_a.begin, in_a.end - in_a.begin),
            b.substr(in_b.begin, in_b.end - in_b.begin));
}

std::vector<TensorInfo> one_of_every_dtype() {
  std::vector<TensorInfo> tensors;
  uint64_t at = 3;
  for (int i = 0; i <= static_cast<int>(Dtype::kC128); ++i) {
    const auto dtype = static_cast<Dtype>(i);
    if (dtype == Dtype::kF6E2M3 || dtype == Dtype::kF6E3M2) continue;
    tensors.push_back(dense("t." + std::to_string(i), dtype, {3, 4}, at));
    at = tensors.back().end;
  }
  return tensors;
}

TEST(TorchLayer, ReadsBackWithEveryDtypeThatTorchHas) {
  const std::string origin = counting_bytes(4096);
  const std::vector<TensorInfo> tensors = one_of_every_dtype();
  const auto layout = torch_layer_layout("layer_7", tensors);
  ASSERT_TRUE(layout) << layout.error().what;
  expect_invariants(*layout);
  const std::string zip = fill(*layout, origin);
  const Parsed parsed = parse(zip);
  EXPECT_EQ(parsed.archive.folder, "layer_7");
  ASSERT_EQ(parsed.tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i)
    expect_same(zip, parsed.tensors[i], origin, tensors[i]);
}

TEST(TorchLayer, StartsAsAZipAlignsRecordsAndOmitsFormatVersion) {
  const std::vector<TensorInfo> tensors = one_of_every_dtype();
  const auto layout = torch_layer_layout("layer_7", tensors);
  ASSERT_TRUE(layout);
  EXPECT_TRUE(layout->literals[0].bytes.starts_with("PK\x03\x04"));
  EXPECT_EQ(layout->crc_records.size(), tensors.size());
  for (const Extent& extent : layout->extents) EXPECT_EQ(extent.dest % 4096, 0u);
  for (const Literal& literal : layout->literals) {
    EXPECT_EQ(literal.bytes.find(".format_version"), std::string::npos);
    EXPECT_EQ(literal.bytes.find(".storage_alignment"), std::string::npos);
  }
}

TEST(TorchLayer, MarksBothPlacesOfEachCrc) {
  const std::string origin = counting_bytes(64);
  const auto layout = torch_layer_layout("a", std::vector{dense("w", Dtype::kU8, {64}, 0)});
  ASSERT_TRUE(layout);
  ASSERT_EQ(layout->crc_records.size(), 1u);
  const CrcRecord& record = layout->crc_records[0];
  const std::string zip = fill(*layout, origin);
  EXPECT_EQ(zip.substr(record.begin, record.end - record.begin), origin);
  EXPECT_EQ(zip.substr(record.crc_at[0] - 14, 4), "PK\x03\x04");
  EXPECT_EQ(zip.substr(record.crc_at[1] - 16, 4), "PK\x01\x02");
}

TEST(TorchLayer, TiedTensorsShareAStorage) {
  std::vector<TensorInfo> tensors = {
      dense("embed", Dtype::kF32, {4, 2}, 0), dense("head", Dtype::kF32, {4, 2}, 0),
      dense("other_file", Dtype::kF32, {4, 2}, 0), dense("other_type", Dtype::kI32, {4, 2}, 0)};
  tensors[2].file = 1;
  const auto layout = torch_layer_layout("a", tensors);
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->extents.size(), 3u) << "a torch storage has one dtype and one origin";
  const Parsed parsed = parse(fill(*layout, counting_bytes(32)));
  EXPECT_EQ(parsed.tensors[0].begin, parsed.tensors[1].begin);
}

TEST(TorchLayer, HoldsEmptyTensorsScalarsAndNothing) {
  const std::vector<TensorInfo> tensors = {
      dense("empty", Dtype::kF32, {0, 5}, 8), dense("empty8", Dtype::kF8E4M3, {0}, 8),
      dense("scalar", Dtype::kI64, {}, 0), dense("rank5", Dtype::kU8, {1, 2, 1, 2, 2}, 0)};
  const auto layout = torch_layer_layout("a", tensors);
  ASSERT_TRUE(layout);
  expect_invariants(*layout);
  EXPECT_EQ(layout->extents.size(), 2u);
  const std::string origin = counting_bytes(8);
  const std::string zip = fill(*layout, origin);
  const Parsed parsed = parse(zip);
  for (size_t i = 0; i < tensors.size(); ++i)
    expect_same(zip, parsed.tensors[i], origin, tensors[i]);
  EXPECT_EQ(parsed.archive.records.size(), 3u + 4u) << "each empty storage has its record";

  const auto nothing = torch_layer_layout("a", {});
  ASSERT_TRUE(nothing);
  EXPECT_TRUE(parse(fill(*nothing, "")).tensors.empty());
}

TEST(TorchLayer, KeepsStridedViewsOverTheirWholeStorage) {
  TensorInfo transposed = dense("t", Dtype::kF32, {3, 4}, 0);
  transposed.stride = {1, 3};
  TensorInfo column = transposed;
  column.name = "column";
  column.shape = {4};
  column.stride = {3};
  column.storage_offset = 2;
  TensorInfo expanded = transposed;
  expanded.name = "expanded";
  expanded.shape = {1000, 12};
  expanded.stride = {0, 1};
  const std::vector tensors = {transposed, column, expanded};
  const auto layout = torch_layer_layout("a", tensors);
  ASSERT_TRUE(layout) << layout.error().what;
  EXPECT_EQ(layout->extents.size(), 1u);
  const std::string origin = counting_bytes(48);
  const std::string zip = fill(*layout, origin);
  const Parsed parsed = parse(zip);
  for (size_t i = 0; i < tensors.size(); ++i)
    expect_same(zip, parsed.tensors[i], origin, tensors[i]);
}

TEST(TorchLayer, UsesZip64BeyondFourGiB) {
  const std::vector<TensorInfo> tensors = {
      dense("small", Dtype::kU8, {16}, 0), dense("huge", Dtype::kBF16, {5 * kGiB / 2}, 16),
      dense("edge", Dtype::kU8, {0xFFFF'FFFF}, 0), dense("last", Dtype::kF32, {4}, 16)};
  const auto layout = torch_layer_layout("a", tensors);
  ASSERT_TRUE(layout);
  expect_invariants(*layout);
  EXPECT_GT(layout->size, 9 * kGiB);
  // Directory and end records are the last literal.
  const Literal& tail = layout->literals.back();
  const size_t directory = tail.bytes.find("PK\x01\x02");
  ASSERT_NE(directory, std::string::npos);
  const std::string_view ending = std::string_view(tail.bytes).substr(directory);
  // As the last bytes of the file: zeros stand for the tensor data before them.
  std::string last(kZipTailBytes - ending.size(), '\0');
  last += ending;
  const auto where = find_zip_directory(std::as_bytes(std::span(last)), layout->size);
  ASSERT_TRUE(where) << where.error().what;
  EXPECT_EQ(where->offset, tail.dest + directory);
  const auto archive = parse_torch_archive(
      std::as_bytes(std::span(ending.substr(0, where->length))), *where, layout->size);
  ASSERT_TRUE(archive) << archive.error().what;
  ASSERT_EQ(archive->records.size(), 3u + tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ZipRecord& record = archive->records[3 + i];
    EXPECT_EQ(record.size, tensors[i].end - tensors[i].begin);
    EXPECT_EQ(record.data_begin, layout->extents[i].dest);
    EXPECT_EQ(record.data_begin % 4096, 0u);
    EXPECT_EQ(layout->crc_records[i].crc_at[0], record.local_header + 14);
  }
}

TEST(TorchLayer, UsesZip64BeyondSixtyFiveThousandRecords) {
  std::vector<TensorInfo> tensors;
  for (uint64_t i = 0; i < 66'000; ++i) {
    tensors.push_back(dense("t" + std::to_string(i), Dtype::kU8, {1}, i));
  }
  const auto layout = torch_layer_layout("a", tensors);
  ASSERT_TRUE(layout);
  EXPECT_THAT(layout->literals.back().bytes, HasSubstr("PK\x06\x06"));
}

TEST(TorchLayer, RefusesWhatTorchCannotHold) {
  const auto code_of = [](const std::string& archive, std::vector<TensorInfo> tensors) {
    const auto layout = torch_layer_layout(archive, tensors);
    EXPECT_FALSE(layout);
    return layout ? Code::kNotFound : layout.error().code;
  };
  const TensorInfo good = dense("w", Dtype::kF32, {2}, 0);
  EXPECT_EQ(code_of("a", {dense("w", Dtype::kF6E2M3, {4}, 0)}), Code::kUnsupported);
  EXPECT_EQ(code_of("a", {dense("w", Dtype::kF6E3M2, {4}, 0)}), Code::kUnsupported);
  EXPECT_EQ(code_of("a", {dense("w", Dtype::kF4, {2, 1}, 0)}), Code::kUnsupported);
  EXPECT_EQ(code_of("a", {dense("w", Dtype::kF32, {UINT64_MAX, 0}, 0)}), Code::kUnsupported);
  EXPECT_EQ(code_of("", {good}), Code::kInvalid);
  EXPECT_EQ(code_of("a/b", {good}), Code::kInvalid);
  EXPECT_EQ(code_of("a", {good, good}), Code::kInvalid) << "duplicate name";
  TensorInfo bad = good;
  bad.end += 4;
  EXPECT_EQ(code_of("a", {bad}), Code::kInvalid);
  bad = good;
  bad.stride = {2};
  EXPECT_EQ(code_of("a", {bad}), Code::kInvalid) << "reaches past its storage";
  bad.stride = {UINT64_MAX};
  EXPECT_EQ(code_of("a", {bad}), Code::kInvalid);
  bad = good;
  bad.name = "\xff";
  EXPECT_EQ(code_of("a", {bad}), Code::kInvalid);
}

SafetensorsHeader parse_safetensors(const std::string& file) {
  const auto bytes = std::as_bytes(std::span(file));
  const auto length = safetensors_header_length(bytes.first(8), file.size());
  EXPECT_TRUE(length);
  auto header = parse_safetensors_header(std::string_view(file).substr(8, *length), file.size());
  EXPECT_TRUE(header) << header.error().what;
  return std::move(*header);
}

TEST(SafetensorsLayer, ReadsBackInTheOrderOfWritersFromAPageOn) {
  const std::string origin = counting_bytes(4096);
  std::vector<TensorInfo> tensors = one_of_every_dtype();
  tensors.pop_back();  // kC128
  tensors.push_back(dense("a \"quoted\"\\\n\x01 \xC3\xA9", Dtype::kBF16, {2}, 0));
  tensors.push_back(dense("none", Dtype::kF32, {0}, 0));
  tensors.push_back(dense("six", Dtype::kF6E3M2, {4}, 0));
  const auto layout = safetensors_layer_layout(tensors);
  ASSERT_TRUE(layout) << layout.error().what;
  expect_invariants(*layout);
  EXPECT_TRUE(layout->crc_records.empty());
  const std::string file = fill(*layout, origin);
  const SafetensorsHeader header = parse_safetensors(file);
  EXPECT_EQ(header.data_begin % 4096, 0u);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  ASSERT_EQ(header.tensors.size(), tensors.size());
  for (const TensorInfo& tensor : header.tensors) {
    const auto wanted = std::find_if(tensors.begin(), tensors.end(), [&tensor](const auto& other) {
      return other.name == tensor.name;
    });
    ASSERT_NE(wanted, tensors.end());
    expect_same(file, tensor, origin, *wanted);
  }
  EXPECT_TRUE(
      std::is_sorted(header.tensors.begin(), header.tensors.end(),
                     [](const TensorInfo& a, const TensorInfo& b) { return a.dtype > b.dtype; }));
}

TEST(SafetensorsLayer, JoinsNeighboursIntoOneExtent) {
  std::vector<TensorInfo> tensors = {
      dense("b", Dtype::kBF16, {8}, 116), dense("a", Dtype::kBF16, {8}, 100),
      dense("c", Dtype::kBF16, {8}, 200), dense("d", Dtype::kBF16, {8}, 216)};
  tensors[3].file = 1;
  const auto layout = safetensors_layer_layout(tensors);
  ASSERT_TRUE(layout);
  ASSERT_EQ(layout->extents.size(), 3u);
  EXPECT_EQ(layout->extents[0].src, 100u);
  EXPECT_EQ(layout->extents[0].length, 32u);
  EXPECT_EQ(layout->extents[2].file, 1u);
}

TEST(SafetensorsLayer, HoldsNothingAndMoreThanFourGiB) {
  const auto nothing = safetensors_layer_layout({});
  ASSERT_TRUE(nothing);
  EXPECT_EQ(nothing->size, 4096u);
  EXPECT_TRUE(parse_safetensors(fill(*nothing, "")).tensors.empty());
  const auto huge = safetensors_layer_layout(std::vector{dense("w", Dtype::kF32, {3 * kGiB}, 8)});
  ASSERT_TRUE(huge);
  EXPECT_EQ(huge->size, 4096 + 12 * kGiB);
}

TEST(SafetensorsLayer, RefusesWhatSafetensorsCannotHold) {
  const auto code_of = [](std::vector<TensorInfo> tensors) {
    const auto layout = safetensors_layer_layout(tensors);
    EXPECT_FALSE(layout);
    return layout ? Code::kNotFound : layout.error().code;
  };
  const TensorInfo good = dense("w", Dtype::kF32, {2, 2}, 0);
  TensorInfo strided = good;
  strided.stride = {1, 2};
  EXPECT_EQ(code_of({strided}), Code::kUnsupported);
  EXPECT_EQ(code_of({dense("w", Dtype::kC128, {1}, 0)}), Code::kUnsupported);
  EXPECT_EQ(code_of({good, good}), Code::kInvalid);
  TensorInfo bad = good;
  bad.end = 4;
  EXPECT_EQ(code_of({bad}), Code::kInvalid);
}

TEST(WholeFile, IsOneExtent) {
  const ObjectLayout layout = whole_file_layout(3, 100);
  EXPECT_EQ(layout.size, 100u);
  ASSERT_EQ(layout.extents.size(), 1u);
  EXPECT_EQ(layout.extents[0].file, 3u);
  EXPECT_EQ(layout.extents[0].length, 100u);
  EXPECT_TRUE(whole_file_layout(3, 0).extents.empty());
}

}  // namespace
}  // namespace nexus
