#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "tools/common/token.h"
#include "tools/libnexuscache/include/nexus/cache.h"
#include "tools/libnexuscache/layer_file.h"
#include "tools/libnexuscache/owner.h"

namespace nexus::tools {

namespace {

using nexus::cache::ErrorCode;
using nexus::cache::LayerCache;
using nexus::cache::LayerCachePtr;
using nexus::cache::LayerPtr;
using nexus::cache::Options;
using nexus::cache::Removed;
template <typename T>
using Outcome = nexus::cache::Result<T>;  // Result is ours

ErrorCode public_code(Code code) {
  switch (code) {
    case Code::kNotFound:
      return ErrorCode::not_found;
    case Code::kAccess:
      return ErrorCode::access;
    case Code::kOffline:
      return ErrorCode::offline;
    case Code::kOrigin:
    case Code::kStale:
      return ErrorCode::origin;
    case Code::kCorrupt:
      return ErrorCode::corrupt;
    case Code::kInvalid:
      return ErrorCode::invalid;
    case Code::kUnsupported:
      return ErrorCode::unsupported;
    case Code::kCancelled:
      return ErrorCode::cancelled;
    case Code::kNoSpace:
      return ErrorCode::no_space;
    case Code::kDisk:
      return ErrorCode::disk;
    case Code::kLimit:
      return ErrorCode::limit;
  }
  return ErrorCode::invalid;
}

nexus::cache::Error public_error(const Error& error) {
  return {public_code(error.code), error.what};
}

std::string layer_name(const std::string& model, int layer) {
  return model + "/layer_" + std::to_string(layer) + ".pt";
}

uint64_t number_in(const Json& json, const char* name) {
  return json.contains(name) && json[name].is_number() ? json[name].get<uint64_t>() : 0;
}

double value_in(const Json& json, const char* name) {
  return json.contains(name) && json[name].is_number() ? json[name].get<double>() : 0;
}

class Connected final : public LayerCache {
 public:
  Connected(Config config, std::string token, std::chrono::seconds timeout)
      : owner_(std::move(config), std::move(token)), timeout_(timeout) {}

  Result<void> reach() {
    auto client = owner_.connect();
    if (!client) return tl::unexpected(client.error());
    return {};
  }

  Outcome<LayerPtr> get_layer(const std::string& model_id, int layer_index,
                              const std::string& quantization_mode,
                              const std::string& device) override {
    if (device != "cpu") {
      return nexus::cache::Error{ErrorCode::unsupported,
                                 device + ": host tensors only; device tensors are libnexusgpu's"};
    }
    auto client = owner_.connect();
    if (!client) return public_error(client.error());
    auto answer =
        client->call(request("layer", model_id, layer_index, quantization_mode), timeout_);
    if (!answer) return public_error(answer.error());
    const auto file = client->take_descriptor();
    if (!file) return nexus::cache::Error{ErrorCode::limit, "no file came: too many are open"};
    auto layer = map_layer(layer_name(model_id, layer_index), *file, std::move(*client));
    if (!layer) return public_error(layer.error());
    return std::move(*layer);
  }

  Outcome<uint64_t> cache_layer(const std::string& model_id, int layer_index,
                                const std::vector<nexus::cache::Tensor>& tensors,
                                const std::string& quantization_mode) override {
    auto file = make_layer_file("layer_" + std::to_string(layer_index), tensors);
    if (!file) return public_error(file.error());
    auto client = owner_.connect();
    if (!client) return public_error(client.error());
    client->attach((*file)->get());
    auto answer = client->call(request("put", model_id, layer_index, quantization_mode), timeout_);
    if (!answer) return public_error(answer.error());
    return number_in(*answer, "size");
  }

  Outcome<uint64_t> download_and_cache(const std::string& model_id, int layer_index,
                                       const std::string& repo_id, const std::string& filename,
                                       const std::string& quantization_mode) override {
    Json asked = request("download", model_id, layer_index, quantization_mode);
    asked["repo"] = repo_id;
    asked["file"] = filename;
    auto answer = ask(asked);
    if (!answer) return public_error(answer.error());
    return number_in(*answer, "size");
  }

  Outcome<Removed> invalidate_cache(const std::optional<std::string>& model_id,
                                    std::optional<int> layer_index) override {
    if (!model_id && layer_index) {
      return nexus::cache::Error{ErrorCode::invalid, "a layer of which model?"};
    }
    Json asked = {{"command", "invalidate"}};
    if (model_id) {
      asked["model"] = *model_id;
    } else {
      asked["all"] = true;
    }
    if (layer_index) asked["layer"] = std::to_string(*layer_index);
    return removed(asked);
  }

  Outcome<Removed> clear_cache() override { return removed({{"command", "clear"}}); }

  Outcome<std::vector<std::string>> verify_cache_integrity() override {
    return corrupt({{"command", "verify"}});
  }
  Outcome<std::vector<std::string>> optimize_cache() override {
    return corrupt({{"command", "optimize"}});
  }

  Outcome<std::string> get_stats() override {
    auto stats = ask({{"command", "stats"}});
    if (!stats) return public_error(stats.error());
    return stats->dump();
  }

