#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "tools/common/config.h"
#include "tools/common/token.h"

namespace nexus::tools {
namespace {

using testing::HasSubstr;

class ToolsConfig : public testing::Test {
 protected:
  ToolsConfig() {
    std::string pattern = testing::TempDir() + "nexus-config-XXXXXX";
    directory_ = std::filesystem::canonical(mkdtemp(pattern.data())).string();
    variables_["HOME"] = directory_;
    // Nothing of the machine's own /etc reaches a test: a file found first ends the search.
    write(".config/nexus/config.toml", "");
  }
  ~ToolsConfig() override { std::filesystem::remove_all(directory_); }

  std::string write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = directory_ + "/" + name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }
  Environment environment() const {
    return [this](const std::string& name) -> std::optional<std::string> {
      const auto found = variables_.find(name);
      if (found == variables_.end() || found->second.empty()) return std::nullopt;
      return found->second;
    };
  }
  Result<Config> load(const ConfigFlags& flags = {}) const {
    return load_config(flags, environment());
  }
  Result<Config> parse(const std::string& toml) const {
    Config config;
    if (auto ok = apply_toml(toml, "c.toml", directory_, config); !ok)
      return tl::unexpected(ok.error());
    return config;
  }
  std::string error_of(const std::string& toml) const {
    const auto config = parse(toml);
    return config ? "no error" : config.error().what;
  }

