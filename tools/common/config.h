// Everything a mount is told: defaults, then a profile, the config file, the environment, and the
// flags of the command line, the later winning.
//
//   config file  --config FILE, else the first that exists of $XDG_CONFIG_HOME/nexus/config.toml
//                (~/.config/nexus/config.toml) and /etc/nexus/config.toml
//   environment  HF_ENDPOINT, HF_HUB_OFFLINE (and the token's variables, see token.h)
//
// Not thread-safe; made once by main() before any thread runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "backend/cache/cache.h"
#include "tools/common/environment.h"
#include "tools/common/listen_address.h"

namespace nexus::tools {

// The hub that is asked when nobody names another. The only place where its address stands.
inline constexpr const char* kDefaultEndpoint = "https://huggingface.co";

struct ModelAlias {
  std::string repo;
  std::string revision = "main";
  bool operator==(const ModelAlias&) const = default;
};

struct Config {
  // Keys of the config file under their own names; *_gb keys are kept in bytes.
  std::string cache_dir;  // default ~/.cache/nexus/layers
  uint64_t max_cache_bytes = 50'000'000'000;
  uint64_t max_memory_cache_bytes = 2'000'000'000;
  int num_zones = 4;
  bool enable_wear_leveling = true;
  std::vector<ZoneOptions> zones;  // [[zone]]; none: num_zones directories in cache_dir
  uint64_t daily_write_budget_bytes = 0;
  std::chrono::seconds migrate_interval{600};       // 0: off
  std::chrono::seconds scrub_interval{7 * 86'400};  // 0: off
  int max_connections = 8;
  bool max_connections_given = false;  // else what nexus-tune link measured of an origin counts
  bool enable_prefetch = true;
  int prefetch_lookahead = 2;
  bool background_fill = false;
  bool persist_metadata = true;
  std::string eviction_policy = "lru";
  Integrity integrity = Integrity::kDefault;
  std::string profile;  // "" or the name of one
  bool list_views = false;

  std::string endpoint = kDefaultEndpoint;
  bool offline = false;
  std::string hub_cache;
  std::string token_file;
  bool allow_other = false;
  bool fuse_io_uring = false;
  int fuse_io_uring_queue_depth = 64;
  std::string log_file;
  std::string ca_file, netrc_file;              // see HttpOptions
  std::optional<ListenAddress> metrics_listen;  // none: no metrics

  // Aliases; a name stands in one of them only.
  std::map<std::string, std::string> base_urls;
  std::map<std::string, std::string> locals;
  std::map<std::string, ModelAlias> models;

  std::string file;  // the config file that was read, or ""
  // Keys and profiles that were given and change nothing in this version; logged at the mount.
  std::vector<std::string> without_effect;
};

// What the command line said; a flag that was not given leaves the config's value alone.
struct ConfigFlags {
  std::optional<std::string> config_file, endpoint, hub_cache, cache_dir, ram, disk, token_file,
      integrity, log_file;
  std::vector<std::string> base_urls, locals, models;  // "ALIAS=VALUE"
  bool offline = false;                                // true: --offline was given
  bool allow_other = false;                            // true: --allow-other was given
  bool fuse_io_uring = false;                          // true: --fuse-io-uring was given
};

// All of the above together, checked: paths absolute, URLs and aliases well formed, local
// directories there. Each error names where the value came from (file:line and key, flag, or
// variable).
Result<Config> load_config(const ConfigFlags& flags, const Environment& environment);

// The parts, for tests.
// `origin` names the text in errors. Applies the text's profile first, so that its own keys win.
Result<void> apply_toml(std::string_view text, const std::string& origin, const std::string& home,
                        Config& config);
Result<void> apply_profile(const std::string& name, Config& config);
Result<Integrity> parse_integrity(const std::string& word);
Result<void> check_alias(const std::string& alias);
Result<std::string> parse_http_url(const std::string& url);          // without trailing slashes
Result<ModelAlias> parse_model_reference(const std::string& value);  // ORG/NAME[@REV]
Result<std::string> config_path(const std::string& path,
                                const std::string& home);  // absolute, or ~/

}  // namespace nexus::tools
