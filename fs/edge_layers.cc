// Telling read-ahead which layers readers come to: by opening a layer's file, or by reading more
// than a probe of its bytes. What the kernel serves by passthrough is seen at its open alone.
#include <algorithm>
#include <vector>

#include "fs/edge.h"

namespace nexus::fs {

std::shared_ptr<const FileLayers> Edge::layers_of(const Node& node) const {
  if (!options_.layer_events || !node.model) return nullptr;
  auto access = node.model->layer_access(node.entry);
  if (!access) return nullptr;
  return std::make_shared<const FileLayers>(FileLayers{node.model, std::move(*access)});
}

// The file is read whole, or the kernel reads it: its reads will not be seen.
void Edge::layer_opened(const FileLayers* layers, bool here) {
  if (!layers) return;
  const LayerAccess& access = layers->access;
  if (access.layer >= 0) {
    options_.layer_events->on_layer(layers->model, access.view, access.layer, here);
  } else if (here) {
    std::vector<int> held;
    for (const LayerSpan& span : *access.spans) {
      if (std::find(held.begin(), held.end(), span.layer) == held.end()) held.push_back(span.layer);
    }
    if (!held.empty()) options_.layer_events->on_file(layers->model, access.view, std::move(held));
  }
}

void Edge::layer_read(const FileLayers* layers, ObjectUse& use, ByteRange range) {
  if (!layers || use.object->spec().whole) return;
  const LayerSpans& spans = *layers->access.spans;
  std::vector<int> reached;
  {
    std::lock_guard lock(use.mutex);
    reached = use.meter.on_read(spans, range);
  }
  if (reached.empty()) return;
  const auto file = use.object->file();
  for (const int layer : reached) {
    const bool here =
        file && std::all_of(spans.begin(), spans.end(), [&](const LayerSpan& span) {
          return span.layer != layer || file->has(ByteRange{span.begin, span.end - span.begin});
        });
    options_.layer_events->on_layer(layers->model, layers->access.view, layer, here);
  }
}

}  // namespace nexus::fs
