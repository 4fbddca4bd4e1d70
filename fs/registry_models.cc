#include "backend/model/registry.h"

#include <utility>

#include "fs/tree.h"

namespace nexus::fs {

namespace {

class RegistryModels final : public Models {
 public:
  explicit RegistryModels(Registry& registry) : registry_(registry) {}
  uint64_t get(const std::string& repo, const std::string& revision, Done done) override {
    return registry_.get(repo, revision, std::move(done));
  }
  uint64_t get_alias(const std::string& alias, Done done) override {
    return registry_.get_alias(alias, std::move(done));
  }
  void cancel(uint64_t ticket) override { registry_.cancel(ticket); }
  std::shared_ptr<Model> mounted(const std::string& repo,
                                 const std::string& revision) const override {
    return registry_.mounted(repo, revision);
  }
  bool is_alias(const std::string& name) const override { return registry_.is_alias(name); }
  std::vector<std::string> alias_names() const override { return registry_.alias_names(); }
  std::vector<Known> known() const override {
    std::vector<Known> result;
    for (auto& known : registry_.known()) {
      result.push_back({known.repo, known.revision, known.commit});
    }
    return result;
  }
  std::vector<std::string> commits(const std::string& repo) const override {
    return registry_.commits(repo);
  }
  void renew(const std::shared_ptr<Model>& model, std::function<void()> done) override {
    registry_.renew(model, std::move(done));
  }

 private:
  Registry& registry_;
};

}  // namespace

std::unique_ptr<Models> models_of(Registry& registry) {
  return std::make_unique<RegistryModels>(registry);
}

}  // namespace nexus::fs
