// The tree of a model: the origin's files, and the views by name.
#include <algorithm>
#include <cstdint>

#include "backend/model/loaded_model.h"

namespace nexus {

namespace {

constexpr char kLayersDir[] = "layers";
constexpr char kAirllmDir[] = "splitted_model";
constexpr char kSafetensors[] = ".safetensors";
constexpr char kDone[] = ".done";
constexpr char kTorchKind[] = "pt";  // kinds are parts of object keys
constexpr char kSafetensorsKind[] = "st";

bool strip_suffix(std::string& text, const std::string& suffix) {
  if (!text.ends_with(suffix)) return false;
  text.resize(text.size() - suffix.size());
  return true;
}

// N of "layer_N": decimal, no leading zeros, so that each file has one name.
std::optional<size_t> layer_number(const std::string& stem) {
  constexpr std::string_view kPrefix = "layer_";
  if (!stem.starts_with(kPrefix)) return std::nullopt;
  const std::string digits = stem.substr(kPrefix.size());
  if (digits.empty() || digits.size() > 6 ||
      digits.find_first_not_of("0123456789") != std::string::npos ||
      (digits.size() > 1 && digits[0] == '0')) {
    return std::nullopt;
  }
  return std::stoul(digits);
}

// Whether the name of a file could be a view at all; others are absent without waiting for headers.
bool may_be_view(const std::string& path) {
  if (path == kLayersDir || path == kAirllmDir) return true;
  if (std::count(path.begin(), path.end(), '/') > 1) return false;
  if (path.starts_with(std::string(kLayersDir) + "/")) return path.ends_with(kSafetensors);
  if (path.starts_with(std::string(kAirllmDir) + "/")) {
    return path.ends_with(kSafetensors) || path.ends_with(std::string(kSafetensors) + kDone);
  }
  std::string stem = path;
  return strip_suffix(stem, ".pt") && (stem == "non_layer" || layer_number(stem));
}

ModelNode directory_node(const std::string& path, bool listed) {
  ModelNode node;
  node.directory = true;
  node.path = path;
  node.listed = listed;
  return node;
}

}  // namespace

ModelNode LoadedModel::origin_node(uint32_t file, const Layout* layout) const {
  const OriginFile& origin_file = source_->snapshot.files[file];
  ModelNode node;
  node.path = origin_file.path;
  node.size = origin_file.size;
  node.error = origin_file.error;
  node.object = cache_.object(blob_spec(source_, file));
  if (source_->snapshot.pre_split) {
    std::string stem = origin_file.path;
    if (strip_suffix(stem, ".pt")) {
      if (const auto number = layer_number(stem)) node.layer = static_cast<int>(*number);
    }
  }
  if (node.path.ends_with(".gguf")) {
    node.note = node.path + ": GGUF is served as a plain file; it has no layer views";
  }
  if (!layout) return node;
  if (auto it = layout->file_errors.find(file); it != layout->file_errors.end()) {
    if (node.error.empty()) node.error = it->second;
  }
  if (auto it = layout->file_notes.find(file); it != layout->file_notes.end()) {
    node.note = it->second;
  }
  if (is_weight_.count(file)) {
    node.tensors = static_cast<uint64_t>(
        std::count_if(layout->model.tensors.begin(), layout->model.tensors.end(),
                      [file](const TensorInfo& tensor) { return tensor.file == file; }));
  }
  return node;
}

std::optional<ModelNode> LoadedModel::put_node(const std::string& path) const {
  if (revision() != "main") return std::nullopt;
  auto object = cache_.find_put(asked_repo_, path);
  if (!object) return std::nullopt;
  ModelNode node;
  node.path = path;
  node.size = object->size();
  std::string stem = path;
  if (strip_suffix(stem, ".pt")) {
    if (const auto number = layer_number(stem)) node.layer = static_cast<int>(*number);
  }
  node.object = std::move(object);
  return node;
}

FindResult LoadedModel::find(const std::string& path) {
  if (path.empty()) return {FindState::kFound, directory_node("", true)};
  if (auto put = put_node(path)) return {FindState::kFound, std::move(*put)};
  if (auto it = by_path_.find(path); it != by_path_.end()) {
    if (!is_weight_.count(it->second)) {
      return {FindState::kFound, origin_node(it->second, nullptr)};
    }
    // A shard's header decides whether it may be read at all.
    auto layout = ready_layout();
    if (!layout) return {FindState::kPending, {}};
    return {FindState::kFound, origin_node(it->second, layout.get())};
  }
  if (directories_.count(path)) return {FindState::kFound, directory_node(path, true)};
  if (weights_.kind == WeightKind::kNone || !may_be_view(path)) return {};
  auto layout = ready_layout();
  if (!layout) return {FindState::kPending, {}};
  if (auto node = view(path, *layout)) return {FindState::kFound, std::move(*node)};
  if (layout->transient && path != kLayersDir && path != kAirllmDir) {
    // Whether there is such a layer is not known while the origin does not tell.
    ModelNode node;
    node.path = path;
    node.listed = false;
    node.error = layout->model.unknown.empty() ? "the model's headers could not be read"
                                               : layout->model.unknown;
    return {FindState::kFound, std::move(node)};
  }
  return {};
}

std::optional<ModelNode> LoadedModel::view(const std::string& path, const Layout& layout) {
  const auto& assignment = layout.model.assignment;
  if (assignment.layers.empty() && assignment.non_layer.empty()) return std::nullopt;
  if (path == kLayersDir || path == kAirllmDir) {
    return directory_node(path, options_.list_views && !directories_.count(path));
  }
  std::string stem = path.substr(directory_of(path).size());
  if (directory_of(path).empty()) {
    strip_suffix(stem, ".pt");
    if (stem == "non_layer") return layout.non_layer;
    const auto number = layer_number(stem);
    if (!number || *number >= layout.layers.size()) return std::nullopt;
    return layout.layers[*number];
  }
  if (path.starts_with(std::string(kLayersDir) + "/")) {
    strip_suffix(stem, kSafetensors);
    if (stem == "non_layer") return safetensors_node(path, -1, assignment.non_layer, layout);
    const auto number = layer_number(stem);
    if (!number || *number >= assignment.layers.size()) return std::nullopt;
    return safetensors_node(path, static_cast<int>(*number), assignment.layers[*number].tensors,
                            layout);
  }
  const bool done = strip_suffix(stem, kDone);
  strip_suffix(stem, kSafetensors);
  // AirLLM takes M.mmap for a table of its own; no module is called that.
  const auto tensors = tensors_of_prefix(layout.model.tensors, stem);
  if (tensors.empty()) return std::nullopt;
  if (done) {
    ModelNode node;
    node.path = path;
    return node;
  }
  const auto position = layer_position(layout.model.tensors[tensors.front()].name);
  int layer = -1;
  for (size_t i = 0; position && i < assignment.layers.size(); ++i) {
    const LayerGroup& group = assignment.layers[i];
    if (group.index == position->index && group.stack == position->stack) {
      layer = static_cast<int>(i);
    }
  }
  return safetensors_node(path, layer, tensors, layout);
}

std::string LoadedModel::tensor_error(const std::vector<uint32_t>& tensors,
                                      const Layout& layout) const {
  for (const uint32_t tensor : tensors) {
    if (!layout.model.missing[tensor].empty()) return layout.model.missing[tensor];
  }
  return layout.model.unknown;
}

void LoadedModel::attach(ModelNode& node, const std::string& kind, ObjectLayout object_layout,
                         const Layout& layout) {
  ObjectSpec spec;
  spec.key = view_key(kind, *source_, object_layout);
  spec.model = source_->snapshot.repo;
  spec.name = source_->snapshot.repo + "@" + commit() + "/" + node.path;
  spec.source = source_;
  spec.whole = kind == kTorchKind || object_layout.size <= kChunkBytes;
  std::set<uint32_t> files;
  for (const Extent& extent : object_layout.extents) files.insert(extent.file);
  for (const uint32_t file : files) {
    const auto& digests = layout.digests.at(file);
    spec.headers.insert(spec.headers.end(), digests.begin(), digests.end());
  }
  spec.layout = std::move(object_layout);
  node.size = spec.layout.size;
  node.object = cache_.object(std::move(spec));
}

ModelNode LoadedModel::torch_node(const std::string& name, int layer,
                                  const std::vector<uint32_t>& tensors, const Layout& layout) {
  ModelNode node;
  node.path = name + ".pt";
  node.layer = layer;
  node.tensors = tensors.size();
  node.error = tensor_error(tensors, layout);
  if (!node.error.empty()) return node;
  std::vector<TensorInfo> chosen;
  for (const uint32_t tensor : tensors) chosen.push_back(layout.model.tensors[tensor]);
  auto object_layout = torch_layer_layout(name, chosen);
  if (!object_layout) {
    node.error = object_layout.error().what;
    return node;
  }
  attach(node, kTorchKind, std::move(*object_layout), layout);
  return node;
}

ModelNode LoadedModel::safetensors_node(const std::string& path, int layer,
                                        const std::vector<uint32_t>& tensors,
                                        const Layout& layout) {
  ModelNode node;
  node.path = path;
  node.layer = layer;
  node.tensors = tensors.size();
  node.listed = options_.list_views;
  node.error = tensor_error(tensors, layout);
  if (!node.error.empty()) return node;
  std::vector<TensorInfo> chosen;
  for (const uint32_t tensor : tensors) chosen.push_back(layout.model.tensors[tensor]);
  auto object_layout = safetensors_layer_layout(chosen);
  if (!object_layout) {
    node.error = object_layout.error().what;
    return node;
  }
  attach(node, kSafetensorsKind, std::move(*object_layout), layout);
  return node;
}

// What AirLLM would split the model into: a module a layer, and one for each of the others.
std::vector<std::string> LoadedModel::airllm_modules(const Layout& layout) const {
  std::set<std::string> modules;
  for (const LayerGroup& group : layout.model.assignment.layers) {
    modules.insert(group.stack + "." + std::to_string(group.index));
  }
  for (const uint32_t tensor : layout.model.assignment.non_layer) {
    const std::string& name = layout.model.tensors[tensor].name;
    const size_t dot = name.rfind('.');
    if (dot != std::string::npos) modules.insert(name.substr(0, dot));
  }
  return {modules.begin(), modules.end()};
}

std::vector<ModelNode> LoadedModel::list_view(const std::string& directory, const Layout& layout) {
  std::vector<std::string> names;
  const auto& assignment = layout.model.assignment;
  if (directory == kLayersDir) {
    for (size_t i = 0; i < assignment.layers.size(); ++i) {
      names.push_back("layer_" + std::to_string(i) + kSafetensors);
    }
    if (layout.non_layer) names.push_back(std::string("non_layer") + kSafetensors);
  } else if (directory == kAirllmDir) {
    for (const std::string& module : airllm_modules(layout)) {
      names.push_back(module + kSafetensors);
      names.push_back(module + kSafetensors + kDone);
    }
  }
  std::vector<ModelNode> nodes;
  for (const std::string& name : names) {
    const std::string path = directory + "/" + name;
    if (by_path_.count(path)) continue;
    if (auto node = view(path, layout)) {
      node->listed = true;  // whoever opens the directory itself sees what is in it
      nodes.push_back(std::move(*node));
    }
  }
  return nodes;
}

std::optional<std::vector<ModelNode>> LoadedModel::list(const std::string& directory) {
  std::shared_ptr<const Layout> layout = ready_layout();
  if (!layout) return std::nullopt;
  std::map<std::string, ModelNode> nodes;
  const std::string prefix = directory.empty() ? "" : directory + "/";
  for (auto it = by_path_.lower_bound(prefix); it != by_path_.end(); ++it) {
    if (!it->first.starts_with(prefix)) break;
    if (it->first.find('/', prefix.size()) != std::string::npos) continue;
    nodes.emplace(it->first, origin_node(it->second, layout.get()));
  }
  for (const std::string& path : directories_) {
    if (directory_of(path) == prefix) nodes.emplace(path, directory_node(path, true));
  }
  if (directory.empty()) {
    for (const std::string& path : cache_.put_files(asked_repo_)) {
      if (auto node = put_node(path)) nodes.insert_or_assign(path, std::move(*node));
    }
    for (const ModelNode& layer : layout->layers) nodes.emplace(layer.path, layer);
    if (layout->non_layer) nodes.emplace(layout->non_layer->path, *layout->non_layer);
    for (const char* view_directory : {kLayersDir, kAirllmDir}) {
      if (auto node = view(view_directory, *layout)) nodes.emplace(view_directory, *node);
    }
  } else {
    for (ModelNode& node : list_view(directory, *layout)) {
      std::string path = node.path;
      nodes.emplace(std::move(path), std::move(node));
    }
  }
  std::vector<ModelNode> listed;
  for (auto& [path, node] : nodes) {
    if (node.listed) listed.push_back(std::move(node));
  }
  return listed;
}

}  // namespace nexus
