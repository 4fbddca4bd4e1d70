// The TOML side of the config: which keys there are, and what each may hold.
#include <toml++/toml.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>

#include "tools/common/config.h"
#include "tools/common/size.h"

namespace nexus::tools {
namespace {

constexpr double kBytesPerGb = 1e9;
constexpr double kGbMax = 1e9;  // 10^18 bytes: fits 63 bits

// Reads one value into the config; an error says what is wrong, without the key.
using Setter =
    std::function<Result<void>(const toml::node& value, const std::string& home, Config& config)>;

Result<std::string> as_string(const toml::node& value) {
  if (!value.is_string()) return fail(Code::kInvalid, "must be a string");
  return value.ref<std::string>();
}

Setter boolean(bool Config::*member) {
  return [member](const toml::node& value, const std::string&, Config& config) -> Result<void> {
    if (!value.is_boolean()) return fail(Code::kInvalid, "must be true or false");
    config.*member = value.ref<bool>();
    return {};
  };
}

Setter integer(int Config::*member, int64_t least, int64_t most) {
  return [=](const toml::node& value, const std::string&, Config& config) -> Result<void> {
    const std::string range = std::to_string(least) + " to " + std::to_string(most);
    if (!value.is_integer()) return fail(Code::kInvalid, "must be a whole number, " + range);
    const int64_t number = value.ref<int64_t>();
    if (number < least || number > most) {
      return fail(Code::kInvalid, std::to_string(number) + " is out of range: " + range);
    }
    config.*member = static_cast<int>(number);
    return {};
  };
}

Setter gigabytes(uint64_t Config::*member, bool zero_allowed) {
  return [=](const toml::node& value, const std::string&, Config& config) -> Result<void> {
    if (!value.is_number()) return fail(Code::kInvalid, "must be a number of GB (10^9 bytes)");
    const double gb =
        value.is_integer() ? static_cast<double>(value.ref<int64_t>()) : value.ref<double>();
    if (!std::isfinite(gb) || gb < 0 || gb > kGbMax) {
      return fail(Code::kInvalid, "out of range: 0 to 1000000000 GB");
    }
    const auto bytes = static_cast<uint64_t>(std::llround(gb * kBytesPerGb));
    if (bytes == 0 && !zero_allowed) return fail(Code::kInvalid, "must be more than 0");
    config.*member = bytes;
    return {};
  };
}

Setter path(std::string Config::*member) {
  return
      [member](const toml::node& value, const std::string& home, Config& config) -> Result<void> {
        auto text = as_string(value);
        if (!text) return tl::unexpected(text.error());
        auto resolved = config_path(*text, home);
        if (!resolved) return tl::unexpected(resolved.error());
        config.*member = *resolved;
        return {};
      };
}

Result<void> set_max_connections(const toml::node& value, const std::string& home, Config& config) {
  auto set = integer(&Config::max_connections, 1, 64)(value, home, config);
  if (set) config.max_connections_given = true;
  return set;
}

Setter interval(std::chrono::seconds Config::*member) {
  return [member](const toml::node& value, const std::string&, Config& config) -> Result<void> {
    auto text = as_string(value);
    if (!text) return tl::unexpected(text.error());
    auto parsed = parse_interval(*text);
    if (!parsed) return tl::unexpected(parsed.error());
    config.*member = *parsed;
    return {};
  };
}

Result<void> set_endpoint(const toml::node& value, const std::string&, Config& config) {
  auto text = as_string(value);
  if (!text) return tl::unexpected(text.error());
  auto url = parse_http_url(*text);
  if (!url) return tl::unexpected(url.error());
  config.endpoint = *url;
  return {};
}

Result<void> set_integrity(const toml::node& value, const std::string&, Config& config) {
  auto text = as_string(value);
  if (!text) return tl::unexpected(text.error());
  auto integrity = parse_integrity(*text);
  if (!integrity) return tl::unexpected(integrity.error());
  config.integrity = *integrity;
  return {};
}

Result<void> set_eviction_policy(const toml::node& value, const std::string&, Config& config) {
  auto text = as_string(value);
  if (!text) return tl::unexpected(text.error());
  if (*text != "lru" && *text != "lirs") {
    return fail(Code::kInvalid, "'" + printable(*text) + "': must be lru or lirs");
  }
  config.eviction_policy = *text;
  return {};
}

// "" is none, as without the key; a port may stand without quotes.
Result<void> set_metrics_listen(const toml::node& value, const std::string&, Config& config) {
  std::string text;
  if (value.is_integer()) {
    text = std::to_string(value.ref<int64_t>());
  } else if (value.is_string()) {
    text = value.ref<std::string>();
  } else {
    return fail(Code::kInvalid, "must be a port or a string, PORT or ADDRESS:PORT");
  }
  config.metrics_listen.reset();
  if (text.empty()) return {};
  auto address = parse_listen_address(text);
  if (!address) return tl::unexpected(address.error());
  config.metrics_listen = std::move(*address);
  return {};
}

// Compression comes with a later version; a config that relies on it must not look as if it worked.
Result<void> set_compression(const toml::node& value, const std::string&, Config&) {
  if (!value.is_boolean()) return fail(Code::kInvalid, "must be true or false");
  if (value.ref<bool>())
    return fail(Code::kUnsupported, "compression is not built yet; leave it false");
  return {};
}

// Means nothing while compression is off, so a complete config file may carry it.
Result<void> set_compression_level(const toml::node& value, const std::string&, Config&) {
  const auto level = value.value_exact<int64_t>();
  if (!level || *level < 1 || *level > 9) return fail(Code::kInvalid, "must be 1 to 9");
  return {};
}

Result<void> add_alias(const std::string& alias, const Config& config) {
  if (config.base_urls.count(alias) || config.locals.count(alias) || config.models.count(alias)) {
    return fail(Code::kInvalid, "alias '" + alias + "' is given twice");
  }
  return check_alias(alias);
}

using AliasSetter = std::function<Result<void>(const std::string& alias, const std::string& value,
                                               const std::string& home, Config& config)>;

Result<void> add_model(const std::string& alias, const std::string& value, const std::string&,
                       Config& config) {
  auto model = parse_model_reference(value);
  if (!model) return tl::unexpected(model.error());
  config.models[alias] = *model;
  return {};
}

Result<void> add_local(const std::string& alias, const std::string& value, const std::string& home,
                       Config& config) {
  auto directory = config_path(value, home);
  if (!directory) return tl::unexpected(directory.error());
  config.locals[alias] = *directory;
  return {};
}

Result<void> add_base_url(const std::string& alias, const std::string& value, const std::string&,
                          Config& config) {
  auto url = parse_http_url(value);
  if (!url) return tl::unexpected(url.error());
  config.base_urls[alias] = *url;
  return {};
}

const std::map<std::string, Setter, std::less<>>& setters() {
  static const std::map<std::string, Setter, std::less<>> all = {
      {"cache_dir", path(&Config::cache_dir)},
      {"max_cache_size_gb", gigabytes(&Config::max_cache_bytes, false)},
      {"max_memory_cache_size_gb", gigabytes(&Config::max_memory_cache_bytes, true)},
      {"num_zones", integer(&Config::num_zones, 1, 64)},
      {"enable_wear_leveling", boolean(&Config::enable_wear_leveling)},
      {"daily_write_budget_gb", gigabytes(&Config::daily_write_budget_bytes, true)},
      {"migrate_interval", interval(&Config::migrate_interval)},
      {"scrub_interval", interval(&Config::scrub_interval)},
      {"max_connections", set_max_connections},
      {"enable_prefetch", boolean(&Config::enable_prefetch)},
      {"prefetch_lookahead", integer(&Config::prefetch_lookahead, 0, 64)},
      {"background_fill", boolean(&Config::background_fill)},
      {"enable_compression", set_compression},
      {"compression_level", set_compression_level},
      {"persist_metadata", boolean(&Config::persist_metadata)},
      {"integrity", set_integrity},
      {"eviction_policy", set_eviction_policy},
      {"list_views", boolean(&Config::list_views)},
      {"endpoint", set_endpoint},
      {"offline", boolean(&Config::offline)},
      {"hub_cache", path(&Config::hub_cache)},
      {"token_file", path(&Config::token_file)},
      {"allow_other", boolean(&Config::allow_other)},
      {"fuse_io_uring", boolean(&Config::fuse_io_uring)},
      {"fuse_io_uring_queue_depth", integer(&Config::fuse_io_uring_queue_depth, 1, 1024)},
      {"log_file", path(&Config::log_file)},
      {"metrics_listen", set_metrics_listen},
      {"ca_file", path(&Config::ca_file)},
      {"netrc_file", path(&Config::netrc_file)},
  };
  return all;
}

const std::map<std::string, AliasSetter, std::less<>>& alias_setters() {
  static const std::map<std::string, AliasSetter, std::less<>> all = {
      {"models", add_model}, {"local", add_local}, {"base_url", add_base_url}};
  return all;
}

// Bytes of a value in units of `unit`.
Result<uint64_t> amount(const toml::node& value, double unit) {
  if (!value.is_number()) return fail(Code::kInvalid, "must be a number");
  const double number =
      value.is_integer() ? static_cast<double>(value.ref<int64_t>()) : value.ref<double>();
  if (!std::isfinite(number) || number <= 0 || number * unit > kGbMax * kBytesPerGb) {
    return fail(Code::kInvalid, "must be more than 0 and at most 10^18 bytes");
  }
  return static_cast<uint64_t>(std::llround(number * unit));
}

Result<ZoneOptions> zone_of(const toml::table& table, const std::string& home) {
  ZoneOptions zone;
  for (const auto& [key, value] : table) {
    const std::string name(key.str());
    const auto bad = [&](const Error& error) { return fail(error, "zone: " + printable(name)); };
    if (name == "path") {
      auto text = as_string(value);
      auto resolved = text ? config_path(*text, home) : text;
      if (!resolved) return bad(resolved.error());
      zone.path = *resolved;
    } else if (name == "size_gb" || name == "endurance_tbw") {
      auto bytes = amount(value, name == "size_gb" ? kBytesPerGb : 1000 * kBytesPerGb);
      if (!bytes) return bad(bytes.error());
      (name == "size_gb" ? zone.size_bytes : zone.endurance_bytes) = *bytes;
    } else if (name == "tier") {
      auto text = as_string(value);
      if (!text) return bad(text.error());
      zone.tier = *text;
      if (zone.tier != "nvme" && zone.tier != "ssd" && zone.tier != "hdd" && zone.tier != "nfs") {
        return fail(Code::kInvalid, "zone: tier: must be nvme, ssd, hdd or nfs");
      }
    } else {
      return fail(Code::kInvalid, "zone: " + printable(name) + ": unknown key");
    }
  }
  if (zone.path.empty()) return fail(Code::kInvalid, "zone: needs a path");
  return zone;
}

Result<void> add_zones(const toml::node& value, const std::string& home, Config& config) {
  const toml::array* list = value.as_array();
  if (list == nullptr) return fail(Code::kInvalid, "must be written as [[zone]]");
  for (const toml::node& one : *list) {
    const toml::table* table = one.as_table();
    if (table == nullptr) return fail(Code::kInvalid, "must be written as [[zone]]");
    auto zone = zone_of(*table, home);
    if (!zone) return tl::unexpected(zone.error());
    for (const ZoneOptions& other : config.zones) {
      if (other.path == zone->path) {
        return fail(Code::kInvalid, "zone: " + zone->path + " is given twice");
      }
    }
    config.zones.push_back(std::move(*zone));
  }
  return {};
}

std::string at(const std::string& origin, const toml::source_region& where) {
  return origin + ":" + std::to_string(where.begin.line);
}

Result<void> apply_aliases(const toml::table& table, const std::string& name,
                           const AliasSetter& add, const std::string& origin,
                           const std::string& home, Config& config) {
  for (const auto& [key, value] : table) {
    const std::string alias(key.str());
    const std::string context = at(origin, key.source()) + ": " + name + "." + printable(alias);
    if (auto ok = add_alias(alias, config); !ok) return fail(ok.error(), context);
    auto text = as_string(value);
    if (!text) return fail(text.error(), context);
    if (auto ok = add(alias, *text, home, config); !ok) return fail(ok.error(), context);
  }
  return {};
}

Result<void> apply_table(const toml::table& table, const std::string& origin,
                         const std::string& home, Config& config) {
  if (const toml::node* profile = table.get("profile")) {
    const std::string context = at(origin, profile->source()) + ": profile";
    auto name = as_string(*profile);
    if (!name) return fail(name.error(), context);
    if (auto ok = apply_profile(*name, config); !ok) return fail(ok.error(), context);
  }
  for (const auto& [key, value] : table) {
    const std::string name(key.str());
    if (name == "profile") continue;
    const std::string context = at(origin, key.source()) + ": " + printable(name);
    if (auto setter = setters().find(name); setter != setters().end()) {
      if (auto ok = setter->second(value, home, config); !ok) return fail(ok.error(), context);
    } else if (name == "zone") {
      if (auto ok = add_zones(value, home, config); !ok)
        return fail(ok.error(), at(origin, key.source()));
    } else if (auto alias = alias_setters().find(name); alias != alias_setters().end()) {
      if (!value.is_table())
        return fail(Code::kInvalid, context + ": must be a table of ALIAS = \"value\"");
      if (auto ok = apply_aliases(*value.as_table(), name, alias->second, origin, home, config);
          !ok)
        return ok;
    } else {
      return fail(Code::kInvalid, context + ": unknown key");
    }
  }
  return {};
}

}  // namespace

Result<void> apply_toml(std::string_view text, const std::string& origin, const std::string& home,
                        Config& config) {
  try {
    return apply_table(toml::parse(text, std::string_view(origin)), origin, home, config);
  } catch (const toml::parse_error& error) {
    return fail(Code::kInvalid,
                at(origin, error.source()) + ": " + std::string(error.description()));
  }
}

}  // namespace nexus::tools
