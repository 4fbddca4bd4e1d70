// The header of a .safetensors file. Source: safetensors src/tensor.rs; facts in shared/formats.md.
//   u64 little-endian N | N bytes of JSON starting with '{', trailing spaces allowed | data
// Pure functions, any thread. Input is hostile: every size is checked before it is used, the JSON
// is walked as a stream (no document tree), and nothing is allocated beyond what the input can
// justify.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "backend/format/tensor.h"

namespace nexus {

inline constexpr uint64_t kSafetensorsHeaderMax = 100'000'000;  // bytes, safetensors' own limit

struct SafetensorsHeader {
  uint64_t data_begin = 0;          // 8 + N
  std::vector<TensorInfo> tensors;  // in file order (by offset); begin/end absolute in the file
  std::map<std::string, std::string> metadata;
};

// Reads N from the first 8 bytes; fails on N < 2, N > kSafetensorsHeaderMax or 8 + N > file_size.
Result<uint64_t> safetensors_header_length(std::span<const std::byte> first8, uint64_t file_size);

// `json` is exactly the N bytes. Fails with kCorrupt and a reason that names the tensor on: not
// JSON, nesting or keys outside the format, duplicate tensor names, unknown dtype, shape overflow
// or mismatch with the offsets, holes, overlaps, data that does not end at file_size.
Result<SafetensorsHeader> parse_safetensors_header(std::string_view json, uint64_t file_size);

// weight_map of model.safetensors.index.json or pytorch_model.bin.index.json: tensor -> file name.
// Fails with kCorrupt when it is not JSON of that shape.
Result<std::map<std::string, std::string>> parse_weight_index(std::string_view json);

}  // namespace nexus
