// A layer's .pt file made from tensors in memory, and one mapped to be read.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/store/object_file.h"
#include "tools/common/control_client.h"
#include "tools/libnexuscache/include/nexus/cache.h"

namespace nexus::tools {

// A sealed memfd with the file of these tensors. kInvalid names the tensor that cannot be stored.
Result<std::shared_ptr<const Descriptor>> make_layer_file(
    const std::string& name, const std::vector<nexus::cache::Tensor>& tensors);

// Maps what the owner lent. `lease` is the connection that keeps it in the cache.
Result<nexus::cache::LayerPtr> map_layer(const std::string& name, const Descriptor& file,
                                         ControlClient lease);

}  // namespace nexus::tools
