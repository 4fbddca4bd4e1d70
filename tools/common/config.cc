#include "tools/common/config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "backend/origin/origin.h"
#include "tools/common/size.h"

namespace nexus::tools {
namespace {

constexpr uintmax_t kConfigBytesMax = 1 << 20;
constexpr size_t kAliasBytesMax = 255;  // NAME_MAX
constexpr size_t kRevisionBytesMax = 255;

bool has_control_or_space(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte <= 0x20 || byte == 0x7f;
  });
}

std::string absolute_path(const std::string& path) {
  std::error_code ignored;
  const std::filesystem::path absolute = std::filesystem::absolute(path, ignored);
  return absolute.lexically_normal().string();
}

Result<std::string> read_config_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return fail(Code::kInvalid, path + ": is a directory, not a config file");
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(Code::kInvalid, path + ": " + std::strerror(errno));
  std::string text;
  text.reserve(4096);
  for (std::istreambuf_iterator<char> at(in), end; at != end; ++at) {
    if (text.size() == kConfigBytesMax) return fail(Code::kInvalid, path + ": larger than 1 MiB");
    text.push_back(*at);
  }
  return text;
}

// "" when there is none.
std::string find_config_file(const Environment& environment, const std::string& home) {
  std::vector<std::string> candidates;
  if (auto xdg = environment("XDG_CONFIG_HOME")) {
    candidates.push_back(*xdg + "/nexus/config.toml");
  } else if (!home.empty()) {
    candidates.push_back(home + "/.config/nexus/config.toml");
  }
  candidates.push_back("/etc/nexus/config.toml");
  for (const std::string& path : candidates) {
    if (access(path.c_str(), F_OK) == 0) return path;
  }
  return "";
}

Result<void> apply_environment(const Environment& environment, Config& config) {
  if (auto endpoint = environment("HF_ENDPOINT")) {
    auto url = parse_http_url(*endpoint);
    if (!url) return fail(url.error(), "HF_ENDPOINT");
    config.endpoint = *url;
  }
  if (auto offline = environment("HF_HUB_OFFLINE")) {
    // The words that huggingface_hub takes for true.
    std::string word = *offline;
    std::transform(word.begin(), word.end(), word.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    if (word == "1" || word == "ON" || word == "YES" || word == "TRUE") config.offline = true;
  }
  return {};
}

struct AliasFlag {
  std::string alias, value;
};

Result<AliasFlag> split_alias(const std::string& flag, const std::string& argument) {
  const size_t equals = argument.find('=');
  const std::string context = flag + " " + printable(argument);
  if (equals == std::string::npos || equals == 0 || equals + 1 == argument.size()) {
    return fail(Code::kInvalid, context + ": expected ALIAS=VALUE");
  }
  AliasFlag split{argument.substr(0, equals), argument.substr(equals + 1)};
  if (auto valid = check_alias(split.alias); !valid) return fail(valid.error(), context);
  return split;
}

// A flag's alias takes the place of the config file's, whatever kind that was; two flags may not
// share one.
Result<void> claim_alias(const std::string& alias, std::vector<std::string>& claimed,
                         Config& config) {
  if (std::find(claimed.begin(), claimed.end(), alias) != claimed.end()) {
    return fail(Code::kInvalid, "alias '" + alias + "' is given twice");
  }
  claimed.push_back(alias);
  config.base_urls.erase(alias);
  config.locals.erase(alias);
  config.models.erase(alias);
  return {};
}

Result<void> apply_alias_flags(const ConfigFlags& flags, Config& config) {
  std::vector<std::string> claimed;
  for (const std::string& argument : flags.base_urls) {
    auto split = split_alias("--base-url", argument);
    if (!split) return tl::unexpected(split.error());
    auto url = parse_http_url(split->value);
    if (!url) return fail(url.error(), "--base-url " + split->alias);
    if (auto ok = claim_alias(split->alias, claimed, config); !ok) return ok;
    config.base_urls[split->alias] = *url;
  }
  for (const std::string& argument : flags.locals) {
    auto split = split_alias("--local", argument);
    if (!split) return tl::unexpected(split.error());
    if (auto ok = claim_alias(split->alias, claimed, config); !ok) return ok;
    config.locals[split->alias] = absolute_path(split->value);
  }
  for (const std::string& argument : flags.models) {
    auto split = split_alias("--model", argument);
    if (!split) return tl::unexpected(split.error());
    auto model = parse_model_reference(split->value);
    if (!model) return fail(model.error(), "--model " + split->alias);
    if (auto ok = claim_alias(split->alias, claimed, config); !ok) return ok;
    config.models[split->alias] = *model;
  }
  return {};
}

Result<void> apply_flags(const ConfigFlags& flags, Config& config) {
  if (flags.endpoint) {
    auto url = parse_http_url(*flags.endpoint);
    if (!url) return fail(url.error(), "--endpoint");
    config.endpoint = *url;
  }
  if (flags.ram) {
    auto bytes = parse_size(*flags.ram);
    if (!bytes) return fail(bytes.error(), "--ram");
    config.max_memory_cache_bytes = *bytes;
  }
  if (flags.disk) {
    auto bytes = parse_size(*flags.disk);
    if (!bytes) return fail(bytes.error(), "--disk");
    if (*bytes == 0) return fail(Code::kInvalid, "--disk: must not be 0");
    config.max_cache_bytes = *bytes;
  }
  if (flags.integrity) {
    auto integrity = parse_integrity(*flags.integrity);
    if (!integrity) return fail(integrity.error(), "--integrity");
    config.integrity = *integrity;
  }
  if (flags.hub_cache) config.hub_cache = absolute_path(*flags.hub_cache);
  if (flags.cache_dir) config.cache_dir = absolute_path(*flags.cache_dir);
  if (flags.token_file) config.token_file = absolute_path(*flags.token_file);
  if (flags.log_file) config.log_file = absolute_path(*flags.log_file);
  if (flags.offline) config.offline = true;
  if (flags.allow_other) config.allow_other = true;
  if (flags.fuse_io_uring) config.fuse_io_uring = true;
  return apply_alias_flags(flags, config);
}

Result<void> check_directory(const std::string& path, const std::string& what) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    return fail(Code::kInvalid, what + " " + path + ": " + std::strerror(errno));
  }
  if (!S_ISDIR(status.st_mode))
    return fail(Code::kInvalid, what + " " + path + ": not a directory");
  if (access(path.c_str(), R_OK | X_OK) != 0) {
    return fail(Code::kInvalid, what + " " + path + ": " + std::strerror(errno));
  }
  return {};
}

