// Which files of a repo hold the model's tensors, and what follows from their headers: the layers,
// with whatever is wrong with each. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "backend/format/layer_names.h"
#include "backend/format/tensor.h"
#include "backend/origin/origin.h"

namespace nexus {

enum class WeightKind { kNone, kSafetensors, kTorch };

struct WeightFiles {
  WeightKind kind = WeightKind::kNone;
  std::vector<uint32_t> files;    // into snapshot.files, by path
  std::optional<uint32_t> index;  // *.index.json beside them
};

// safetensors before torch checkpoints; the repo's top directory before the subdirectory that holds
// most bytes (diffusers). Within a directory: the model's shards (model*.safetensors) before other
// names, so that adapters and consolidated copies are not taken twice.
WeightFiles choose_weight_files(const Snapshot& snapshot);

// What was read of one weight file.
struct WeightHeader {
  std::vector<TensorInfo> tensors;  // file set
  std::string error;                // not empty: no tensors, and why
};

struct ModelTensors {
  std::vector<TensorInfo> tensors;
  // Parallel to tensors: why the tensor cannot be had, "" where it can.
  std::vector<std::string> missing;
  LayerAssignment assignment;
  std::vector<std::string> complaints;  // about the model as a whole
  // Not empty: a file's tensors are unknown and no index tells what they are, so no layer is known
  // to be whole.
  std::string unknown;
};

// `weight_map` is the index's tensor -> file name, when there is an index that could be read. Names
// in it are relative to the index's directory `directory` ("" or ending in '/').
ModelTensors gather_tensors(const Snapshot& snapshot, const WeightFiles& files,
                            const std::map<uint32_t, WeightHeader>& headers,
                            const std::map<std::string, std::string>* weight_map,
                            const std::string& directory);

// "dir/" of "dir/file", "" of "file".
std::string directory_of(const std::string& path);

}  // namespace nexus
