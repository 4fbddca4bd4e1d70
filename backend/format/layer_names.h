// Which layer a tensor belongs to. The rule and the table of families: shared/formats.md "Layer
// names". Pure functions, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/format/tensor.h"

namespace nexus {

struct LayerPosition {
  std::string stack;  // everything left of the index, "model.layers", "encoder.block"
  uint64_t index = 0;
};

// Nothing when the tensor is outside the layers: no match, a stack under a vision/visual/audio
// prefix, or an index too large to be one (> 99,999).
std::optional<LayerPosition> layer_position(std::string_view tensor_name);

struct LayerGroup {
  std::string stack;
  uint64_t index = 0;             // within its stack
  std::vector<uint32_t> tensors;  // indices into the span given, sorted by name
};

struct LayerAssignment {
  // layers[i] is layer_i: stacks one after the other (encoder, then decoder, else by name), indices
  // ascending. An index missing within a stack (0, 1, 3) is not given a number: numbering is dense.
  std::vector<LayerGroup> layers;
  std::vector<uint32_t> non_layer;  // sorted by name
};

LayerAssignment assign_layers(std::span<const TensorInfo> tensors);

// AirLLM's view: every dotted prefix that owns tensors, for example "model.embed_tokens",
// "model.layers.0", "model.norm", "lm_head". A layer's prefix owns everything below it; any other
// dotted prefix owns the tensors whose name starts with prefix + ".". Returns the indices sorted by
// name, empty when the prefix owns nothing.
std::vector<uint32_t> tensors_of_prefix(std::span<const TensorInfo> tensors,
                                        std::string_view prefix);

}  // namespace nexus