Result<void> check_paths(const Config& config) {
  for (const auto& [alias, directory] : config.locals) {
    if (auto ok = check_directory(directory, "local model '" + alias + "':"); !ok) return ok;
  }
  if (!config.hub_cache.empty()) {
    if (auto ok = check_directory(config.hub_cache, "hub cache"); !ok) return ok;
  }
  // Not found out at the first request, which may be long after the mount.
  for (const auto& [key, file] : {std::pair{"ca_file", config.ca_file}, {"netrc_file", config.netrc_file}}) {
    if (!file.empty() && access(file.c_str(), R_OK) != 0) {
      return fail(Code::kInvalid, std::string(key) + " " + file + ": " + std::strerror(errno));
    }
  }
  return {};
}

}  // namespace

Result<Config> load_config(const ConfigFlags& flags, const Environment& environment) {
  Config config;
  const std::string home = home_directory(environment);
  config.file =
      flags.config_file ? absolute_path(*flags.config_file) : find_config_file(environment, home);
  if (!config.file.empty()) {
    auto text = read_config_file(config.file);
    if (!text) return tl::unexpected(text.error());
    if (auto ok = apply_toml(*text, config.file, home, config); !ok)
      return tl::unexpected(ok.error());
  }
  if (auto ok = apply_environment(environment, config); !ok) return tl::unexpected(ok.error());
  if (auto ok = apply_flags(flags, config); !ok) return tl::unexpected(ok.error());
  if (config.cache_dir.empty()) {
    if (home.empty()) return fail(Code::kInvalid, "no home directory is known: give --cache-dir");
    config.cache_dir = absolute_path(home + "/.cache/nexus/layers");
  }
  if (auto ok = check_paths(config); !ok) return tl::unexpected(ok.error());
  return config;
}

