#include "backend/format/tensor.h"

#include <array>

namespace nexus {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  uint32_t bits;
};

constexpr std::array kDtypes = {
    DtypeRow{Dtype::kBool, "BOOL", 8},
    DtypeRow{Dtype::kF4, "F4", 4},
    DtypeRow{Dtype::kF6E2M3, "F6_E2M3", 6},
    DtypeRow{Dtype::kF6E3M2, "F6_E3M2", 6},
    DtypeRow{Dtype::kU8, "U8", 8},
    DtypeRow{Dtype::kI8, "I8", 8},
    DtypeRow{Dtype::kF8E5M2, "F8_E5M2", 8},
    DtypeRow{Dtype::kF8E4M3, "F8_E4M3", 8},
    DtypeRow{Dtype::kF8E8M0, "F8_E8M0", 8},
    DtypeRow{Dtype::kF8E4M3FNUZ, "F8_E4M3FNUZ", 8},
    DtypeRow{Dtype::kF8E5M2FNUZ, "F8_E5M2FNUZ", 8},
    DtypeRow{Dtype::kI16, "I16", 16},
    DtypeRow{Dtype::kU16, "U16", 16},
    DtypeRow{Dtype::kF16, "F16", 16},
    DtypeRow{Dtype::kBF16, "BF16", 16},
    DtypeRow{Dtype::kI32, "I32", 32},
    DtypeRow{Dtype::kU32, "U32", 32},
    DtypeRow{Dtype::kF32, "F32", 32},
    DtypeRow{Dtype::kC64, "C64", 64},
    DtypeRow{Dtype::kF64, "F64", 64},
    DtypeRow{Dtype::kI64, "I64", 64},
    DtypeRow{Dtype::kU64, "U64", 64},
    DtypeRow{Dtype::kC128, "C128", 128},
};

constexpr bool rows_follow_enum() {
  for (size_t i = 0; i < kDtypes.size(); ++i) {
    if (static_cast<size_t>(kDtypes[i].dtype) != i) return false;
  }
  return true;
}
static_assert(rows_follow_enum(), "kDtypes is indexed by Dtype");

}  // namespace

uint32_t dtype_bits(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].bits;
}

std::string_view dtype_name(Dtype dtype) {
  return kDtypes[static_cast<size_t>(dtype)].name;
}

std::optional<Dtype> dtype_from_name(std::string_view safetensors_name) {
  for (const DtypeRow& row : kDtypes) {
    if (row.name == safetensors_name && row.dtype != Dtype::kC128) return row.dtype;
  }
  return std::nullopt;
}

std::optional<uint64_t> dense_bytes(Dtype dtype, std::span<const uint64_t> shape) {
  // As safetensors does, a product that overflows is an error even where a later 0 would make it 0.
  uint64_t elements = 1;
  for (const uint64_t dim : shape) {
    if (__builtin_mul_overflow(elements, dim, &elements)) return std::nullopt;
  }
  uint64_t bits = 0;
  if (__builtin_mul_overflow(elements, uint64_t{dtype_bits(dtype)}, &bits)) return std::nullopt;
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

}  // namespace nexus
