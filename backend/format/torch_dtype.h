// How torch names the dtypes in a pickle: the classic ones by a typed storage class in module
// torch, newer ones by an untyped storage and the dtype itself as a global. Pure functions, any
// thread.
#pragma once

#include <optional>
#include <string_view>

#include "backend/format/tensor.h"

namespace nexus {

// "BFloat16Storage"; empty where torch has no such class.
std::string_view torch_storage_class(Dtype dtype);
std::optional<Dtype> dtype_from_torch_storage(std::string_view storage_class);

// "bfloat16", "float8_e4m3fn"; empty where torch has no such dtype (F6). float4_e2m1fn_x2 counts
// pairs: its shape is kF4's with the last dimension halved.
std::string_view torch_dtype_name(Dtype dtype);
std::optional<Dtype> dtype_from_torch_name(std::string_view torch_dtype);

}  // namespace nexus
