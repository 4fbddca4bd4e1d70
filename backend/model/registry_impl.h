// What registry.cc (what is asked) and registry_load.cc (what is found) share.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/model/loaded_model.h"
#include "backend/model/registry.h"

namespace nexus {

inline bool is_commit(const std::string& revision) {
  return revision.size() == 40 &&
         revision.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// What is asked for: a model of the hub, or an alias.
struct Target {
  std::string key;    // in mounted, loading, absent
  std::string shown;  // what the user typed, for messages and Model::repo()
  std::string repo;   // for the origin
  std::string revision;
  std::string stored_as;  // repo in the catalog
  std::shared_ptr<Origin> origin;
};

struct Registry::Impl : std::enable_shared_from_this<Registry::Impl> {
  Impl(RegistryOptions options_in, Cache& cache_in, Store& store_in, Executor& timers_in,
       ThreadPool& pool_in)
      : options(std::move(options_in)),
        cache(cache_in),
        store(store_in),
        timers(timers_in),
        pool(pool_in) {
    for (const StoredModel& model : store.list_models()) {
      if (model.repo.find(' ') == std::string::npos) {
        known[{model.repo, model.revision}] = model.commit;
      }
    }
  }

  Target hub_target(const std::string& repo, const std::string& revision) const {
    return {repo + "@" + revision, repo, repo, revision, repo, options.hub};
  }

  std::optional<Target> alias_target(const std::string& name) const {
    auto it = options.aliases.find(name);
    if (it == options.aliases.end()) return std::nullopt;
    const Alias& alias = it->second;
    // An alias of a hub model is that model under another name; of another origin it has its own
    // row, told apart by a space, which no repo name has.
    if (alias.origin == options.hub) {
      Target target = hub_target(alias.repo, alias.revision);
      return target;
    }
    return Target{
        name + " ",  name, alias.repo, alias.revision, name + " " + alias.origin->describe(),
        alias.origin};
  }

  struct Waiting {
    uint64_t ticket;
    Done done;
  };

  uint64_t get(Target target, Done done);
  void begin(const Target& target);
  // What the catalog knows of a commit by the name of a branch or tag.
  std::optional<StoredModel> row_at_commit(const Target& target);
  void resolve(const Target& target, std::optional<Snapshot> stored);
  void finish(const Target& target, Result<Snapshot> snapshot, bool fresh);
  std::shared_ptr<LoadedModel> make(const Target& target, std::shared_ptr<Origin> origin,
                                    Snapshot snapshot);
  // The model of what was put into the cache alone, where the origin has none; null where nothing
  // was.
  std::shared_ptr<LoadedModel> make_of_puts(const Target& target, const Error& error);

  const RegistryOptions options;
  Cache& cache;
  Store& store;
  Executor& timers;
  ThreadPool& pool;

  mutable std::mutex mutex;  // guards everything below
  std::map<std::string, std::shared_ptr<LoadedModel>> mounted;
  std::map<std::string, std::vector<Waiting>> loading;
  std::map<std::string, std::pair<std::chrono::steady_clock::time_point, Error>> absent;
  std::map<std::pair<std::string, std::string>, std::string> known;  // (repo, revision) -> commit
  std::map<std::string, std::vector<std::function<void()>>> renewing;
  std::function<void(const std::string&, const std::string&)> listener;
  std::function<void(const std::string&, const std::string&)> put_listener;
  uint64_t next_ticket = 1;
  bool stopped = false;
};

}  // namespace nexus
