// Layer files made at once from bytes that are here, and read back.
#include <gtest/gtest.h>

#include <cstring>

#include "backend/format/layout_image.h"
#include "backend/format/torch_file.h"
#include "tests/unit/fake_origin.h"

namespace nexus::test {
namespace {

RangeOfFile ranges_of(const std::string& file) {
  return [file](ByteRange range) -> Result<std::string> {
    EXPECT_LE(range.end(), file.size());
    return file.substr(range.offset, range.length);
  };
}

struct Made {
  std::vector<TensorInfo> tensors;
  std::vector<std::string> bytes;  // of each
  std::string file;
};

Made make(const std::vector<uint64_t>& sizes) {
  Made made;
  for (size_t i = 0; i < sizes.size(); ++i) {
    made.bytes.push_back(random_bytes(sizes[i], i + 1));
    made.tensors.push_back(
        tensor_at("t" + std::to_string(i), static_cast<uint32_t>(i), 0, sizes[i]));
  }
  auto layout = torch_layer_layout("layer_0", made.tensors);
  EXPECT_TRUE(layout);
  auto image = LayoutImage::make(
      *layout, [&made](uint32_t file, uint64_t at, std::span<std::byte> into) -> Result<void> {
        std::memcpy(into.data(), made.bytes[file].data() + at, into.size());
        return {};
      });
  EXPECT_TRUE(image);
  made.file.resize(image->size());
  // In pieces of odd sizes, over every border.
  for (uint64_t at = 0; at < image->size();) {
    const uint64_t step = std::min<uint64_t>(image->size() - at, 1 + at % 70'001);
    EXPECT_TRUE(image->read(at, std::as_writable_bytes(std::span(made.file)).subspan(at, step)));
    at += step;
  }
  EXPECT_FALSE(image->read(image->size(), std::as_writable_bytes(std::span(made.file).first(1))));
  return made;
}

TEST(FormatImage, IsAZipWithTrueChecksumsThatReadsBack) {
  const Made made = make({3 * kMiB + 5, 1, 0, 4096, 100'000});
  EXPECT_EQ(check_zip(made.file), 8);
  auto read = tensors_of_torch_file(made.file.size(), ranges_of(made.file));
  ASSERT_TRUE(read) << read.error().what;
  ASSERT_EQ(read->size(), made.tensors.size());
  for (size_t i = 0; i < read->size(); ++i) {
    const TensorInfo& tensor = (*read)[i];
    EXPECT_EQ(tensor.name, made.tensors[i].name);
    EXPECT_EQ(tensor.shape, made.tensors[i].shape);
    EXPECT_EQ(made.file.substr(tensor.begin, tensor.end - tensor.begin), made.bytes[i]);
  }
}

TEST(FormatImage, ASourceThatFailsIsAnError) {
  auto layout = torch_layer_layout("x", std::vector<TensorInfo>{tensor_at("t", 0, 0, 10)});
  ASSERT_TRUE(layout);
  auto image = LayoutImage::make(*layout, [](uint32_t, uint64_t, std::span<std::byte>) {
    return Result<void>(fail(Code::kDisk, "no"));
  });
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, Code::kDisk);
}

TEST(FormatImage, SafetensorsFilesAreReadToo) {
  const std::string file = safetensors_file({{"a", "12345"}, {"b", std::string(1000, 'b')}});
  auto read = tensors_of_safetensors_file(file.size(), ranges_of(file));
  ASSERT_TRUE(read) << read.error().what;
  ASSERT_EQ(read->size(), 2u);
  EXPECT_EQ(file.substr((*read)[1].begin, 1000), std::string(1000, 'b'));
}

TEST(FormatImage, WhatIsCutOffOrSomethingElseIsRefused) {
  const Made made = make({5000, 70});
  for (const size_t length :
       {size_t{0}, size_t{1}, size_t{30}, made.file.size() / 2, made.file.size() - 1}) {
    const std::string cut = made.file.substr(0, length);
    EXPECT_FALSE(tensors_of_torch_file(cut.size(), ranges_of(cut))) << length;
  }
  const std::string text = "no model at all";
  EXPECT_FALSE(tensors_of_torch_file(text.size(), ranges_of(text)));
  EXPECT_FALSE(tensors_of_safetensors_file(text.size(), ranges_of(text)));
  EXPECT_FALSE(tensors_of_safetensors_file(3, ranges_of("abc")));
}

}  // namespace
}  // namespace nexus::test
