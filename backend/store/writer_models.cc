// What the writer keeps until a transaction has it: models, headers, the day; and the catalog asked
// for what has been committed.
#include <map>
#include <utility>

#include "backend/store/writer.h"

namespace nexus {

namespace {
// Models and headers kept while the disk is failing.
constexpr uint64_t kUnsavedMaxBytes = 64 << 20;
}  // namespace

void StoreWriter::save_model(const StoredModel& model) {
  std::lock_guard lock(mutex_);
  if (catalog_failing_ && unsaved_bytes_ + model.snapshot.size() > kUnsavedMaxBytes) return;
  unsaved_bytes_ += model.snapshot.size();
  models_[{model.repo, model.revision}] = {std::make_shared<const StoredModel>(model), ++sequence_};
  wake(false);
}

std::optional<StoredModel> StoreWriter::load_model(const std::string& repo,
                                                   const std::string& revision) {
  {
    std::lock_guard lock(mutex_);
    auto it = models_.find({repo, revision});
    if (it != models_.end()) return *it->second.value;
  }
  return ask_catalog(&Catalog::load_model, repo, revision).value_or(std::nullopt);
}

std::vector<StoredModel> StoreWriter::list_models() {
  std::map<std::pair<std::string, std::string>, StoredModel> all;
  if (auto committed = ask_catalog(&Catalog::list_models)) {
    for (StoredModel& model : *committed) all[{model.repo, model.revision}] = std::move(model);
  }
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, model] : models_) {
      all[id] = {model.value->repo, model.value->revision, model.value->commit, ""};
    }
  }
  std::vector<StoredModel> models;
  for (auto& [id, model] : all) models.push_back(std::move(model));
  return models;
}

void StoreWriter::save_header(const std::string& id, const std::string& bytes) {
  std::lock_guard lock(mutex_);
  if (catalog_failing_ && unsaved_bytes_ + bytes.size() > kUnsavedMaxBytes) return;
  unsaved_bytes_ += bytes.size();
  headers_[id] = {std::make_shared<const std::string>(bytes), ++sequence_};
  wake(false);
}

void StoreWriter::save_day(CatalogDay day) {
  std::lock_guard lock(mutex_);
  day_ = {std::make_shared<const CatalogDay>(std::move(day)), ++sequence_};
  wake(false);
}

std::optional<std::string> StoreWriter::load_header(const std::string& id) {
  {
    std::lock_guard lock(mutex_);
    auto it = headers_.find(id);
    if (it != headers_.end()) return *it->second.value;
  }
  return ask_catalog(&Catalog::load_header, id).value_or(std::nullopt);
}

Result<void> StoreWriter::forget_models() {
  flush();  // a batch that is under way would bring back what it holds
  {
    std::lock_guard lock(mutex_);
    models_.clear();
    headers_.clear();
    unsaved_bytes_ = 0;
  }
  return on_catalog([](Catalog& catalog) { return catalog.clear_models(); });
}

Result<void> StoreWriter::compact() {
  flush();
  return on_catalog([](Catalog& catalog) { return catalog.compact(); });
}

}  // namespace nexus
