#include "backend/model/registry.h"

#include <algorithm>
#include <set>

#include "backend/model/registry_impl.h"

namespace nexus {

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
