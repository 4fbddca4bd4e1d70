#include <algorithm>
#include <cstdio>
#include <set>
#include <tuple>

#include "backend/format/little_endian.h"
#include "backend/format/object_layout.h"
#include "backend/format/safetensors.h"
#include "backend/format/text.h"

namespace nexus {
namespace {

constexpr uint64_t kDataAlignment = 4096;
constexpr uint64_t kDataMax = uint64_t{1} << 62;

void put_json_string(std::string& out, std::string_view utf8) {
  out += '"';
  for (const char c : utf8) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<uint8_t>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      out += escape;
    } else {
      out += c;
    }
  }
  out += '"';
}

void put_json_tensor(std::string& out, const TensorInfo& tensor, uint64_t begin) {
  put_json_string(out, tensor.name);
  out += ":{\"dtype\":\"";
  out += dtype_name(tensor.dtype);
  out += "\",\"shape\":[";
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (i > 0) out += ',';
    out += std::to_string(tensor.shape[i]);
  }
  out += "],\"data_offsets\":[" + std::to_string(begin) + ',' +
         std::to_string(begin + (tensor.end - tensor.begin)) + "]}";
}

Result<void> check_tensor(const TensorInfo& tensor) {
  const std::string name = "tensor " + in_quotes(tensor.name);
  if (tensor.dtype == Dtype::kC128) {
    return fail(Code::kUnsupported, name + ": safetensors has no complex128");
  }
  if (!tensor.stride.empty()) {
    return fail(Code::kUnsupported, name + ": safetensors has no strided tensors");
  }
  if (!is_utf8(tensor.name)) return fail(Code::kInvalid, name + ": the name is not UTF-8");
  if (tensor.end < tensor.begin ||
      dense_bytes(tensor.dtype, tensor.shape) != tensor.end - tensor.begin) {
    return fail(Code::kInvalid, name + ": shape and bytes disagree");
  }
  return {};
}

}  // namespace

Result<ObjectLayout> safetensors_layer_layout(std::span<const TensorInfo> tensors) {
  std::set<std::string_view> names;
  std::vector<const TensorInfo*> by_dtype;
  for (const TensorInfo& tensor : tensors) {
    if (Result<void> checked = check_tensor(tensor); !checked) {
      return tl::unexpected<Error>(checked.error());
    }
    if (!names.insert(tensor.name).second) {
      return fail(Code::kInvalid, "tensor " + in_quotes(tensor.name) + " occurs twice");
    }
    by_dtype.push_back(&tensor);
  }
  // safetensors' writers compare dtypes in the order of its enum, which ours follows; sizes
  // descend.
  std::sort(by_dtype.begin(), by_dtype.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::tie(b->dtype, a->name) < std::tie(a->dtype, b->name);
  });
  // transformers refuses a file whose metadata does not name the framework.
  std::string json = R"({"__metadata__":{"format":"pt"})";
  uint64_t data_bytes = 0;
  for (const TensorInfo* tensor : by_dtype) {
    json += ',';
    put_json_tensor(json, *tensor, data_bytes);
    if (tensor->end - tensor->begin > kDataMax - data_bytes) {
      return fail(Code::kLimit, "a file of over 2^62 bytes");
    }
    data_bytes += tensor->end - tensor->begin;
  }
  json += '}';
  const uint64_t used = 8 + json.size();
  json.append((kDataAlignment - used % kDataAlignment) % kDataAlignment, ' ');
  if (json.size() > kSafetensorsHeaderMax) {
    return fail(Code::kLimit, "a header of over 100 MB");
  }

  ObjectLayout layout;
  std::string head;
  put_le(head, json.size(), 8);
  head += json;
  layout.size = head.size();
  layout.literals.push_back({0, std::move(head)});
  for (const TensorInfo* tensor : by_dtype) {
    const uint64_t length = tensor->end - tensor->begin;
    if (length == 0) continue;
    // Neighbours in a shard are mostly neighbours here: one extent, so that one request fetches
    // them.
    if (!layout.extents.empty() && layout.extents.back().file == tensor->file &&
        layout.extents.back().src + layout.extents.back().length == tensor->begin) {
      layout.extents.back().length += length;
    } else {
      layout.extents.push_back({layout.size, length, tensor->file, tensor->begin});
    }
    layout.size += length;
  }
  return layout;
}

}  // namespace nexus
