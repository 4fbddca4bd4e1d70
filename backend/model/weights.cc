#include "backend/model/weights.h"

#include <algorithm>
#include <set>

namespace nexus {

namespace {

std::string base_of(const std::string& path) {
  return path.substr(directory_of(path).size());
}

bool has_prefix(const std::string& text, const char* prefix) {
  return text.starts_with(prefix);
}

// Files of one kind in one directory: the model's own shards when there are any, else all of them.
std::vector<uint32_t> shards_in(const Snapshot& snapshot, const std::string& directory,
                                const std::string& suffix,
                                const std::vector<std::string>& own_prefixes) {
  std::vector<uint32_t> own, all;
  for (uint32_t i = 0; i < snapshot.files.size(); ++i) {
    const std::string& path = snapshot.files[i].path;
    if (directory_of(path) != directory || !path.ends_with(suffix)) continue;
    const std::string base = base_of(path);
    if (has_prefix(base, "adapter") || has_prefix(base, "consolidated") ||
        has_prefix(base, "training_args")) {
      continue;
    }
    all.push_back(i);
    if (std::any_of(own_prefixes.begin(), own_prefixes.end(),
                    [&](const std::string& prefix) { return base.starts_with(prefix); })) {
      own.push_back(i);
    }
  }
  std::vector<uint32_t>& chosen = own.empty() ? all : own;
  // "model.safetensors" beside "model-00001-of-00002.safetensors" is the same model twice.
  const std::string single = own_prefixes.front() + suffix;
  const bool sharded = std::any_of(chosen.begin(), chosen.end(), [&](uint32_t i) {
    return base_of(snapshot.files[i].path).find("-of-") != std::string::npos;
  });
  if (sharded) {
    std::erase_if(chosen, [&](uint32_t i) {
      return base_of(snapshot.files[i].path).find("-of-") == std::string::npos;
    });
  } else {
    for (const uint32_t i : chosen) {
      if (base_of(snapshot.files[i].path) == single) return {i};
    }
  }
  return chosen;
}

// Directories to look in: the top first, then by bytes of such files, most first.
std::vector<std::string> directories_by_bytes(const Snapshot& snapshot, const std::string& suffix) {
  std::map<std::string, uint64_t> bytes;
  for (const OriginFile& file : snapshot.files) {
    if (file.path.ends_with(suffix)) bytes[directory_of(file.path)] += file.size;
  }
  std::vector<std::pair<std::string, uint64_t>> sorted(bytes.begin(), bytes.end());
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    if (a.first.empty() != b.first.empty()) return a.first.empty();
    return a.second > b.second;
  });
  std::vector<std::string> names;
  for (const auto& [name, size] : sorted) names.push_back(name);
  return names;
}

std::optional<uint32_t> index_in(const Snapshot& snapshot, const std::string& directory,
                                 const std::string& suffix) {
  std::optional<uint32_t> found;
  for (uint32_t i = 0; i < snapshot.files.size(); ++i) {
    const std::string& path = snapshot.files[i].path;
    if (directory_of(path) != directory || !path.ends_with(suffix + ".index.json")) continue;
    // model.safetensors.index.json before model.fp16.safetensors.index.json
    if (!found || path.size() < snapshot.files[*found].path.size()) found = i;
  }
  return found;
}

}  // namespace

std::string directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

WeightFiles choose_weight_files(const Snapshot& snapshot) {
  WeightFiles chosen;
  if (snapshot.pre_split) return chosen;
  const struct {
    WeightKind kind;
    std::string suffix;
    std::vector<std::string> prefixes;
  } kinds[] = {
      {WeightKind::kSafetensors, ".safetensors", {"model", "diffusion_pytorch_model"}},
      {WeightKind::kTorch, ".bin", {"pytorch_model", "diffusion_pytorch_model"}},
  };
  for (const auto& kind : kinds) {
    for (const std::string& directory : directories_by_bytes(snapshot, kind.suffix)) {
      auto files = shards_in(snapshot, directory, kind.suffix, kind.prefixes);
      // Other .bin files (tokenizers, ONNX blobs) are no checkpoints.
      if (kind.kind == WeightKind::kTorch) {
        std::erase_if(files, [&](uint32_t i) {
          return base_of(snapshot.files[i].path).find("pytorch_model") == std::string::npos;
        });
      }
      if (files.empty()) continue;
      return {kind.kind, std::move(files), index_in(snapshot, directory, kind.suffix)};
    }
  }
  return chosen;
}

ModelTensors gather_tensors(const Snapshot& snapshot, const WeightFiles& files,
                            const std::map<uint32_t, WeightHeader>& headers,
                            const std::map<std::string, std::string>* weight_map,
                            const std::string& directory) {
  ModelTensors model;
  std::map<std::string, uint32_t> file_of;  // tensor -> file it was taken from
  std::set<std::string> seen_files;
  for (const uint32_t file : files.files) {
    const std::string& path = snapshot.files[file].path;
    seen_files.insert(path);
    const auto header = headers.find(file);
    if (header == headers.end()) continue;
    if (!header->second.error.empty()) {
      model.complaints.push_back(path + ": " + header->second.error);
      if (!weight_map) model.unknown = path + ": " + header->second.error;
      continue;
    }
    for (const TensorInfo& tensor : header->second.tensors) {
      // The index says which of two files a tensor is taken from.
      if (weight_map) {
        auto entry = weight_map->find(tensor.name);
        if (entry != weight_map->end() && directory + entry->second != path) continue;
      }
      auto [place, fresh] = file_of.emplace(tensor.name, file);
      if (!fresh) {
        model.complaints.push_back(path + ": tensor " + tensor.name + " is also in " +
                                   snapshot.files[place->second].path + ", which is used");
        continue;
      }
      model.tensors.push_back(tensor);
      model.tensors.back().file = file;
      model.missing.emplace_back();
    }
  }
  if (weight_map) {
    std::set<std::string> reported;
    for (const auto& [name, base] : *weight_map) {
      if (file_of.count(name)) continue;
      const std::string path = directory + base;
      std::string why;
      if (!seen_files.count(path)) {
        why = "the index names " + path + ", which is not in the repo";
      } else {
        why = "tensor " + name + ": " + path + " does not hold it, though the index says so";
        for (const auto& [file, header] : headers) {
          if (snapshot.files[file].path == path && !header.error.empty()) {
            why = path + ": " + header.error;
          }
        }
      }
      if (reported.insert(why).second) model.complaints.push_back(why);
      TensorInfo absent;
      absent.name = name;
      model.tensors.push_back(std::move(absent));
      model.missing.push_back(std::move(why));
    }
  }
  model.assignment = assign_layers(model.tensors);
  std::sort(model.complaints.begin(), model.complaints.end());
  model.complaints.erase(std::unique(model.complaints.begin(), model.complaints.end()),
                         model.complaints.end());
  return model;
}

}  // namespace nexus
