#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "backend/format/little_endian.h"
#include "backend/format/torch_checkpoint.h"

namespace nexus {
namespace {

using ::testing::HasSubstr;

// Writes zips the way torch.save does (PyTorchStreamWriter over miniz): data aligned by an "FB"
// extra field, a descriptor behind each record that is not empty, zip64 where asked for.
struct ZipOptions {
  uint64_t alignment = 64;
  bool descriptors = true;
  bool zip64 = false;  // records as torch writes them past 4 GiB
  uint16_t method = 0;
  uint16_t more_flags = 0;
  std::string comment = {};
};

class TorchZip {
 public:
  explicit TorchZip(ZipOptions options = {}) : options_(std::move(options)) {}

  TorchZip& add(const std::string& name, const std::string& data) {
    const uint64_t local = file_.size();
    const uint64_t flags = (options_.descriptors ? 8u : 0u) | options_.more_flags;
    put("PK\x03\x04");
    number(20, 2), number(flags, 2), number(options_.method, 2);
    number(0, 4), number(0, 4);  // time, CRC-32
    number(options_.descriptors ? 0 : data.size(), 4);
    number(options_.descriptors ? 0 : data.size(), 4);
    number(name.size(), 2);
    std::string extra;
    if (options_.zip64) extra += std::string("\x01\0\x10\0", 4) + std::string(16, '\0');
    if (options_.alignment > 1) {
      const uint64_t unpadded = file_.size() + 2 + name.size() + extra.size() + 4;
      const uint64_t pad =
          (options_.alignment - unpadded % options_.alignment) % options_.alignment;
      extra += "FB";
      put_le(extra, pad, 2);
      extra += std::string(pad, 'Z');
    }
    number(extra.size(), 2);
    put(name), put(extra);
    data_begins_.push_back(file_.size());
    put(data);
    if (options_.descriptors && !data.empty()) {
      put("PK\x07\x08");
      number(0, 4);
      number(data.size(), options_.zip64 ? 8 : 4), number(data.size(), options_.zip64 ? 8 : 4);
    }

    std::string& out = directory_;
    out += "PK\x01\x02";
    put_le(out, 0, 2), put_le(out, 20, 2), put_le(out, flags, 2), put_le(out, options_.method, 2);
    put_le(out, 0, 8);  // time, CRC-32
    put_le(out, options_.zip64 ? UINT32_MAX : data.size(), 4);
    put_le(out, options_.zip64 ? UINT32_MAX : data.size(), 4);
    put_le(out, name.size(), 2), put_le(out, options_.zip64 ? 4 + 24 : 0, 2);
    put_le(out, 0, 2), put_le(out, 0, 8);  // comment, disk, attributes
    put_le(out, options_.zip64 ? UINT32_MAX : local, 4);
    out += name;
    if (options_.zip64) {
      put_le(out, 1, 2), put_le(out, 24, 2);
      put_le(out, data.size(), 8), put_le(out, data.size(), 8), put_le(out, local, 8);
    }
    ++count_;
    return *this;
  }

  // What stands before the first record or between two.
  TorchZip& gap(const std::string& bytes) {
    put(bytes);
    return *this;
  }

  std::string finish() {
    const uint64_t begin = file_.size();
    put(directory_);
    if (options_.zip64) {
      const uint64_t end64 = file_.size();
      put("PK\x06\x06");
      number(44, 8), number(0x2D2D, 4), number(0, 8);
      number(count_, 8), number(count_, 8), number(directory_.size(), 8), number(begin, 8);
      put("PK\x06\x07");
      number(0, 4), number(end64, 8), number(1, 4);
    }
    put("PK\x05\x06");
    number(0, 4), number(count_, 2), number(count_, 2);
    number(options_.zip64 ? UINT32_MAX : directory_.size(), 4);
    number(options_.zip64 ? UINT32_MAX : begin, 4);
    number(options_.comment.size(), 2), put(options_.comment);
    return file_;
  }

  const std::vector<uint64_t>& data_begins() const { return data_begins_; }

 private:
  void put(const std::string& bytes) { file_ += bytes; }
  void number(uint64_t value, size_t width) { put_le(file_, value, width); }

