#include "tools/common/model_words.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <string_view>

#include "tools/common/size.h"

namespace nexus::tools {
namespace {

constexpr int kLayersMax = 100'000;

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || text.empty()) return {};
  if (value < 0 || value > kLayersMax) return {};
  return value;
}

}  // namespace

std::string file_of_layer(const std::string& layer) {
  if (layer == "non_layer") return "non_layer.pt";
  if (const auto n = number(layer)) return "layer_" + std::to_string(*n) + ".pt";
  return layer;
}

Result<std::vector<std::string>> files_of_layers(const std::string& layers) {
  std::vector<std::string> files;
  std::set<std::string> seen;
  const auto add = [&](const std::string& file) {
    if (seen.insert(file).second) files.push_back(file);
  };
  for (size_t start = 0; start <= layers.size();) {
    const size_t end = std::min(layers.find(',', start), layers.size());
    const std::string part = layers.substr(start, end - start);
    start = end + 1;
    const size_t dash = part.find('-');
    const auto first = number(part.substr(0, dash));
    const auto last = dash == std::string::npos ? first : number(part.substr(dash + 1));
    if (first && last && *first <= *last) {
      for (int n = *first; n <= *last; ++n) add(file_of_layer(std::to_string(n)));
    } else if (!part.empty() && !first) {
      add(file_of_layer(part));
    } else {
      return fail(Code::kInvalid, "layers '" + printable(layers) +
                                      "': expected numbers and ranges, such as 0-3,7,non_layer");
    }
  }
  return files;
}

Result<std::string> complete_model_name(const std::string& model,
                                        const std::vector<std::string>& known) {
  const std::set<std::string> repos(known.begin(), known.end());
  if (model.find('/') != std::string::npos || repos.contains(model)) return model;
  std::vector<std::string> fits;
  for (const std::string& repo : repos) {
    if (repo.ends_with("/" + model)) fits.push_back(repo);
  }
  if (fits.size() == 1) return fits.front();
  if (fits.empty()) return model;
  std::string all;
  for (const std::string& repo : fits) all += (all.empty() ? "" : ", ") + repo;
  return fail(Code::kInvalid, "'" + printable(model) + "' may be any of " + all);
}

}  // namespace nexus::tools
