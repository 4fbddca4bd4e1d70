// Which layers the bytes of a model's files belong to, for read-ahead by layers.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/cache/object.h"

namespace nexus {

// The formats that a layer can be read in. Read-ahead stays in the one that the reader uses.
enum class LayerView {
  kTorch,        // layer_N.pt
  kSafetensors,  // layers/layer_N.safetensors
  kAirllm,       // splitted_model/<stack>.<N>.safetensors
  kShards,       // the layer's tensors in the origin's files
};

// [begin, end) of a file holds tensors of one layer.
struct LayerSpan {
  uint64_t begin = 0, end = 0;
  int layer = 0;
};
using LayerSpans = std::vector<LayerSpan>;  // ascending, not overlapping

// What opening a file means for the walk over its model's layers.
struct LayerAccess {
  LayerView view = LayerView::kTorch;
  int layer = -1;  // of a file that is one layer; -1: see the spans
  std::shared_ptr<const LayerSpans> spans;
};

// A part of an object that belongs to a layer.
struct LayerPiece {
  std::shared_ptr<Object> object;
  ByteRange range;
};

}  // namespace nexus
