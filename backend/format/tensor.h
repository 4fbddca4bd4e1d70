// Tensors as an origin's files hold them: name, type, shape and where the bytes are.
// Source for dtypes: safetensors src/tensor.rs; for strided views: torch.save of a state dict.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace nexus {

enum class Dtype : uint8_t {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3FNUZ,
  kF8E5M2FNUZ,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
  kC128,
};

// Bits of one element; a tensor's product of shape and bits must be a whole number of bytes.
uint32_t dtype_bits(Dtype dtype);
// The safetensors spelling ("BF16"). kC128 exists in torch only and has none there: "C128".
std::string_view dtype_name(Dtype dtype);
std::optional<Dtype> dtype_from_name(std::string_view safetensors_name);

// Bytes of a contiguous tensor; nothing on overflow or where they are not a whole number.
std::optional<uint64_t> dense_bytes(Dtype dtype, std::span<const uint64_t> shape);

struct TensorInfo {
  std::string name;
  Dtype dtype = Dtype::kU8;
  std::vector<uint64_t> shape;  // elements; {} is a scalar, a 0 anywhere means no bytes
  // Empty: contiguous, row-major, and [begin, end) is exactly the tensor. Otherwise (a torch
  // checkpoint's transposed or expanded view) strides in elements over the storage [begin, end),
  // which starts `storage_offset` elements before the first element.
  std::vector<uint64_t> stride;
  uint64_t storage_offset = 0;
  uint32_t file = 0;   // index of the origin file, set by whoever holds the list of files
  uint64_t begin = 0;  // bytes, absolute in the origin file
  uint64_t end = 0;
};

}  // namespace nexus
