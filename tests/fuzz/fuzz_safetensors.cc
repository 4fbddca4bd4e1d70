// The header of a .safetensors file and the index of a sharded model. What the parser accepts must
// hold what safetensors.h promises, and lay out as a layer file that the parser accepts again.
#include <cstdlib>

#include "backend/format/layer_names.h"
#include "backend/format/object_layout.h"
#include "backend/format/safetensors.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nexus;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  (void)parse_weight_index(input);

  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const Result<uint64_t> length = safetensors_header_length(bytes.first(size < 8 ? size : 8), size);
  if (!length) return 0;
  const Result<SafetensorsHeader> header = parse_safetensors_header(input.substr(8, *length), size);
  if (!header) return 0;
  uint64_t at = header->data_begin;
  for (const TensorInfo& tensor : header->tensors) {
    require(tensor.begin == at && tensor.end >= tensor.begin);
    require(dense_bytes(tensor.dtype, tensor.shape) == tensor.end - tensor.begin);
    at = tensor.end;
  }
  require(at == size);

  (void)assign_layers(header->tensors);
  (void)torch_layer_layout("layer_0", header->tensors);
  const Result<ObjectLayout> layer = safetensors_layer_layout(header->tensors);
  require(layer.has_value());
  const std::string_view head = layer->literals.at(0).bytes;
  const Result<SafetensorsHeader> again = parse_safetensors_header(head.substr(8), layer->size);
  require(again && again->tensors.size() == header->tensors.size());
  return 0;
}
