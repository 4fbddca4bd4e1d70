// What read-ahead asks a model: whose layer a file's bytes are, and where a layer's bytes lie.
#include <algorithm>
#include <cstdint>

#include "backend/model/loaded_model.h"

namespace nexus {

namespace {
// Tensors of one layer are joined over gaps like these: padding, or a small tensor kept elsewhere.
constexpr uint64_t kGapMax = 64 << 10;

std::string layer_stem(int layer) {
  return "layer_" + std::to_string(layer);
}
}  // namespace

std::map<uint32_t, std::shared_ptr<const LayerSpans>> layer_spans_of(const ModelTensors& model) {
  std::map<uint32_t, LayerSpans> by_file;
  for (size_t layer = 0; layer < model.assignment.layers.size(); ++layer) {
    for (const uint32_t index : model.assignment.layers[layer].tensors) {
      const TensorInfo& tensor = model.tensors[index];
      if (!model.missing[index].empty() || tensor.end <= tensor.begin) continue;
      by_file[tensor.file].push_back({tensor.begin, tensor.end, static_cast<int>(layer)});
    }
  }
  std::map<uint32_t, std::shared_ptr<const LayerSpans>> result;
  for (auto& [file, spans] : by_file) {
    std::sort(spans.begin(), spans.end(),
              [](const LayerSpan& a, const LayerSpan& b) { return a.begin < b.begin; });
    auto joined = std::make_shared<LayerSpans>();
    for (LayerSpan span : spans) {
      if (!joined->empty()) {
        LayerSpan& last = joined->back();
        // Tied weights: the same bytes under two names belong to the first.
        span.begin = std::max(span.begin, last.end);
        if (span.begin >= span.end) continue;
        if (last.layer == span.layer && span.begin - last.end <= kGapMax) {
          last.end = span.end;
          continue;
        }
      }
      joined->push_back(span);
    }
    result.emplace(file, std::move(joined));
  }
  return result;
}

int LoadedModel::layer_count() const {
  if (source_->snapshot.pre_split) {
    int count = 0;
    while (by_path_.count(layer_stem(count) + ".pt")) ++count;
    return count;
  }
  std::lock_guard lock(mutex_);
  return layout_ ? static_cast<int>(layout_->layers.size()) : 0;
}

std::vector<int> LoadedModel::file_order() const {
  std::shared_ptr<const Layout> layout;
  {
    std::lock_guard lock(mutex_);
    layout = layout_;
  }
  std::vector<int> order;
  if (!layout) return order;
  std::vector<bool> seen(layout->layers.size());
  for (const auto& [file, spans] : layout->spans) {  // files by number are files by name
    for (const LayerSpan& span : *spans) {
      const auto layer = static_cast<size_t>(span.layer);
      if (layer >= seen.size() || seen[layer]) continue;
      seen[layer] = true;
      order.push_back(span.layer);
    }
  }
  return order;
}

std::optional<LayerAccess> LoadedModel::layer_access(const ModelNode& node) const {
  if (!node.object) return std::nullopt;
  if (node.layer < 0) {
    const auto file = by_path_.find(node.path);
    if (file == by_path_.end() || !is_weight_.count(file->second)) return std::nullopt;
    std::lock_guard lock(mutex_);
    if (!layout_) return std::nullopt;
    const auto spans = layout_->spans.find(file->second);
    if (spans == layout_->spans.end()) return std::nullopt;
    return LayerAccess{LayerView::kShards, -1, spans->second};
  }
  LayerAccess access;
  access.layer = node.layer;
  const std::string directory = directory_of(node.path);
  if (directory == "layers/") {
    access.view = LayerView::kSafetensors;
  } else if (!directory.empty()) {
    access.view = LayerView::kAirllm;
    // A part of a layer under a longer prefix says nothing of what is read next.
    if (airllm_path(node.layer) != node.path) return std::nullopt;
  }
  // Reading the header alone is no use of the layer.
  const auto& extents = node.object->spec().layout.extents;
  const uint64_t begin = extents.empty() ? 0 : extents.front().dest;
  access.spans = std::make_shared<LayerSpans>(LayerSpans{{begin, node.object->size(), node.layer}});
  return access;
}

std::string LoadedModel::airllm_path(int layer) const {
  std::lock_guard lock(mutex_);
  if (!layout_) return "";
  const auto& layers = layout_->model.assignment.layers;
  if (layer < 0 || static_cast<size_t>(layer) >= layers.size()) return "";
  const LayerGroup& group = layers[static_cast<size_t>(layer)];
  return "splitted_model/" + group.stack + "." + std::to_string(group.index) + ".safetensors";
}

std::vector<LayerPiece> LoadedModel::layer_pieces(LayerView view, int layer) {
  if (view == LayerView::kShards) {
    std::shared_ptr<const Layout> layout;
    {
      std::lock_guard lock(mutex_);
      layout = layout_;
    }
    std::vector<LayerPiece> pieces;
    if (!layout) return pieces;
    for (const auto& [file, spans] : layout->spans) {
      for (const LayerSpan& span : *spans) {
        if (span.layer != layer) continue;
        pieces.push_back(
            {cache_.object(blob_spec(source_, file)), {span.begin, span.end - span.begin}});
      }
    }
    return pieces;
  }
  std::string path;
  switch (view) {
    case LayerView::kTorch:
      path = layer_stem(layer) + ".pt";
      break;
    case LayerView::kSafetensors:
      path = "layers/" + layer_stem(layer) + ".safetensors";
      break;
    default:
      path = airllm_path(layer);
  }
  const FindResult found = find(path);
  if (found.state != FindState::kFound || !found.node.object || !found.node.error.empty()) {
    return {};
  }
  return {{found.node.object, {0, found.node.size}}};
}

}  // namespace nexus
