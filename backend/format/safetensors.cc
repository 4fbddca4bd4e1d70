#include "backend/format/safetensors.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "backend/format/json_sax.h"
#include "backend/format/text.h"

namespace nexus {
namespace {

constexpr size_t kRankMax = 64;  // as numpy's; torch's kernels stop there too
constexpr std::string_view kMetadataKey = "__metadata__";

// {"__metadata__": {str: str}, name: {"dtype": str, "shape": [n..], "data_offsets": [b, e]}, ..}
// Offsets stay relative to the data; the caller checks them.
class HeaderSax final : public JsonSax {
 public:
  explicit HeaderSax(SafetensorsHeader& header) : header_(header) {}

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kMetadataValue:
        state_ = State::kMetadata;
        return true;
      case State::kTensorValue:
        state_ = State::kTensor;
        return true;
      default:
        return JsonSax::start_object(0);
    }
  }

  bool key(string_t& name) override {
    switch (state_) {
      case State::kTop:
        return top_key(name);
      case State::kMetadata:
        metadata_key_ = std::move(name);
        state_ = State::kMetadataText;
        return true;
      case State::kTensor:
        return tensor_key(name);
      default:
        return JsonSax::key(name);
    }
  }

  bool end_object() override {
    switch (state_) {
      case State::kMetadata:
        state_ = State::kTop;
        return true;
      case State::kTensor:
        if (!has_dtype_) return stop(where() + ": no dtype");
        if (!has_shape_) return stop(where() + ": no shape");
        if (!has_offsets_) return stop(where() + ": no data_offsets");
        header_.tensors.push_back(std::move(tensor_));
        state_ = State::kTop;
        return true;
      case State::kTop:
        state_ = State::kDone;
        return true;
      default:
        return JsonSax::end_object();
    }
  }

  bool null() override {
    // safetensors reads __metadata__ as an optional map.
    if (state_ != State::kMetadataValue) return JsonSax::null();
    state_ = State::kTop;
    return true;
  }

  bool string(string_t& text) override {
    if (state_ == State::kMetadataText) {
      header_.metadata[std::move(metadata_key_)] = std::move(text);
      state_ = State::kMetadata;
      return true;
    }
    if (state_ != State::kDtype) return JsonSax::string(text);
    const std::optional<Dtype> dtype = dtype_from_name(text);
    if (!dtype) return stop(where() + ": unknown dtype " + in_quotes(text));
    tensor_.dtype = *dtype;
    state_ = State::kTensor;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::kShapeValue) {
      state_ = State::kShape;
      return true;
    }
    if (state_ != State::kOffsetsValue) return JsonSax::start_array(0);
    state_ = State::kOffsets;
    offsets_read_ = 0;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (tensor_.shape.size() == kRankMax) return stop(where() + ": over 64 dimensions");
      tensor_.shape.push_back(value);
      return true;
    }
    if (state_ != State::kOffsets) return JsonSax::number_unsigned(value);
    if (offsets_read_ == 2) return stop(where() + ": data_offsets is not a pair");
    (offsets_read_ == 0 ? tensor_.begin : tensor_.end) = value;
    ++offsets_read_;
    return true;
  }

  bool end_array() override {
    if (state_ == State::kOffsets && offsets_read_ != 2) {
      return stop(where() + ": data_offsets is not a pair");
    }
    if (state_ != State::kShape && state_ != State::kOffsets) return JsonSax::end_array();
    state_ = State::kTensor;
    return true;
  }

 protected:
  std::string where() const override {
    switch (state_) {
      case State::kStart:
      case State::kTop:
      case State::kDone:
        return "header";
      case State::kMetadataValue:
      case State::kMetadata:
      case State::kMetadataText:
        return std::string(kMetadataKey);
      default:
        return "tensor " + in_quotes(tensor_.name);
    }
  }

 private:
  // A ..Value state waits for the value of the key just read.
  enum class State {
    kStart,
    kTop,
    kMetadataValue,
    kMetadata,
    kMetadataText,
    kTensorValue,
    kTensor,
    kDtype,
    kShapeValue,
    kShape,
    kOffsetsValue,
    kOffsets,
    kDone,
  };

  bool top_key(string_t& name) {
    if (name != kMetadataKey) {
      tensor_ = {};
      tensor_.name = std::move(name);
      has_dtype_ = has_shape_ = has_offsets_ = false;
      state_ = State::kTensorValue;
      return true;
    }
    if (std::exchange(has_metadata_, true)) return stop("__metadata__ occurs twice");
    state_ = State::kMetadataValue;
    return true;
  }

  bool tensor_key(const string_t& name) {
    bool* seen = nullptr;
    if (name == "dtype") {
      seen = &has_dtype_;
      state_ = State::kDtype;
    } else if (name == "shape") {
      seen = &has_shape_;
      state_ = State::kShapeValue;
    } else if (name == "data_offsets") {
      seen = &has_offsets_;
      state_ = State::kOffsetsValue;
    } else {
      return stop(where() + ": unknown key " + in_quotes(name));
    }
    if (std::exchange(*seen, true)) return stop(where() + ": " + in_quotes(name) + " occurs twice");
    return true;
  }

  SafetensorsHeader& header_;
  State state_ = State::kStart;
  bool has_metadata_ = false;
  std::string metadata_key_;
  TensorInfo tensor_;
  bool has_dtype_ = false;
  bool has_shape_ = false;
  bool has_offsets_ = false;
  int offsets_read_ = 0;
};

