#include "backend/model/registry.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>

#include "backend/model/loaded_model.h"
#include "backend/model/snapshot_json.h"

namespace nexus {

namespace {

using Clock = std::chrono::steady_clock;

bool is_commit(const std::string& revision) {
  return revision.size() == 40 &&
         revision.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// Errors that say nothing about whether the model exists: the copy in the store may stand in.
bool out_of_reach(const Error& error) {
  return error.code == Code::kOffline || error.code == Code::kOrigin;
}

}  // namespace

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
  std::map<std::string, std::pair<Clock::time_point, Error>> absent;
  std::map<std::pair<std::string, std::string>, std::string> known;  // (repo, revision) -> commit
  std::function<void(const std::string&, const std::string&)> listener;
  std::function<void(const std::string&, const std::string&)> put_listener;
  uint64_t next_ticket = 1;
  bool stopped = false;
};

uint64_t Registry::Impl::get(Target target, Done done) {
  std::unique_lock lock(mutex);
  if (stopped) {
    lock.unlock();
    done(fail(Code::kCancelled, target.shown + ": the mount is closing"));
    return 0;
  }
  if (auto it = mounted.find(target.key); it != mounted.end()) {
    auto model = it->second;
    lock.unlock();
    done(std::shared_ptr<Model>(std::move(model)));
    return 0;
  }
  if (auto it = absent.find(target.key); it != absent.end()) {
    if (Clock::now() < it->second.first) {
      Error error = it->second.second;
      lock.unlock();
      done(tl::unexpected<Error>(std::move(error)));
      return 0;
    }
    absent.erase(it);
  }
  if (!target.origin && !cache.put_files(target.shown).empty()) target.origin = put_origin();
  if (!target.origin) {
    lock.unlock();
    done(fail(Code::kNotFound, target.shown + ": no hub is configured"));
    return 0;
  }
  const uint64_t ticket = next_ticket++;
  auto [entry, first] = loading.try_emplace(target.key);
  entry->second.push_back({ticket, std::move(done)});
  lock.unlock();
  if (first) begin(target);
  return ticket;
}

std::optional<StoredModel> Registry::Impl::row_at_commit(const Target& target) {
  std::vector<std::string> revisions;
  {
    std::lock_guard lock(mutex);
    for (const auto& [name, commit] : known) {
      if (name.first == target.stored_as && commit == target.revision) {
        revisions.push_back(name.second);
      }
    }
  }
  for (const std::string& revision : revisions) {
    auto row = store.load_model(target.stored_as, revision);
    if (row && row->commit == target.revision) return row;
  }
  return std::nullopt;
}

void Registry::Impl::begin(const Target& target) {
  // The catalog is a disk, so it is asked on the pool, not on the caller's thread.
  pool.post([self = shared_from_this(), target] {
    std::optional<Snapshot> stored;
    auto row = self->store.load_model(target.stored_as, target.revision);
    if (!row && is_commit(target.revision)) row = self->row_at_commit(target);
    if (row) {
      auto snapshot = snapshot_from_json(row->snapshot);
      if (snapshot) {
        snapshot->revision = target.revision;
        stored = std::move(*snapshot);
      } else {
        spdlog::warn("{}: {}", target.shown, snapshot.error().what);
      }
    }
    // A commit does not move, so what is known of it needs no question.
    if (stored && (is_commit(target.revision) || !target.origin->reachable())) {
      self->finish(target, std::move(*stored), false);
      return;
    }
    self->resolve(target, std::move(stored));
  });
}

void Registry::Impl::resolve(const Target& target, std::optional<Snapshot> stored) {
  // Whoever comes first answers: the origin, or, for a model known from before, the clock.
  struct Race {
    std::mutex mutex;
    bool over = false;
    bool win() {
      std::lock_guard lock(mutex);
      return !std::exchange(over, true);
    }
  };
  auto race = std::make_shared<Race>();
  auto copy = std::make_shared<std::optional<Snapshot>>(std::move(stored));
  uint64_t timer = 0;
  if (*copy) {
    timer = timers.post_after(options.stale_wait, [self = shared_from_this(), target, race, copy] {
      if (!race->win()) return;
      spdlog::warn("{}: {} is slow to answer; using the listing of an earlier run", target.shown,
                   target.origin->describe());
      self->finish(target, **copy, false);
    });
  }
  target.origin->load(
      target.repo, target.revision,
      [self = shared_from_this(), target, race, copy, timer](Result<Snapshot> snapshot) {
        if (!race->win()) return;
        if (timer) self->timers.cancel(timer);
        // Off the network's thread: finishing writes to the catalog and parses.
        self->pool.post([self, target, copy, snapshot = std::move(snapshot)]() mutable {
          if (!snapshot && out_of_reach(snapshot.error()) && *copy) {
            spdlog::warn("{}: {}; using the listing of an earlier run", target.shown,
                         snapshot.error().what);
            self->finish(target, std::move(**copy), false);
          } else {
            self->finish(target, std::move(snapshot), true);
          }
        });
      });
}

std::shared_ptr<LoadedModel> Registry::Impl::make_of_puts(const Target& target,
                                                          const Error& error) {
  if (target.revision != "main" || cache.put_files(target.shown).empty()) return nullptr;
  Snapshot snapshot;
  snapshot.repo = target.shown;
  snapshot.revision = target.revision;
  snapshot.commit = kPutCommit;
  snapshot.restricted = error.code == Code::kAccess;  // there is a model of that name, for some
  return make(target, put_origin(), std::move(snapshot));
}

std::shared_ptr<LoadedModel> Registry::Impl::make(const Target& target,
                                                  std::shared_ptr<Origin> origin,
                                                  Snapshot snapshot) {
  auto source = std::make_shared<ModelSource>(ModelSource{std::move(origin), std::move(snapshot)});
  ModelOptions model_options;
  model_options.list_views = options.list_views;
  model_options.header_bytes_max = options.header_bytes_max;
  auto model = std::make_shared<LoadedModel>(target.shown, std::move(source), model_options, cache,
                                             store, pool);
  model->start();
  return model;
}

void Registry::Impl::finish(const Target& target, Result<Snapshot> snapshot, bool fresh) {
  if (snapshot && fresh) {
    store.save_model(
        {target.stored_as, target.revision, snapshot->commit, snapshot_to_json(*snapshot)});
  }
  std::shared_ptr<LoadedModel> model;
  if (snapshot) {
    spdlog::info("{}: {} is commit {}, {} files from {}", target.shown, target.revision,
                 snapshot->commit, snapshot->files.size(), target.origin->describe());
    model = make(target, target.origin, std::move(*snapshot));
  } else if ((model = make_of_puts(target, snapshot.error()))) {
    spdlog::info("{}: {}; it has what was put into the cache", target.shown, snapshot.error().what);
  } else {
    spdlog::warn("{}@{}: {}", target.shown, target.revision, snapshot.error().what);
  }
  // The origin may have more of it once it can be reached.
  const bool passing = !snapshot && out_of_reach(snapshot.error());
  std::vector<Waiting> waiting;
  {
    std::lock_guard lock(mutex);
    if (auto it = loading.find(target.key); it != loading.end()) {
      waiting = std::move(it->second);
      loading.erase(it);
    }
    if (model && passing) {
      // Asked anew each time.
    } else if (model) {
      mounted[target.key] = model;
      if (snapshot && target.origin == options.hub)
        known[{target.repo, target.revision}] = model->commit();
    } else if (snapshot.error().code == Code::kNotFound || snapshot.error().code == Code::kAccess) {
      absent[target.key] = {Clock::now() + options.absent_ttl, snapshot.error()};
    }
  }
  for (const Waiting& one : waiting) {
    if (model) {
      one.done(std::shared_ptr<Model>(model));
    } else {
      one.done(tl::unexpected<Error>(snapshot.error()));
    }
  }
}

Registry::Registry(RegistryOptions options, Cache& cache, Store& store, Executor& timers,
                   ThreadPool& pool)
    : impl_(std::make_shared<Impl>(std::move(options), cache, store, timers, pool)) {}

Registry::~Registry() {
  stop();
}

uint64_t Registry::get(const std::string& repo, const std::string& revision, Done done) {
  return impl_->get(impl_->hub_target(repo, revision), std::move(done));
}

uint64_t Registry::get_alias(const std::string& alias, Done done) {
  auto target = impl_->alias_target(alias);
  if (!target) {
    done(fail(Code::kNotFound, alias + ": no such alias"));
    return 0;
  }
  return impl_->get(std::move(*target), std::move(done));
}

void Registry::cancel(uint64_t ticket) {
  Done done;
  {
    std::lock_guard lock(impl_->mutex);
    for (auto& [key, waiting] : impl_->loading) {
      auto it = std::find_if(waiting.begin(), waiting.end(),
                             [ticket](const Impl::Waiting& one) { return one.ticket == ticket; });
      if (it == waiting.end()) continue;
      done = std::move(it->done);
      waiting.erase(it);
      break;
    }
  }
  // Posted: a cancel may come from within an interrupt callback, which must not answer itself.
  if (done) {
    impl_->timers.post([done = std::move(done)] { done(fail(Code::kCancelled, "interrupted")); });
  }
}

std::shared_ptr<Model> Registry::mounted(const std::string& repo,
                                         const std::string& revision) const {
  std::lock_guard lock(impl_->mutex);
  auto it = impl_->mounted.find(impl_->hub_target(repo, revision).key);
  return it == impl_->mounted.end() ? nullptr : it->second;
}

std::vector<std::string> Registry::alias_names() const {
  std::vector<std::string> names;
  for (const auto& [name, alias] : impl_->options.aliases) names.push_back(name);
  return names;
}

bool Registry::is_alias(const std::string& name) const {
  return impl_->options.aliases.count(name) > 0;
}

std::vector<Registry::Known> Registry::known() const {
  std::lock_guard lock(impl_->mutex);
  std::vector<Known> all;
  for (const auto& [name, commit] : impl_->known) all.push_back({name.first, name.second, commit});
  for (const std::string& model : impl_->cache.put_models()) {
    if (impl_->known.count({model, "main"}) || impl_->options.aliases.count(model)) continue;
    all.push_back({model, "main", kPutCommit});
  }
  return all;
}

std::vector<std::string> Registry::commits(const std::string& repo) const {
  std::lock_guard lock(impl_->mutex);
  std::set<std::string> commits;
  for (const auto& [name, commit] : impl_->known) {
    if (name.first == repo && is_commit(commit)) commits.insert(commit);
  }
  return {commits.begin(), commits.end()};
}

void Registry::refresh(const std::string& name, Refreshed done) {
  auto target = impl_->alias_target(name);
  if (!target) {
    const size_t at = name.find('@');
    const std::string repo = name.substr(0, at);
    if (!valid_repo_name(repo)) return done(fail(Code::kInvalid, name + ": not a model's name"));
    target = impl_->hub_target(repo, at == std::string::npos ? "main" : name.substr(at + 1));
  }
  if (!target->origin) return done(fail(Code::kNotFound, name + ": no hub is configured"));
  target->origin->load(
      target->repo, target->revision,
      [impl = impl_, target = *target, done = std::move(done)](Result<Snapshot> snapshot) {
        impl->pool.post([impl, target, done, snapshot = std::move(snapshot)]() mutable {
          if (!snapshot) return done(tl::unexpected<Error>(snapshot.error()));
          std::string before;
          {
            std::lock_guard lock(impl->mutex);
            if (auto it = impl->mounted.find(target.key); it != impl->mounted.end()) {
              before = it->second->commit();
            }
            impl->absent.erase(target.key);
          }
          const std::string after = snapshot->commit;
          // An unchanged model keeps its nodes and layouts.
          if (before != after) impl->finish(target, std::move(snapshot), true);
          std::function<void(const std::string&, const std::string&)> listener;
          {
            std::lock_guard lock(impl->mutex);
            listener = impl->listener;
          }
          if (before != after && listener) listener(target.shown, target.revision);
          done(std::make_pair(before, after));
        });
      });
}

void Registry::on_refresh(
    std::function<void(const std::string& repo, const std::string& revision)> listener) {
  std::lock_guard lock(impl_->mutex);
  impl_->listener = std::move(listener);
}

void Registry::put_changed(const std::string& model, const std::string& file) {
  std::function<void(const std::string&, const std::string&)> listener;
  {
    std::lock_guard lock(impl_->mutex);
    impl_->absent.erase(impl_->hub_target(model, "main").key);
    if (auto target = impl_->alias_target(model)) impl_->absent.erase(target->key);
    listener = impl_->put_listener;
  }
  if (listener) listener(model, file);
}

void Registry::on_put(
    std::function<void(const std::string& model, const std::string& file)> listener) {
  std::lock_guard lock(impl_->mutex);
  impl_->put_listener = std::move(listener);
}

void Registry::stop() {
  std::map<std::string, std::vector<Impl::Waiting>> loading;
  {
    std::lock_guard lock(impl_->mutex);
    impl_->stopped = true;
    loading.swap(impl_->loading);
  }
  for (auto& [key, waiting] : loading) {
    for (auto& one : waiting) one.done(fail(Code::kCancelled, "the mount is closing"));
  }
}

}  // namespace nexus
