// Which models are mounted. Resolves on demand, keeps each pinned to its commit, remembers absent
// ones briefly, and works from the store when the origin is out of reach.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/model/model.h"
#include "backend/origin/origin.h"
#include "backend/store/store.h"

namespace nexus {

struct Alias {
  std::string repo;      // "org/name" on the hub, or the alias itself for base_url and local
  std::string revision;  // "main" unless given
  std::shared_ptr<Origin> origin;
};

struct RegistryOptions {
  std::shared_ptr<Origin> hub;           // may be null: only aliases exist
  std::map<std::string, Alias> aliases;  // by name
  bool list_views = false;
  bool offline = false;
  uint64_t header_bytes_max = 512'000'000;     // a model, all shards' headers together
  std::chrono::seconds absent_ttl{30};         // how long a name that does not exist is remembered
  std::chrono::milliseconds stale_wait{3000};  // how long a known model waits for a slow origin
};

// Thread safety: everything may be called from any thread. `done` may be called inline.
class Registry {
 public:
  using Done = std::function<void(Result<std::shared_ptr<Model>>)>;

  // `cache`, `store`, `timers` and `pool` outlive the registry.
  Registry(RegistryOptions options, Cache& cache, Store& store, Executor& timers, ThreadPool& pool);
  ~Registry();  // stop()

  // A model of the hub. Concurrent calls for one model share one resolution. kNotFound, kAccess,
  // kOffline, kOrigin. Returns a ticket for cancel(); the load itself goes on for others.
  uint64_t get(const std::string& repo, const std::string& revision, Done done);
  // An alias of the configuration; kNotFound when there is none of that name.
  uint64_t get_alias(const std::string& alias, Done done);
  void cancel(uint64_t ticket);  // done(kCancelled) is called unless it was called already

  // The mounted model, at once, or null.
  std::shared_ptr<Model> mounted(const std::string& repo, const std::string& revision) const;
  std::vector<std::string> alias_names() const;
  bool is_alias(const std::string& name) const;
  // Every model that is mounted or known from earlier runs: (repo, revision) pairs, without
  // aliases.
  struct Known {
    std::string repo, revision, commit;
  };
  std::vector<Known> known() const;
  // Every commit of `repo` that is mounted or known.
  std::vector<std::string> commits(const std::string& repo) const;

  // Resolves again; when the commit moved, later lookups see the new one. `name`: alias, org/name
  // or org/name@rev. done gets (old commit, new commit).
  using Refreshed = std::function<void(Result<std::pair<std::string, std::string>>)>;
  void refresh(const std::string& name, Refreshed done);
  // A file of `model` turned out to be another than the one that was listed (kStale): resolves it again, once for all who
  // ask. done follows when lookups see what there is now, or at once where nothing can have changed. After stop() it may
  // never follow.
  void renew(const std::shared_ptr<Model>& model, std::function<void()> done);
  // Called after a refresh that moved a model: fs invalidates what the kernel remembers of it.
  void on_refresh(
      std::function<void(const std::string& repo, const std::string& revision)> listener);

  // Files were put into the cache as ones of `model` (Cache::put): a name that did not exist may do
  // now.
  void put_changed(const std::string& model, const std::string& file);
  // Called then: fs invalidates what the kernel remembers of that path.
  void on_put(std::function<void(const std::string& model, const std::string& file)> listener);

  void stop();  // every wait ends with kCancelled

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nexus