  Outcome<std::string> stats_text() override {
    auto stats = ask({{"command", "stats"}});
    if (!stats) return public_error(stats.error());
    const Json performance = stats->value("performance", Json::object());
    constexpr double kGb = 1e9;
    std::ostringstream out;
    out.precision(3);
    out << "disk cache:   " << number_in(*stats, "disk_cache_entries") << " entries, "
        << value_in(*stats, "disk_cache_size_gb") << " of "
        << value_in(*stats, "max_disk_cache_size_gb") << " GB\n"
        << "memory cache: " << number_in(*stats, "memory_cache_entries") << " entries, "
        << value_in(*stats, "memory_cache_size_gb") << " of "
        << value_in(*stats, "max_memory_cache_size_gb") << " GB\n"
        << "hits " << number_in(performance, "total_hits") << ", misses "
        << number_in(performance, "total_misses") << ", evictions "
        << number_in(performance, "total_evictions") << ", hit ratio "
        << value_in(performance, "cache_hit_ratio") << "\n"
        << "data downloaded: " << value_in(performance, "bytes_downloaded") / kGb
        << " GB, data served from cache: " << value_in(performance, "bytes_served_from_cache") / kGb
        << " GB\n";
    return out.str();
  }

  bool in_process() const override { return owner_.in_process(); }

 private:
  static Json request(const char* command, const std::string& model, int layer,
                      const std::string& quantization) {
    return {
        {"command", command}, {"model", model}, {"layer", layer}, {"quantization", quantization}};
  }

  Result<Json> ask(const Json& asked) {
    auto client = owner_.connect();
    if (!client) return tl::unexpected(client.error());
    return client->call(asked, timeout_);
  }

  Outcome<Removed> removed(const Json& asked) {
    auto answer = ask(asked);
    if (!answer) return public_error(answer.error());
    return Removed{number_in(*answer, "objects"), number_in(*answer, "bytes")};
  }

  Outcome<std::vector<std::string>> corrupt(const Json& asked) {
    auto answer = ask(asked);
    if (!answer) return public_error(answer.error());
    std::vector<std::string> names;
    for (const Json& name : answer->value("corrupt", Json::array())) {
      if (name.is_string()) names.push_back(name.get<std::string>());
    }
    return names;
  }

  CacheOwner owner_;
  const std::chrono::seconds timeout_;
};

Result<Config> config_of(const Options& options) {
  if (options.enable_compression) {
    return fail(Code::kUnsupported, "enable_compression: this version keeps layers as they are");
  }
  if (options.compression_level < 1 || options.compression_level > 9) {
    return fail(Code::kInvalid, "compression_level: 1 to 9");
  }
  if (options.timeout_s <= 0) return fail(Code::kInvalid, "timeout_s: at least 1");
  ConfigFlags flags;
  if (!options.config_file.empty()) flags.config_file = options.config_file;
  if (!options.cache_dir.empty()) flags.cache_dir = options.cache_dir;
  if (!options.endpoint.empty()) flags.endpoint = options.endpoint;
  flags.offline = options.offline;
  auto config = load_config(flags, process_environment());
  if (!config) return config;
  constexpr double kGb = 1e9;
  for (const auto& [size, into] :
       {std::pair{options.max_cache_size_gb, &config->max_cache_bytes},
        std::pair{options.max_memory_cache_size_gb, &config->max_memory_cache_bytes}}) {
    if (!size) continue;
    if (!(*size > 0 && *size < 1e9)) return fail(Code::kInvalid, "a cache size of no sense");
    *into = static_cast<uint64_t>(*size * kGb);
  }
  if (options.persist_metadata) config->persist_metadata = *options.persist_metadata;
  std::error_code error;
  const auto canonical = std::filesystem::weakly_canonical(config->cache_dir, error);
  if (!error) config->cache_dir = canonical.string();
  return config;
}

// By cache_dir. Never destroyed, since threads may still call at exit; emptied there, so that what
// is cached is durable.
struct Instances {
  std::mutex mutex;
  std::map<std::string, LayerCachePtr> by_directory;
};
Instances& instances() {
  static Instances* const all = [] {
    std::atexit([] {
      std::map<std::string, LayerCachePtr> ended;
      std::lock_guard lock(instances().mutex);
      ended.swap(instances().by_directory);
    });
    return new Instances;
  }();
  return *all;
}

}  // namespace
}  // namespace nexus::tools

namespace nexus::cache {

LayerCache::~LayerCache() = default;

Result<bool> LayerCache::print_stats(std::ostream& out) {
  auto text = stats_text();
  if (!text) return text.error();
  out << *text;
  return true;
}

Result<bool> LayerCache::print_stats() {
  return print_stats(std::cout);
}

Result<LayerCachePtr> get_layer_cache(const Options& options) {
  auto config = tools::config_of(options);
  if (!config) return tools::public_error(config.error());
  tools::Instances& all = tools::instances();
  std::lock_guard lock(all.mutex);
  LayerCachePtr& instance = all.by_directory[config->cache_dir];
  if (instance) return instance;
  auto token = tools::find_token(config->token_file, tools::process_environment());
  if (!token) return tools::public_error(token.error());
  auto made = std::make_shared<tools::Connected>(std::move(*config), std::move(token->value),
                                                 std::chrono::seconds(options.timeout_s));
  if (auto reached = made->reach(); !reached) return tools::public_error(reached.error());
  instance = std::move(made);
  return instance;
}

}  // namespace nexus::cache