  std::string directory_;
  std::map<std::string, std::string> variables_;
};

TEST_F(ToolsConfig, DefaultsAreTheSpecifications) {
  const Config config = load().value();
  EXPECT_EQ(config.cache_dir, directory_ + "/.cache/nexus/layers");
  EXPECT_EQ(config.max_cache_bytes, 50'000'000'000u);
  EXPECT_EQ(config.max_memory_cache_bytes, 2'000'000'000u);
  EXPECT_EQ(config.num_zones, 4);
  EXPECT_TRUE(config.enable_wear_leveling);
  EXPECT_EQ(config.max_connections, 8);
  EXPECT_TRUE(config.enable_prefetch);
  EXPECT_EQ(config.prefetch_lookahead, 2);
  EXPECT_FALSE(config.background_fill);
  EXPECT_TRUE(config.persist_metadata);
  EXPECT_FALSE(config.fuse_io_uring);
  EXPECT_EQ(config.integrity, Integrity::kDefault);
  EXPECT_FALSE(config.list_views);
  EXPECT_EQ(config.endpoint, kDefaultEndpoint);
}

TEST_F(ToolsConfig, ReadsEveryKey) {
  const Config config = parse(R"(
cache_dir = "~/nexus-cache"
max_cache_size_gb = 12.5
max_memory_cache_size_gb = 1
num_zones = 2
enable_wear_leveling = false
max_connections = 16
enable_prefetch = false
prefetch_lookahead = 4
background_fill = true
enable_compression = false
persist_metadata = false
integrity = "strict"
list_views = true
endpoint = "https://hub.test:8443/prefix/"
offline = true
hub_cache = "/data/hub"
token_file = "/run/token"
allow_other = true
fuse_io_uring = true
fuse_io_uring_queue_depth = 8
log_file = "/var/log/nexus.log"

[models]
llama = "org/name@v1.0"
small = "one-component"

[local]
here = "/data/models/here"

[base_url]
split = "http://layers.test/model/"
)")
                            .value();
  EXPECT_EQ(config.cache_dir, directory_ + "/nexus-cache");
  EXPECT_EQ(config.max_cache_bytes, 12'500'000'000u);
  EXPECT_EQ(config.max_memory_cache_bytes, 1'000'000'000u);
  EXPECT_EQ(config.num_zones, 2);
  EXPECT_FALSE(config.enable_wear_leveling);
  EXPECT_EQ(config.max_connections, 16);
  EXPECT_FALSE(config.enable_prefetch);
  EXPECT_EQ(config.prefetch_lookahead, 4);
  EXPECT_TRUE(config.background_fill);
  EXPECT_FALSE(config.persist_metadata);
  EXPECT_EQ(config.integrity, Integrity::kStrict);
  EXPECT_TRUE(config.list_views);
  EXPECT_EQ(config.endpoint, "https://hub.test:8443/prefix");
  EXPECT_TRUE(config.offline);
  EXPECT_EQ(config.hub_cache, "/data/hub");
  EXPECT_EQ(config.token_file, "/run/token");
  EXPECT_TRUE(config.allow_other);
  EXPECT_TRUE(config.fuse_io_uring);
  EXPECT_EQ(config.fuse_io_uring_queue_depth, 8);
  EXPECT_EQ(config.log_file, "/var/log/nexus.log");
  EXPECT_EQ(config.models.at("llama"), (ModelAlias{"org/name", "v1.0"}));
  EXPECT_EQ(config.models.at("small"), (ModelAlias{"one-component", "main"}));
  EXPECT_EQ(config.locals.at("here"), "/data/models/here");
  EXPECT_EQ(config.base_urls.at("split"), "http://layers.test/model");
}

TEST_F(ToolsConfig, AnUnknownKeyIsNamedWithFileAndLine) {
  EXPECT_EQ(error_of("num_zones = 4\ncache_dirr = \"/x\"\n"), "c.toml:2: cache_dirr: unknown key");
  EXPECT_THAT(error_of("[model]\na = \"b\"\n"), HasSubstr("c.toml:1: model: unknown key"));
}

TEST_F(ToolsConfig, AWrongTypeOrRangeIsNamed) {
  EXPECT_THAT(error_of("\nnum_zones = \"four\""),
              HasSubstr("c.toml:2: num_zones: must be a whole number"));
  EXPECT_THAT(error_of("num_zones = 0"), HasSubstr("num_zones: 0 is out of range: 1 to 64"));
  EXPECT_THAT(error_of("max_connections = 1000"), HasSubstr("max_connections"));
  EXPECT_THAT(error_of("max_connections = 2.5"), HasSubstr("must be a whole number"));
  EXPECT_THAT(error_of("list_views = 1"), HasSubstr("list_views: must be true or false"));
  EXPECT_THAT(error_of("max_cache_size_gb = -1"), HasSubstr("max_cache_size_gb"));
  EXPECT_THAT(error_of("max_cache_size_gb = 0"), HasSubstr("must be more than 0"));
  EXPECT_THAT(error_of("max_cache_size_gb = nan"), HasSubstr("out of range"));
  EXPECT_THAT(error_of("max_memory_cache_size_gb = inf"), HasSubstr("out of range"));
  EXPECT_THAT(error_of("max_cache_size_gb = \"50G\""), HasSubstr("must be a number"));
  EXPECT_THAT(error_of("integrity = \"lax\""), HasSubstr("integrity: 'lax'"));
  EXPECT_THAT(error_of("cache_dir = \"relative\""), HasSubstr("must be absolute"));
  EXPECT_THAT(error_of("endpoint = \"ftp://x\""), HasSubstr("http://"));
  EXPECT_THAT(error_of("profile = \"fast\""), HasSubstr("unknown profile"));
  EXPECT_THAT(error_of("models = 3"), HasSubstr("must be a table"));
  EXPECT_THAT(error_of("[models]\nx = 3"), HasSubstr("c.toml:2: models.x: must be a string"));
}

TEST_F(ToolsConfig, BrokenTomlIsAnErrorWithItsLine) {
  EXPECT_THAT(error_of("num_zones = 4\n= 5\n"), HasSubstr("c.toml:2"));
  EXPECT_THAT(error_of("num_zones = 4\nnum_zones = 5\n"), HasSubstr("c.toml:2"));
}

TEST_F(ToolsConfig, CompressionIsRefusedByName) {
  EXPECT_TRUE(parse("enable_compression = false"));
  EXPECT_THAT(error_of("enable_compression = true"),
              HasSubstr("enable_compression: compression is not built"));
  EXPECT_TRUE(parse("compression_level = 6"));
  EXPECT_THAT(error_of("compression_level = 10"), HasSubstr("compression_level: must be 1 to 9"));
}

TEST_F(ToolsConfig, KeysWithoutEffectAreReported) {
  EXPECT_THAT(parse("profile = \"memory-constrained\"")->without_effect,
              testing::ElementsAre("profile memory-constrained: quantised layers"));
  const auto prefetch = parse("enable_prefetch = false\nprefetch_lookahead = 3");
  EXPECT_TRUE(prefetch->without_effect.empty());
  EXPECT_FALSE(prefetch->enable_prefetch);
  EXPECT_EQ(prefetch->prefetch_lookahead, 3);
  EXPECT_TRUE(parse("")->without_effect.empty());
}

TEST_F(ToolsConfig, AProfileSetsDefaultsAndExplicitKeysWin) {
  const Config fast = parse("num_zones = 8\nprofile = \"high-performance\"").value();
  EXPECT_EQ(fast.max_cache_bytes, 100'000'000'000u);
  EXPECT_EQ(fast.max_memory_cache_bytes, 8'000'000'000u);
  EXPECT_EQ(fast.prefetch_lookahead, 3);
  EXPECT_FALSE(fast.enable_wear_leveling);

  // Also when the key stands above the profile.
  const Config network = parse("max_cache_size_gb = 10\nprofile = \"network-constrained\"").value();
  EXPECT_EQ(network.max_cache_bytes, 10'000'000'000u);
  EXPECT_EQ(network.max_memory_cache_bytes, 4'000'000'000u);
  EXPECT_EQ(network.max_connections, 8);
  EXPECT_EQ(network.prefetch_lookahead, 5);

  const Config small = parse("profile = \"memory-constrained\"").value();
  EXPECT_EQ(small.max_cache_bytes, 500'000'000'000u);
  EXPECT_EQ(small.max_memory_cache_bytes, 500'000'000u);
}

TEST_F(ToolsConfig, SearchesXdgThenHomeAndAGivenFileWins) {
  write(".config/nexus/config.toml", "num_zones = 2");
  EXPECT_EQ(load()->num_zones, 2);
  write("xdg/nexus/config.toml", "num_zones = 3");
  variables_["XDG_CONFIG_HOME"] = directory_ + "/xdg";
  EXPECT_EQ(load()->num_zones, 3);
  ConfigFlags flags;
  flags.config_file = write("other.toml", "num_zones = 5");
  const Config config = load(flags).value();
  EXPECT_EQ(config.num_zones, 5);
  EXPECT_EQ(config.file, directory_ + "/other.toml");
  flags.config_file = directory_ + "/absent.toml";
  EXPECT_THAT(load(flags).error().what, HasSubstr("absent.toml: No such file"));
}

TEST_F(ToolsConfig, FlagsWinOverEnvironmentOverFile) {
  write(".config/nexus/config.toml",
        "endpoint = \"http://file.test\"\nmax_cache_size_gb = 1\n"
        "[models]\nx = \"a/b\"\ny = \"c/d\"\n");
  EXPECT_EQ(load()->endpoint, "http://file.test");
  variables_["HF_ENDPOINT"] = "http://environment.test/";
  EXPECT_EQ(load()->endpoint, "http://environment.test");
  ConfigFlags flags;
  flags.endpoint = "http://flag.test";
  flags.disk = "2G";
  flags.ram = "0";
  flags.integrity = "strict";
  flags.locals = {"x=" + directory_};
  const Config config = load(flags).value();
  EXPECT_EQ(config.endpoint, "http://flag.test");
  EXPECT_EQ(config.max_cache_bytes, 2'000'000'000u);
  EXPECT_EQ(config.max_memory_cache_bytes, 0u);
  EXPECT_EQ(config.integrity, Integrity::kStrict);
  EXPECT_EQ(config.locals.at("x"), directory_);
  EXPECT_EQ(config.models.count("x"), 0u);
  EXPECT_EQ(config.models.count("y"), 1u);
}

TEST_F(ToolsConfig, ZonesAreNamedOneByOne) {
  const auto config = parse(
      "eviction_policy = \"lirs\"\ndaily_write_budget_gb = 80\nmigrate_interval = \"2h\"\n"
      "scrub_interval = \"off\"\n"
      "[[zone]]\npath = \"/fast\"\nsize_gb = 100\ntier = \"nvme\"\nendurance_tbw = 600\n"
      "[[zone]]\npath = \"~/slow\"\n");
  ASSERT_TRUE(config) << config.error().what;
  EXPECT_EQ(config->eviction_policy, "lirs");
  EXPECT_EQ(config->migrate_interval, std::chrono::hours(2));
  EXPECT_EQ(config->scrub_interval, std::chrono::seconds(0));
  EXPECT_EQ(config->daily_write_budget_bytes, 80'000'000'000u);
  ASSERT_EQ(config->zones.size(), 2u);
  EXPECT_EQ(config->zones[0].path, "/fast");
  EXPECT_EQ(config->zones[0].size_bytes, 100'000'000'000u);
  EXPECT_EQ(config->zones[0].tier, "nvme");
  EXPECT_EQ(config->zones[0].endurance_bytes, 600'000'000'000'000u);
  EXPECT_EQ(config->zones[1].path, directory_ + "/slow");
  EXPECT_EQ(config->zones[1].size_bytes, 0u);
}

TEST_F(ToolsConfig, ZoneMistakesAreNamed) {
  EXPECT_THAT(error_of("eviction_policy = \"fifo\""), HasSubstr("lru or lirs"));
  EXPECT_THAT(error_of("migrate_interval = \"often\""), HasSubstr("'often': expected a time"));
  EXPECT_THAT(error_of("zone = 3"), HasSubstr("[[zone]]"));
  EXPECT_THAT(error_of("[[zone]]\nsize_gb = 1"), HasSubstr("path"));
  EXPECT_THAT(error_of("[[zone]]\npath = \"/a\"\nsize = 1"), HasSubstr("size: unknown"));
  EXPECT_THAT(error_of("[[zone]]\npath = \"/a\"\nsize_gb = 0"), HasSubstr("size_gb"));
  EXPECT_THAT(error_of("[[zone]]\npath = \"/a\"\ntier = \"tape\""), HasSubstr("tier"));
  EXPECT_THAT(error_of("[[zone]]\npath = \"/a\"\n[[zone]]\npath = \"/a\""), HasSubstr("twice"));
}

TEST_F(ToolsConfig, OfflineVariableIsHonoured) {
  EXPECT_FALSE(load()->offline);
  variables_["HF_HUB_OFFLINE"] = "0";
  EXPECT_FALSE(load()->offline);
  variables_["HF_HUB_OFFLINE"] = "1";
  EXPECT_TRUE(load()->offline);
}

TEST_F(ToolsConfig, AliasesThatCannotBeNamesAreRefused) {
  for (const char* alias : {"", "a/b", ".hidden", "..", "~x", "a@b", "a~nf4", "a\nb", "a=b"}) {
    EXPECT_FALSE(check_alias(alias)) << alias;
  }
  EXPECT_FALSE(check_alias(std::string(256, 'a')));
  for (const char* alias : {"llama", "llama-3.1_8b", "Llama 3"})
    EXPECT_TRUE(check_alias(alias)) << alias;
}

TEST_F(ToolsConfig, FlagMistakesAreNamed) {
  const auto error = [&](auto set) {
    ConfigFlags flags;
    set(flags);
    const auto config = load(flags);
    return config ? std::string("no error") : config.error().what;
  };
  EXPECT_THAT(error([](ConfigFlags& f) { f.models = {"noequals"}; }),
              HasSubstr("--model noequals: expected"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.models = {"a=b c/d"}; }), HasSubstr("ORG/NAME[@REV]"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.models = {"a=org/name@"}; }), HasSubstr("revision"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.models = {"a/b=org/name"}; }), HasSubstr("without '/'"));
  EXPECT_THAT(error([](ConfigFlags& f) {
                f.models = {"a=o/n", "a=o/m"};
              }),
              HasSubstr("given twice"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.base_urls = {"a=file:///x"}; }),
              HasSubstr("--base-url a"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.locals = {"a=/nonexistent/dir"}; }),
              HasSubstr("/nonexistent/dir"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.hub_cache = "/nonexistent"; }),
              HasSubstr("hub cache /nonexistent"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.disk = "0"; }), HasSubstr("--disk"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.ram = "lots"; }), HasSubstr("--ram: size 'lots'"));
  EXPECT_THAT(error([](ConfigFlags& f) { f.integrity = "x"; }), HasSubstr("--integrity"));
}

TEST_F(ToolsConfig, UrlsAreCheckedAndNeverShowAPassword) {
  EXPECT_EQ(parse_http_url("HTTPS://host//").value(), "https://host");
  EXPECT_EQ(parse_http_url("http://[::1]:80/a").value(), "http://[::1]:80/a");
  for (const char* url : {"", "host", "ftp://host", "http://", "http:///x", "http://:80",
                          "http://a b", "http://a\n", "http://h?q=1", "http://h#f"}) {
    EXPECT_FALSE(parse_http_url(url)) << url;
  }
  const auto secret = parse_http_url("https://user:hunter2@host/");
  ASSERT_FALSE(secret);
  EXPECT_THAT(secret.error().what, testing::Not(HasSubstr("hunter2")));
}

class ToolsToken : public ToolsConfig {};

TEST_F(ToolsToken, IsLookedUpInOrder) {
  EXPECT_EQ(find_token("", environment())->value, "");
  write(".cache/huggingface/token", "hf_home_cache\n");
  EXPECT_EQ(find_token("", environment())->value, "hf_home_cache");
  variables_["HF_HOME"] = directory_ + "/hf";
  EXPECT_EQ(find_token("", environment())->value, "hf_home_cache");
  write("hf/token", "hf_hf_home");
  EXPECT_EQ(find_token("", environment())->value, "hf_hf_home");
  variables_["HF_TOKEN_PATH"] = write("token-path", "  hf_path\r\n");
  EXPECT_EQ(find_token("", environment())->value, "hf_path");
  variables_["HF_TOKEN"] = " hf_variable ";
  EXPECT_EQ(find_token("", environment())->value, "hf_variable");
  EXPECT_EQ(find_token(write("given", "hf_given\n"), environment())->value, "hf_given");
}

TEST_F(ToolsToken, AGivenFileMustHoldOne) {
  EXPECT_THAT(find_token(directory_ + "/absent", environment()).error().what, HasSubstr("absent"));
  EXPECT_THAT(find_token(write("empty", " \n"), environment()).error().what, HasSubstr("is empty"));
}

TEST_F(ToolsToken, ControlCharactersAreRefusedAndNotShown) {
  for (const char* text : {"hf_a\nX-Evil: 1", "hf_a\x01", "hf a", "hf_\xc3\xa9"}) {
    const std::string path = write("bad", text);
    const auto token = find_token(path, environment());
    ASSERT_FALSE(token) << text;
    std::string what = token.error().what;
    const size_t at = what.find(path);
    if (at != std::string::npos) what.erase(at, path.size());  // the directory's name is random, and may hold "hf"
    EXPECT_THAT(what, testing::Not(HasSubstr("hf")));
  }
  EXPECT_FALSE(find_token(write("long", std::string(9000, 'a')), environment()));
}

}  // namespace
}  // namespace nexus::tools
