#include "backend/format/layer_names.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <unordered_map>

namespace nexus {
namespace {

// The words of formats.md's pattern that stand before a layer's index. Its `layers\.layers` needs
// no entry: the second word matches, and the stack is everything left of the index either way.
constexpr std::array<std::string_view, 9> kStackWords = {"layers",
                                                         "layer",
                                                         "h",
                                                         "block",
                                                         "blocks",
                                                         "decoder_layer",
                                                         "transformer_encoder",
                                                         "transformer_blocks",
                                                         "single_transformer_blocks"};

constexpr std::array<std::string_view, 3> kOtherModalities = {"vision", "visual", "audio"};

constexpr size_t kIndexDigitsMax = 5;  // 99,999

bool is_stack_word(std::string_view component) {
  return std::find(kStackWords.begin(), kStackWords.end(), component) != kStackWords.end();
}

bool is_number(std::string_view component) {
  return !component.empty() && std::all_of(component.begin(), component.end(),
                                           [](char c) { return c >= '0' && c <= '9'; });
}

// Calls visit(component) for each dotted part until it returns true; whether it did.
template <typename Visit>
bool any_component(std::string_view dotted, Visit visit) {
  while (true) {
    const size_t dot = dotted.find('.');
    if (visit(dotted.substr(0, dot))) return true;
    if (dot == std::string_view::npos) return false;
    dotted.remove_prefix(dot + 1);
  }
}

// "vision_tower", "visual", "embed_vision", but not "division".
bool is_other_modality(std::string_view component) {
  for (const std::string_view word : kOtherModalities) {
    for (size_t at = component.find(word); at != std::string_view::npos;
         at = component.find(word, at + 1)) {
      if (at == 0 || component[at - 1] == '_') return true;
    }
  }
  return false;
}

struct Match {
  std::string_view stack;
  uint64_t index = 0;
};

std::optional<Match> match_layer(std::string_view name) {
  size_t begin = 0;  // of the component that may be a stack word
  while (true) {
    const size_t dot = name.find('.', begin);
    if (dot == std::string_view::npos) return std::nullopt;
    const size_t index_end = name.find('.', dot + 1);
    if (index_end == std::string_view::npos) return std::nullopt;
    std::string_view digits = name.substr(dot + 1, index_end - dot - 1);
    if (!is_stack_word(name.substr(begin, dot - begin)) || !is_number(digits)) {
      begin = dot + 1;
      continue;
    }
    const std::string_view stack = name.substr(0, dot);
    if (any_component(stack, is_other_modality)) return std::nullopt;
    digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size()));
    if (digits.size() > kIndexDigitsMax) return std::nullopt;
    Match match{stack, 0};
    for (const char c : digits) match.index = match.index * 10 + static_cast<uint64_t>(c - '0');
    return match;
  }
}

// Encoder, then decoder, then the rest.
int stack_rank(std::string_view stack) {
  int rank = 2;
  any_component(stack, [&rank](std::string_view component) {
    if (component.find("encoder") != std::string_view::npos) rank = 0;
    if (component.find("decoder") != std::string_view::npos) rank = 1;
    return rank != 2;
  });
  return rank;
}

void sort_by_name(std::vector<uint32_t>& indices, std::span<const TensorInfo> tensors) {
  std::sort(indices.begin(), indices.end(), [tensors](uint32_t a, uint32_t b) {
    return std::tie(tensors[a].name, a) < std::tie(tensors[b].name, b);
  });
}

}  // namespace

std::optional<LayerPosition> layer_position(std::string_view tensor_name) {
  const std::optional<Match> match = match_layer(tensor_name);
  if (!match) return std::nullopt;
  return LayerPosition{std::string(match->stack), match->index};
}

LayerAssignment assign_layers(std::span<const TensorInfo> tensors) {
  using Stack = std::map<uint64_t, std::vector<uint32_t>>;
  std::unordered_map<std::string_view, Stack> stacks;
  LayerAssignment assignment;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    if (const std::optional<Match> match = match_layer(tensors[i].name)) {
      stacks[match->stack][match->index].push_back(i);
    } else {
      assignment.non_layer.push_back(i);
    }
  }
  std::vector<std::tuple<int, std::string_view, Stack*>> order;
  for (auto& [name, stack] : stacks) order.emplace_back(stack_rank(name), name, &stack);
  std::sort(order.begin(), order.end());
  for (const auto& [rank, name, stack] : order) {
    for (auto& [index, members] : *stack) {
      sort_by_name(members, tensors);
      assignment.layers.push_back({std::string(name), index, std::move(members)});
    }
  }
  sort_by_name(assignment.non_layer, tensors);
  return assignment;
}

std::vector<uint32_t> tensors_of_prefix(std::span<const TensorInfo> tensors,
                                        std::string_view prefix) {
  std::vector<uint32_t> owned;
  if (prefix.empty()) return owned;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].name;
    if (name.size() > prefix.size() && name.starts_with(prefix) && name[prefix.size()] == '.') {
      owned.push_back(i);
    }
  }
  sort_by_name(owned, tensors);
  return owned;
}

}  // namespace nexus
