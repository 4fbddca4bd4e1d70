// A model whose files turned out to be others than those that were listed.
#include <spdlog/spdlog.h>

#include "backend/model/registry_impl.h"

namespace nexus {

void Registry::renew(const std::shared_ptr<Model>& model, std::function<void()> done) {
  const auto target = impl_->alias_target(model->repo());
  {
    std::lock_guard lock(impl_->mutex);
    const auto mounted = target ? impl_->mounted.find(target->key) : impl_->mounted.end();
    if (mounted != impl_->mounted.end() && mounted->second == model && !impl_->stopped) {
      auto& waiting = impl_->renewing[target->key];
      waiting.push_back(std::move(done));
      done = nullptr;
      if (waiting.size() > 1) return;
    }
  }
  if (done) return done();  // a commit of the hub, or renewed already
  refresh(model->repo(), [impl = impl_, key = target->key](Result<std::pair<std::string, std::string>> moved) {
    if (!moved) {
      spdlog::warn("{}", moved.error().what);
    } else if (moved->first != moved->second) {
      spdlog::info("{}: its files changed: {} is {} now", key, moved->first, moved->second);
    }
    std::vector<std::function<void()>> waiting;
    {
      std::lock_guard lock(impl->mutex);
      const auto it = impl->renewing.find(key);
      waiting = std::move(it->second);
      impl->renewing.erase(it);
    }
    for (const auto& one : waiting) one();
  });
}

}  // namespace nexus