  const ZipOptions options_;
  std::string file_;
  std::string directory_;
  uint64_t count_ = 0;
  std::vector<uint64_t> data_begins_;
};

Result<ByteRange> directory_of(const std::string& zip) {
  const auto bytes = std::as_bytes(std::span(zip));
  return find_zip_directory(bytes.last(std::min<size_t>(zip.size(), kZipTailBytes)), zip.size());
}

Result<TorchArchive> open(const std::string& zip) {
  const Result<ByteRange> where = directory_of(zip);
  if (!where) return tl::unexpected<Error>(where.error());
  return parse_torch_archive(std::as_bytes(std::span(zip)).subspan(where->offset, where->length),
                             *where, zip.size());
}

TorchZip usual_records(ZipOptions options) {
  TorchZip zip(std::move(options));
  zip.add("archive/data.pkl", std::string(101, 'p')).add("archive/byteorder", "little");
  zip.add("archive/data/0", std::string(1000, 'a')).add("archive/data/1", "");
  zip.add("archive/data/2", std::string(7, 'b')).add("archive/version", "3\n");
  return zip;
}

void expect_placed(ZipOptions options) {
  TorchZip zip = usual_records(std::move(options));
  const Result<TorchArchive> archive = open(zip.finish());
  ASSERT_TRUE(archive) << archive.error().what;
  EXPECT_EQ(archive->folder, "archive");
  ASSERT_EQ(archive->records.size(), 6u);
  for (size_t i = 0; i < 6; ++i) {
    if (archive->records[i].size == 0) continue;
    EXPECT_EQ(archive->records[i].data_begin, zip.data_begins()[i]) << i;
  }
  EXPECT_EQ(archive->pickle, (ByteRange{zip.data_begins()[0], 101}));
}

TEST(TorchArchive, PlacesRecordsBeforeTheirDescriptors) {
  expect_placed({});
}

TEST(TorchArchive, PlacesRecordsBeforeZip64Descriptors) {
  expect_placed({.zip64 = true});
}

TEST(TorchArchive, PlacesRecordsWithoutDescriptors) {
  expect_placed({.descriptors = false});
  expect_placed({.alignment = 4096, .descriptors = false});
  expect_placed({.alignment = 1, .descriptors = false});
  expect_placed({.descriptors = false, .zip64 = true});
}

TEST(TorchArchive, ReadsPastAComment) {
  expect_placed({.comment = std::string(65'535, 'c')});
  expect_placed({.comment = "PK\x05\x06 is not an end record here"});
}

TEST(TorchArchive, RefusesRecordsThatItCannotPlace) {
  const auto code_of = [](TorchZip zip) {
    const Result<TorchArchive> archive = open(zip.finish());
    EXPECT_FALSE(archive);
    return archive ? Code::kNotFound : archive.error().code;
  };
  EXPECT_EQ(code_of(usual_records({.alignment = 1})), Code::kUnsupported);
  TorchZip padded({.descriptors = false});
  padded.add("a/data.pkl", "x").gap("?");
  EXPECT_EQ(code_of(padded), Code::kUnsupported);
  EXPECT_EQ(code_of(usual_records({.method = 8})), Code::kUnsupported);
  EXPECT_EQ(code_of(usual_records({.more_flags = 1})), Code::kUnsupported) << "encrypted";
  EXPECT_EQ(code_of(usual_records({}).add("archive/byteorder", "little")), Code::kCorrupt);
  EXPECT_EQ(code_of(TorchZip().add("a/data.pkl", "x").add("a/byteorder", "big")),
            Code::kUnsupported);
  EXPECT_EQ(code_of(TorchZip().add("a/data.pkl", "x").add("a/constants.pkl", "x")),
            Code::kUnsupported);
  EXPECT_EQ(code_of(TorchZip().add("a/weights", "x")), Code::kUnsupported);
  EXPECT_EQ(code_of(TorchZip()), Code::kUnsupported);
}

TEST(TorchArchive, RefusesABrokenDirectory) {
  const std::string zip = usual_records({.zip64 = true}).finish();
  const ByteRange where = directory_of(zip).value();
  const std::string directory = zip.substr(where.offset, where.length);
  const auto parses = [&](std::string bytes, uint64_t file_size) {
    const ByteRange at{where.offset, bytes.size()};
    return parse_torch_archive(std::as_bytes(std::span(bytes)), at, file_size).has_value();
  };
  ASSERT_TRUE(parses(directory, zip.size()));
  EXPECT_FALSE(parses(directory, where.offset)) << "past the end of the file";
  for (size_t cut = 1; cut < directory.size(); ++cut) {
    (void)parses(directory.substr(0, cut), zip.size());
  }
  EXPECT_FALSE(parses(directory.substr(0, directory.size() - 1), zip.size()));
  for (const size_t field : {28, 30, 32}) {  // lengths of name, extra field, comment
    std::string bad = directory;
    bad[field + 1] = '\xFF';
    EXPECT_FALSE(parses(bad, zip.size())) << field;
  }
  std::string huge = directory;  // a size in the zip64 field of the first entry
  std::fill_n(huge.begin() + 46 + 16 + 4, 16, '\xFF');
  EXPECT_FALSE(parses(huge, zip.size()));
  std::string far = directory;  // its local header
  std::fill_n(far.begin() + 46 + 16 + 4 + 16, 8, '\xFF');
  EXPECT_FALSE(parses(far, zip.size()));
}

TEST(ZipDirectory, NamesWhatIsNotAZip) {
  for (const std::string& file :
       {std::string(), std::string("\x80\x02}."), std::string(100'000, 'x')}) {
    const Result<ByteRange> where = directory_of(file);
    ASSERT_FALSE(where);
    EXPECT_EQ(where.error().code, Code::kUnsupported);
    EXPECT_THAT(where.error().what, HasSubstr("legacy pickle"));
  }
  const std::string zip = usual_records({}).finish();
  EXPECT_FALSE(directory_of(zip.substr(0, zip.size() - 1))) << "cut off";
  EXPECT_FALSE(directory_of(zip.substr(1))) << "offsets do not fit";
  EXPECT_FALSE(find_zip_directory(std::as_bytes(std::span(zip)).last(30), zip.size()))
      << "not the whole tail";
}

TEST(ZipDirectory, RefusesOneOverTheLimit) {
  std::string tail(kZipTailBytes - 22, '\0');
  tail += "PK\x05\x06" + std::string(8, '\0');
  put_le(tail, 64'000'001, 4);
  put_le(tail, 0, 4);
  put_le(tail, 0, 2);
  const Result<ByteRange> where =
      find_zip_directory(std::as_bytes(std::span(tail)), 64'000'001 + 22);
  ASSERT_FALSE(where);
  EXPECT_EQ(where.error().code, Code::kLimit);
}

// Pickles by hand. The archive holds storages 0 (48 bytes at 4096) and 1 (empty).
const TorchArchive& archive() {
  static const TorchArchive kArchive{
      "m", {{"m/data/0", 48, 4000, 4096}, {"m/data/1", 0, 4200, 4250}}, {}};
  return kArchive;
}

std::string text(const std::string& utf8) {
  std::string out = "X";
  put_le(out, utf8.size(), 4);
  return out + utf8;
}

std::string integer(uint64_t value) {
  std::string out = "\x8A\x09";
  put_le(out, value, 8);
  return out + std::string(1, '\0');
}

std::string tuple(const std::vector<uint64_t>& values) {
  std::string out = "(";
  for (const uint64_t value : values) out += integer(value);
  return out + "t";
}

std::string storage(const std::string& type, const std::string& key, uint64_t elements) {
  return "(" + text("storage") + "c" + type + "\n" + text(key) + text("cpu") + integer(elements) +
         "tQ";
}

const std::string kHooks = "ccollections\nOrderedDict\n)R";

std::string view(const std::string& of, uint64_t offset, const std::vector<uint64_t>& shape,
                 const std::vector<uint64_t>& stride, const std::string& metadata = "") {
  return "ctorch._utils\n_rebuild_tensor_v2\n(" + of + integer(offset) + tuple(shape) +
         tuple(stride) + "\x89" + kHooks + metadata + "tR";
}

std::string view_v3(const std::string& of, const std::vector<uint64_t>& shape,
                    const std::vector<uint64_t>& stride, const std::string& dtype) {
  return "ctorch._utils\n_rebuild_tensor_v3\n(" + of + integer(0) + tuple(shape) + tuple(stride) +
         "\x89" + kHooks + "ctorch\n" + dtype + "\ntR";
}

const std::string kFloats = storage("torch\nFloatStorage", "0", 12);

std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "\x80\x02}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u.";
}

Result<std::vector<TensorInfo>> read(const std::string& pickle) {
  return read_torch_pickle(pickle, archive());
}

TensorInfo read_one(const std::string& tensor) {
  const auto tensors = read(dict({{"w", tensor}}));
  EXPECT_TRUE(tensors) << tensors.error().what;
  if (!tensors || tensors->size() != 1) return {};
  return tensors->front();
}

void expect_error(const std::string& pickle, Code code, const std::string& why) {
  const auto tensors = read(pickle);
  ASSERT_FALSE(tensors) << why;
  EXPECT_EQ(tensors.error().code, code) << tensors.error().what;
  EXPECT_THAT(tensors.error().what, HasSubstr(why));
}

TEST(TorchPickle, GivesTensorsInDictOrder) {
  const auto tensors =
      read(dict({{"b", view(kFloats, 0, {3, 4}, {4, 1})}, {"a", view(kFloats, 4, {2}, {1})}}));
  ASSERT_TRUE(tensors) << tensors.error().what;
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "b");
  EXPECT_EQ((*tensors)[0].dtype, Dtype::kF32);
  EXPECT_EQ((*tensors)[0].shape, (std::vector<uint64_t>{3, 4}));
  EXPECT_TRUE((*tensors)[0].stride.empty());
  EXPECT_EQ((*tensors)[0].begin, 4096u);
  EXPECT_EQ((*tensors)[0].end, 4096u + 48);
  EXPECT_EQ((*tensors)[1].begin, 4096u + 16) << "a contiguous slice is exact";
  EXPECT_EQ((*tensors)[1].end, 4096u + 24);
}

TEST(TorchPickle, KeepsStridesOfOtherViews) {
  const TensorInfo transposed = read_one(view(kFloats, 1, {3, 2}, {1, 4}));
  EXPECT_EQ(transposed.stride, (std::vector<uint64_t>{1, 4}));
  EXPECT_EQ(transposed.storage_offset, 1u);
  EXPECT_EQ(transposed.begin, 4096u);
  EXPECT_EQ(transposed.end, 4096u + 48);
  EXPECT_EQ(read_one(view(kFloats, 11, {5}, {0})).stride, (std::vector<uint64_t>{0})) << "expanded";
  EXPECT_TRUE(read_one(view(kFloats, 0, {1, 12}, {99, 1})).stride.empty())
      << "the stride of a dimension of 1 does not matter";
}

TEST(TorchPickle, ReadsScalarsAndEmptyTensors) {
  const TensorInfo scalar = read_one(view(kFloats, 2, {}, {}));
  EXPECT_EQ(scalar.end - scalar.begin, 4u);
  EXPECT_TRUE(scalar.shape.empty());
  const TensorInfo empty = read_one(view(storage("torch\nHalfStorage", "1", 0), 0, {0, 4}, {4, 1}));
  EXPECT_EQ(empty.begin, empty.end);
  EXPECT_EQ(empty.dtype, Dtype::kF16);
}

TEST(TorchPickle, ReadsEveryTypedStorage) {
  const std::vector<std::pair<std::string, Dtype>> types = {
      {"Bool", Dtype::kBool},  {"Byte", Dtype::kU8},          {"Char", Dtype::kI8},
      {"Short", Dtype::kI16},  {"Int", Dtype::kI32},          {"Long", Dtype::kI64},
      {"Half", Dtype::kF16},   {"BFloat16", Dtype::kBF16},    {"Float", Dtype::kF32},
      {"Double", Dtype::kF64}, {"ComplexFloat", Dtype::kC64}, {"ComplexDouble", Dtype::kC128}};
  for (const auto& [name, dtype] : types) {
    const TensorInfo tensor =
        read_one(view(storage("torch\n" + name + "Storage", "0", 3), 0, {3}, {1}));
    EXPECT_EQ(tensor.dtype, dtype) << name;
    EXPECT_EQ(tensor.end - tensor.begin, 3u * dtype_bits(dtype) / 8) << name;
  }
}

TEST(TorchPickle, ReadsUntypedStorages) {
  const std::string untyped = storage("torch.storage\nUntypedStorage", "0", 48);
  const TensorInfo fp8 = read_one(view_v3(untyped, {48}, {1}, "float8_e4m3fn"));
  EXPECT_EQ(fp8.dtype, Dtype::kF8E4M3);
  EXPECT_EQ(fp8.end - fp8.begin, 48u);
  EXPECT_EQ(read_one(view_v3(untyped, {6}, {1}, "uint64")).dtype, Dtype::kU64);
  const TensorInfo fp4 = read_one(view_v3(untyped, {6, 8}, {8, 1}, "float4_e2m1fn_x2"));
  EXPECT_EQ(fp4.dtype, Dtype::kF4);
  EXPECT_EQ(fp4.shape, (std::vector<uint64_t>{6, 16})) << "torch counts pairs";
  EXPECT_EQ(fp4.end - fp4.begin, 48u);
  expect_error(dict({{"w", view_v3(untyped, {7}, {1}, "uint64")}}), Code::kCorrupt, "past");
  expect_error(dict({{"w", view_v3(untyped, {4, 2}, {1, 4}, "float4_e2m1fn_x2")}}),
               Code::kUnsupported, "F4");
  expect_error(dict({{"w", view_v3(untyped, {4}, {1}, "float5")}}), Code::kUnsupported,
               "torch.float5");
  expect_error(dict({{"w", view(untyped, 0, {4}, {1})}}), Code::kUnsupported, "untyped");
}

TEST(TorchPickle, ReadsParametersAndSkipsOtherValues) {
  const std::string parameter =
      "ctorch._utils\n_rebuild_parameter\n(" + view(kFloats, 0, {2}, {1}) + "\x88" + kHooks + "tR";
  const std::string subclass = "ctorch._tensor\n_rebuild_from_type_v2\n(" +
                               std::string("ctorch._utils\n_rebuild_parameter\n") +
                               "ctorch.nn.parameter\nParameter\n(" + view(kFloats, 0, {2}, {1}) +
                               "\x88" + kHooks + "t}tR";
  const auto tensors = read(dict({{"epoch", "K\x03"},
                                  {"lr", "G" + std::string(8, '\0')},
                                  {"w", parameter},
                                  {"none", "N"},
                                  {"list",
                                   "](K\x01"
                                   "K\x02"
                                   "e"},
                                  {"device", "ctorch\ndevice\n" + text("cpu") + "\x85R"},
                                  {"v", subclass},
                                  {"bytes", std::string("B\x01\0\0\0x", 6)}}));
  ASSERT_TRUE(tensors) << tensors.error().what;
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "w");
  EXPECT_EQ((*tensors)[1].name, "v");
}

TEST(TorchPickle, ReadsAModulesStateDict) {
  // collections.OrderedDict with items, then BUILD with its _metadata; memo puts as torch writes
  // them.
  const std::string pickle =
      "\x80\x02"
      "ccollections\nOrderedDict\nq\x01)Rq\x02(" +
      text("w") + "q\x03" + view(kFloats, 0, {2}, {1}) + "q\x04u}q\x05" + text("_metadata") +
      "h\x01)Rsb.";
  const auto tensors = read(pickle);
  ASSERT_TRUE(tensors) << tensors.error().what;
  EXPECT_EQ(tensors->size(), 1u);
}

TEST(TorchPickle, ReadsStateDictsOneLevelDown) {
  const std::string inner = "}(" + text("w") + view(kFloats, 0, {2}, {1}) + "u";
  for (const std::string key : {"state_dict", "model"}) {
    const auto tensors =
        read(dict({{"step", view(kFloats, 0, {}, {})}, {key, inner}, {"epoch", "K\x03"}}));
    ASSERT_TRUE(tensors);
    ASSERT_EQ(tensors->size(), 1u);
    EXPECT_EQ(tensors->front().name, "w");
  }
  expect_error(dict({{"other", inner}}), Code::kUnsupported, "without tensors");
}

TEST(TorchPickle, LaterKeysReplaceEarlierOnes) {
  const auto tensors = read(dict({{"a", view(kFloats, 0, {2}, {1})},
                                  {"b", view(kFloats, 0, {1}, {1})},
                                  {"a", view(kFloats, 2, {3}, {1})}}));
  ASSERT_TRUE(tensors);
  ASSERT_EQ(tensors->size(), 2u);
  EXPECT_EQ((*tensors)[0].name, "a");
  EXPECT_EQ((*tensors)[0].shape, (std::vector<uint64_t>{3}));
}

TEST(TorchPickle, AcceptsAnEmptyDict) {
  const auto tensors = read("\x80\x02}.");
  ASSERT_TRUE(tensors);
  EXPECT_TRUE(tensors->empty());
}

TEST(TorchPickle, RefusesEveryOtherGlobalByName) {
  expect_error("cos\nsystem\n" + text("true") + "\x85R.", Code::kUnsupported, "\"os.system\"");
  expect_error(dict({{"w", "cposix\nsystem\n" + text("true") + "\x85R"}}), Code::kUnsupported,
               "posix.system");
  expect_error(text("os") + text("system") + "\x93)R.", Code::kUnsupported, "os.system");
  expect_error("cargparse\nNamespace\n)\x81.", Code::kUnsupported, "argparse.Namespace");
  expect_error("ctorch._utils\n_rebuild_sparse_tensor\n)R.", Code::kUnsupported, "sparse");
  expect_error(dict({{"w", storage("torch\nQInt8Storage", "0", 1)}}), Code::kUnsupported,
               "QInt8Storage");
  expect_error(dict({{"w", storage("evil\nFloatStorage", "0", 1)}}), Code::kUnsupported, "evil");
  expect_error("i.", Code::kUnsupported, "opcode 0x69");
  expect_error("P1\n.", Code::kUnsupported, "opcode 0x50");
  expect_error("\x82\x01.", Code::kUnsupported, "opcode 0x82");
  expect_error("\x80\x06.", Code::kUnsupported, "protocol 6");
  expect_error("K\x01.", Code::kUnsupported, "not a dict");
  expect_error(view(kFloats, 0, {1}, {1}) + ".", Code::kUnsupported, "not a dict");
  expect_error(dict({{"w", view(kFloats, 0, {1}, {1}, "}" + text("conj") + "\x88s")}}),
               Code::kUnsupported, "metadata");
}

TEST(TorchPickle, RefusesViewsOutsideTheirStorage) {
  const auto corrupt = [](const std::string& tensor, const std::string& why) {
    expect_error(dict({{"w", tensor}}), Code::kCorrupt, why);
  };
  corrupt(view(kFloats, 0, {13}, {1}), "past its storage");
  corrupt(view(kFloats, 12, {1}, {1}), "past its storage");
  corrupt(view(kFloats, 0, {2}, {12}), "past its storage");
  corrupt(view(kFloats, INT64_MAX, {1}, {1}), "past its storage");
  corrupt(view(kFloats, 0, {INT64_MAX, 4}, {INT64_MAX, 1}), "past its storage");
  corrupt(view(kFloats, UINT64_MAX, {1}, {1}), "arguments");
  corrupt(view(kFloats, 0, {UINT64_MAX}, {1}), "arguments");
  corrupt(view(kFloats, 0, {1, 1}, {1}), "arguments");
  corrupt(view(kFloats, 0, std::vector<uint64_t>(65, 1), std::vector<uint64_t>(65, 1)),
          "arguments");
  corrupt(view(storage("torch\nFloatStorage", "0", 13), 0, {1}, {1}), "too few");
  corrupt(view(storage("torch\nFloatStorage", "0", INT64_MAX), 0, {1}, {1}), "too few");
  corrupt(view(storage("torch\nFloatStorage", "7", 1), 0, {1}, {1}), "no record of storage \"7\"");
  corrupt(view(storage("torch\nFloatStorage", "../0", 1), 0, {1}, {1}), "no record");
}

TEST(TorchPickle, RefusesBrokenPickles) {
  const std::string whole = dict({{"w", view(kFloats, 0, {3, 4}, {4, 1})}});
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    EXPECT_FALSE(read(whole.substr(0, cut))) << cut;
  }
  for (const std::string bad : {".",
                                "t.",
                                "u.",
                                "}u.",
                                "}(K\x01u.",
                                "}K\x01s.",
                                "(.",
                                "(0.",
                                "R.",
                                ")R.",
                                "Q.",
                                "b.",
                                "a.",
                                "]a.",
                                "h\x05.",
                                "q\x00.",
                                "\x94.",
                                "cos",
                                "cos\nsystem",
                                "X\xff\xff\xff\xff"
                                "a",
                                "\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
                                "\x8b\xff\xff\xff\xff",
                                "\x93.",
                                "}\x81."}) {
    EXPECT_FALSE(read(bad)) << bad;
  }
  expect_error(dict({{"\xff", view(kFloats, 0, {1}, {1})}}), Code::kCorrupt, "UTF-8");
}

TEST(TorchPickle, BoundsMemory) {
  expect_error("}r" + std::string("\xff\xff\xff\x7f", 4) + ".", Code::kUnsupported, "memo");
  // Ever more tensors of rank 64 from one memoized argument tuple: 5 bytes of pickle each.
  const std::vector<uint64_t> ones(64, 1);
  std::string bomb =
      "\x80\x02"
      "ctorch._utils\n_rebuild_tensor\nq\x01"
      "0(" +
      kFloats + integer(0) + tuple(ones) + tuple(ones) +
      "tq\x02"
      "0";
  for (int i = 0; i < 100'000; ++i) bomb += "h\x01h\x02R";
  expect_error(bomb + ".", Code::kLimit, "bytes of values");
  std::string list = "](" + std::string(1000, 'N') + "tq\x01";
  for (int i = 0; i < 100'000; ++i)
    list +=
        "h\x01"
        "0";
  EXPECT_FALSE(read(list + "."));
}

}  // namespace
}  // namespace nexus