Result<void> check_names(const std::vector<TensorInfo>& tensors) {
  std::unordered_set<std::string_view> names;
  names.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return fail(Code::kCorrupt, "tensor " + in_quotes(tensor.name) + " occurs twice");
    }
  }
  return {};
}

// Tensors in file order must tile [0, data_size). Turns their offsets into absolute ones.
Result<void> place_tensors(std::vector<TensorInfo>& tensors, uint64_t data_begin,
                           uint64_t data_size) {
  uint64_t expected = 0;
  for (TensorInfo& tensor : tensors) {
    const auto bad = [&tensor](const std::string& why) {
      return fail(Code::kCorrupt, "tensor " + in_quotes(tensor.name) + ": " + why);
    };
    if (tensor.end < tensor.begin) return bad("data_offsets end before they begin");
    const std::string offset = std::to_string(tensor.begin);
    if (tensor.begin > expected) {
      return bad("hole in the data before offset " + offset);
    }
    if (tensor.begin < expected) return bad("overlaps another tensor at offset " + offset);
    const std::optional<uint64_t> bytes = dense_bytes(tensor.dtype, tensor.shape);
    if (!bytes) return bad("the shape overflows, or is not a whole number of bytes");
    if (*bytes != tensor.end - tensor.begin) {
      return bad("shape and dtype take " + std::to_string(*bytes) + " bytes, data_offsets " +
                 std::to_string(tensor.end - tensor.begin));
    }
    if (tensor.end > data_size) {
      return bad("data ends at " + std::to_string(tensor.end) + ", past the file's " +
                 std::to_string(data_size) + " bytes of data");
    }
    expected = tensor.end;
    tensor.begin += data_begin;
    tensor.end += data_begin;
  }
  if (expected != data_size) {
    return fail(Code::kCorrupt, "tensors end at " + std::to_string(expected) + " of " +
                                    std::to_string(data_size) + " bytes of data");
  }
  return {};
}

// {"metadata": anything, "weight_map": {str: str}, ..}; other keys are walked past.
class IndexSax final : public JsonSax {
 public:
  explicit IndexSax(std::map<std::string, std::string>& weight_map) : weight_map_(weight_map) {}

