// The door through which fs/ tells read-ahead what readers do.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/model/model.h"

namespace nexus::prefetch {

// Thread safety: called from any thread. Cheap; never waits.
class LayerEvents {
 public:
  virtual ~LayerEvents() = default;
  // A reader came to a layer: it opened the layer's file, or read more than a probe of its bytes.
  // `here`: all of them were here when it came.
  virtual void on_layer(const std::shared_ptr<Model>& model, LayerView view, int layer,
                        bool here) = 0;
  // A reader opened a file of several layers, in the order of its bytes, of which all are here: what is read of them will
  // not be seen.
  virtual void on_file(const std::shared_ptr<Model>& model, LayerView view, std::vector<int> layers) = 0;
};

}  // namespace nexus::prefetch
