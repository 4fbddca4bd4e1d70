// The tensors of a torch zip file or a .safetensors file that is here whole.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/format/tensor.h"

namespace nexus {

// The bytes of a range within the file.
using RangeOfFile = std::function<Result<std::string>(ByteRange range)>;

// Nothing is asked for outside [0, size), whatever the file holds. kUnsupported, kCorrupt: see
// torch_checkpoint.h and safetensors.h. Tensors come in the file's order; TensorInfo::begin and
// ::end are offsets in it, and within it.
Result<std::vector<TensorInfo>> tensors_of_torch_file(uint64_t size, const RangeOfFile& read);
Result<std::vector<TensorInfo>> tensors_of_safetensors_file(uint64_t size, const RangeOfFile& read);

}  // namespace nexus