  bool saw_weight_map() const { return saw_weight_map_; }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && next_is_map_)
      in_map_ = true;
    else if (in_map_)
      return JsonSax::start_object(0);
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    if (depth_ == 1) in_map_ = next_is_map_ = false;
    return true;
  }
  bool start_array(std::size_t) override {
    if (!may_skip()) return JsonSax::start_array(0);
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& name) override {
    if (in_map_) {
      tensor_ = std::move(name);
      return true;
    }
    if (depth_ != 1) return true;
    next_is_map_ = name == "weight_map";
    if (next_is_map_ && std::exchange(saw_weight_map_, true)) {
      return stop("weight_map occurs twice");
    }
    return true;
  }
  bool string(string_t& text) override {
    if (!in_map_) return may_skip() || JsonSax::string(text);
    if (!weight_map_.emplace(tensor_, std::move(text)).second) {
      return stop("weight_map: tensor " + in_quotes(tensor_) + " occurs twice");
    }
    return true;
  }
  bool null() override { return may_skip() || JsonSax::null(); }
  bool boolean(bool value) override { return may_skip() || JsonSax::boolean(value); }
  bool number_integer(number_integer_t value) override {
    return may_skip() || JsonSax::number_integer(value);
  }
  bool number_unsigned(number_unsigned_t value) override {
    return may_skip() || JsonSax::number_unsigned(value);
  }
  bool number_float(number_float_t value, const string_t& text) override {
    return may_skip() || JsonSax::number_float(value, text);
  }

 protected:
  std::string where() const override { return depth_ == 0 ? "index" : "weight_map"; }

 private:
  // A value outside weight_map, of no interest.
  bool may_skip() const { return depth_ > 0 && !in_map_ && !next_is_map_; }

  std::map<std::string, std::string>& weight_map_;
  uint64_t depth_ = 0;
  bool next_is_map_ = false;
  bool in_map_ = false;
  bool saw_weight_map_ = false;
  std::string tensor_;
};

}  // namespace

Result<uint64_t> safetensors_header_length(std::span<const std::byte> first8, uint64_t file_size) {
  if (first8.size() < 8 || file_size < 8) {
    return fail(Code::kCorrupt, "file ends within the 8 bytes of the header's length");
  }
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | std::to_integer<uint64_t>(first8[i]);
  const std::string header = "header of " + std::to_string(length) + " bytes";
  if (length > kSafetensorsHeaderMax) {
    return fail(Code::kCorrupt, header + " is over the limit of 100 MB");
  }
  if (length < 2) return fail(Code::kCorrupt, header + " is too short to be JSON");
  if (length > file_size - 8) {
    return fail(Code::kCorrupt,
                header + " does not fit the file of " + std::to_string(file_size) + " bytes");
  }
  return length;
}

Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size) {
  if (json.size() > kSafetensorsHeaderMax || file_size < 8 || json.size() > file_size - 8) {
    return fail(Code::kCorrupt, "header of " + std::to_string(json.size()) +
                                    " bytes does not fit a file of " + std::to_string(file_size));
  }
  if (!json.starts_with('{')) return fail(Code::kCorrupt, "header does not start with {");
  SafetensorsHeader header;
  HeaderSax reader(header);
  if (Result<void> walked = walk_json(json, reader); !walked) {
    return tl::unexpected<Error>(walked.error());
  }
  if (Result<void> names = check_names(header.tensors); !names) {
    return tl::unexpected<Error>(names.error());
  }
  // Stable: empty tensors at one offset keep the header's order.
  std::stable_sort(header.tensors.begin(), header.tensors.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
                   });
  header.data_begin = 8 + json.size();
  if (Result<void> placed =
          place_tensors(header.tensors, header.data_begin, file_size - header.data_begin);
      !placed) {
    return tl::unexpected<Error>(placed.error());
  }
  return header;
}

Result<std::map<std::string, std::string>> parse_weight_index(std::string_view json) {
  std::map<std::string, std::string> weight_map;
  IndexSax reader(weight_map);
  if (Result<void> walked = walk_json(json, reader); !walked) {
    return tl::unexpected<Error>(walked.error());
  }
  if (!reader.saw_weight_map()) return fail(Code::kCorrupt, "index without a weight_map");
  return weight_map;
}

}  // namespace nexus
