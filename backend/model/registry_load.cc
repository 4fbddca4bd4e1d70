#include <spdlog/spdlog.h>

#include <utility>

#include "backend/model/registry_impl.h"
#include "backend/model/snapshot_json.h"

namespace nexus {

namespace {

using Clock = std::chrono::steady_clock;

// Errors that say nothing about whether the model exists: the copy in the store may stand in.
bool out_of_reach(const Error& error) {
  return error.code == Code::kOffline || error.code == Code::kOrigin;
}

}  // namespace

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

}  // namespace nexus
