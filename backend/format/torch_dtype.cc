#include "backend/format/torch_dtype.h"

#include <array>

namespace nexus {
namespace {

struct TorchRow {
  Dtype dtype;
  std::string_view name;
  std::string_view storage;
};

constexpr std::array kTorchDtypes = {
    TorchRow{Dtype::kBool, "bool", "BoolStorage"},
    TorchRow{Dtype::kF4, "float4_e2m1fn_x2", ""},
    TorchRow{Dtype::kU8, "uint8", "ByteStorage"},
    TorchRow{Dtype::kI8, "int8", "CharStorage"},
    TorchRow{Dtype::kF8E5M2, "float8_e5m2", ""},
    TorchRow{Dtype::kF8E4M3, "float8_e4m3fn", ""},
    TorchRow{Dtype::kF8E8M0, "float8_e8m0fnu", ""},
    TorchRow{Dtype::kF8E4M3FNUZ, "float8_e4m3fnuz", ""},
    TorchRow{Dtype::kF8E5M2FNUZ, "float8_e5m2fnuz", ""},
    TorchRow{Dtype::kI16, "int16", "ShortStorage"},
    TorchRow{Dtype::kU16, "uint16", ""},
    TorchRow{Dtype::kF16, "float16", "HalfStorage"},
    TorchRow{Dtype::kBF16, "bfloat16", "BFloat16Storage"},
    TorchRow{Dtype::kI32, "int32", "IntStorage"},
    TorchRow{Dtype::kU32, "uint32", ""},
    TorchRow{Dtype::kF32, "float32", "FloatStorage"},
    TorchRow{Dtype::kC64, "complex64", "ComplexFloatStorage"},
    TorchRow{Dtype::kF64, "float64", "DoubleStorage"},
    TorchRow{Dtype::kI64, "int64", "LongStorage"},
    TorchRow{Dtype::kU64, "uint64", ""},
    TorchRow{Dtype::kC128, "complex128", "ComplexDoubleStorage"},
};

}  // namespace

std::string_view torch_storage_class(Dtype dtype) {
  for (const TorchRow& row : kTorchDtypes) {
    if (row.dtype == dtype) return row.storage;
  }
  return "";
}

std::optional<Dtype> dtype_from_torch_storage(std::string_view storage_class) {
  for (const TorchRow& row : kTorchDtypes) {
    if (!row.storage.empty() && row.storage == storage_class) return row.dtype;
  }
  return std::nullopt;
}

std::string_view torch_dtype_name(Dtype dtype) {
  for (const TorchRow& row : kTorchDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "";
}

std::optional<Dtype> dtype_from_torch_name(std::string_view torch_dtype) {
  for (const TorchRow& row : kTorchDtypes) {
    if (row.name == torch_dtype) return row.dtype;
  }
  return std::nullopt;
}

}  // namespace nexus