Result<void> apply_profile(const std::string& name, Config& config) {
  if (name == "high-performance") {
    config.max_cache_bytes = 100'000'000'000;
    config.max_memory_cache_bytes = 8'000'000'000;
    config.prefetch_lookahead = 3;
    config.enable_wear_leveling = false;
  } else if (name == "network-constrained") {
    config.max_cache_bytes = 200'000'000'000;
    config.max_memory_cache_bytes = 4'000'000'000;
    config.max_connections = 8;
    config.max_connections_given = true;
    config.prefetch_lookahead = 5;
  } else if (name == "memory-constrained") {
    // The specification's profile also chooses quantised layers, which are not built yet.
    config.without_effect.push_back("profile memory-constrained: quantised layers");
    config.max_cache_bytes = 500'000'000'000;
    config.max_memory_cache_bytes = 500'000'000;
  } else {
    return fail(Code::kInvalid,
                "unknown profile '" + printable(name) +
                    "': high-performance, network-constrained or memory-constrained");
  }
  config.profile = name;
  return {};
}

Result<Integrity> parse_integrity(const std::string& word) {
  if (word == "default") return Integrity::kDefault;
  if (word == "strict") return Integrity::kStrict;
  return fail(Code::kInvalid, "'" + printable(word) + "': must be default or strict");
}

Result<void> check_alias(const std::string& alias) {
  const std::string quoted = "alias '" + printable(alias) + "'";
  if (alias.empty()) return fail(Code::kInvalid, "an alias must not be empty");
  if (alias.size() > kAliasBytesMax)
    return fail(Code::kInvalid, quoted + ": longer than 255 bytes");
  if (alias.find('/') != std::string::npos) {
    return fail(Code::kInvalid, quoted + ": must be one name, without '/'");
  }
  if (alias.front() == '.' || alias.front() == '~') {
    return fail(Code::kInvalid, quoted + ": must not start with '.' or '~'");
  }
  // '@' separates a revision and '~' a variant in the tree's names.
  if (alias.find_first_of("@~=") != std::string::npos) {
    return fail(Code::kInvalid, quoted + ": must not contain '@', '~' or '='");
  }
  if (!valid_model_path(alias)) return fail(Code::kInvalid, quoted + ": not a valid file name");
  return {};
}

Result<std::string> parse_http_url(const std::string& url) {
  const std::string quoted = "'" + printable(url) + "'";
  const size_t separator = url.find("://");
  std::string scheme = separator == std::string::npos ? "" : url.substr(0, separator);
  std::transform(scheme.begin(), scheme.end(), scheme.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (scheme != "http" && scheme != "https") {
    return fail(Code::kInvalid, quoted + ": must start with http:// or https://");
  }
  if (has_control_or_space(url))
    return fail(Code::kInvalid, quoted + ": holds a space or control character");
  const std::string rest = url.substr(separator + 3);
  const std::string authority = rest.substr(0, rest.find_first_of("/?#"));
  // Not shown: what stands before '@' may be a password.
  if (authority.find('@') != std::string::npos) {
    return fail(Code::kInvalid, "a URL must not hold a user name or password");
  }
  if (rest.find_first_of("?#") != std::string::npos) {
    return fail(Code::kInvalid, "a URL must not hold a query or fragment");
  }
  if (authority.empty() || authority.front() == ':')
    return fail(Code::kInvalid, quoted + ": names no host");
  std::string result = scheme + "://" + rest;
  while (result.back() == '/') result.pop_back();
  return result;
}

Result<ModelAlias> parse_model_reference(const std::string& value) {
  const std::string quoted = "'" + printable(value) + "'";
  const size_t at = value.find('@');
  ModelAlias model;
  model.repo = value.substr(0, at);
  if (at != std::string::npos) {
    model.revision = value.substr(at + 1);
    if (model.revision.empty() || model.revision.size() > kRevisionBytesMax ||
        has_control_or_space(model.revision) || !valid_model_path(model.revision)) {
      return fail(Code::kInvalid, quoted + ": not a valid revision after '@'");
    }
  }
  if (!valid_repo_name(model.repo))
    return fail(Code::kInvalid, quoted + ": expected ORG/NAME[@REV]");
  return model;
}

Result<std::string> config_path(const std::string& path, const std::string& home) {
  if (path.empty()) return fail(Code::kInvalid, "must not be empty");
  if (path == "~" || path.rfind("~/", 0) == 0) {
    if (home.empty())
      return fail(Code::kInvalid, "no home directory is known for '" + printable(path) + "'");
    return absolute_path(home + path.substr(1));
  }
  if (path.front() != '/') {
    return fail(Code::kInvalid, "'" + printable(path) + "': must be absolute or start with ~/");
  }
  return absolute_path(path);
}

}  // namespace nexus::tools
