// A Model over a snapshot: internal to model/, made by the Registry.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "backend/model/header_reader.h"
#include "backend/model/model.h"
#include "backend/model/weights.h"

namespace nexus {

struct ModelOptions {
  bool list_views = false;
  uint64_t header_bytes_max = 0;
  std::chrono::seconds retry_after{5};  // after headers could not be read for a passing reason
};

class LoadedModel final : public Model, public std::enable_shared_from_this<LoadedModel> {
 public:
  // `asked_repo` is the name users see; `cache`, `store` and `pool` outlive the model.
  LoadedModel(std::string asked_repo, std::shared_ptr<const ModelSource> source,
              ModelOptions options, Cache& cache, Store& store, ThreadPool& pool);
  // Begins reading headers. Once, before the model is shown to anyone.
  void start();

  const std::string& repo() const override { return asked_repo_; }
  const std::string& revision() const override { return source_->snapshot.revision; }
  const std::string& commit() const override { return source_->snapshot.commit; }
  bool restricted() const override { return source_->snapshot.restricted; }
  int64_t mtime_s() const override { return source_->snapshot.mtime_s; }
  std::string source() const override { return source_->origin->describe(); }
  FindResult find(const std::string& path) override;
  std::optional<std::vector<ModelNode>> list(const std::string& directory) override;
  uint64_t when_ready(std::function<void()> ready) override;
  void cancel_wait(uint64_t ticket) override;
  std::string error() const override;
  int layer_count() const override;
  std::optional<LayerAccess> layer_access(const ModelNode& node) const override;
  std::vector<int> file_order() const override;
  std::vector<LayerPiece> layer_pieces(LayerView view, int layer) override;

 private:
  // Everything that follows from the headers. Immutable once made.
  struct Layout {
    ModelTensors model;
    std::map<uint32_t, std::vector<HeaderDigest>> digests;  // by file
    std::map<uint32_t, std::string> file_errors, file_notes;
    std::vector<ModelNode> layers;  // layer_0.pt ..
    std::optional<ModelNode> non_layer;
    std::map<uint32_t, std::shared_ptr<const LayerSpans>> spans;  // by weight file
    bool transient = false;
    std::chrono::steady_clock::time_point made;
  };
  struct Gathering;  // headers on their way

  void read_headers();
  void read_header(const std::shared_ptr<Gathering>& gathering, uint32_t file);
  bool read_named_by_index(const std::shared_ptr<Gathering>& gathering);
  void gathered(const std::shared_ptr<Gathering>& gathering);
  std::shared_ptr<Layout> build(Gathering& gathering);
  std::shared_ptr<const Layout>
  ready_layout();  // null: pending (begins another try when it is time)

  // What was put into the cache under this model's name; it stands before whatever the origin has
  // there.
  std::optional<ModelNode> put_node(const std::string& path) const;
  ModelNode origin_node(uint32_t file, const Layout* layout) const;
  std::optional<ModelNode> view(const std::string& path, const Layout& layout);
  ModelNode torch_node(const std::string& name, int layer, const std::vector<uint32_t>& tensors,
                       const Layout& layout);
  ModelNode safetensors_node(const std::string& path, int layer,
                             const std::vector<uint32_t>& tensors, const Layout& layout);
  std::string tensor_error(const std::vector<uint32_t>& tensors, const Layout& layout) const;
  void attach(ModelNode& node, const std::string& kind, ObjectLayout layout_of_object,
              const Layout& layout);
  std::vector<std::string> airllm_modules(const Layout& layout) const;
  std::string airllm_path(int layer) const;
  std::vector<ModelNode> list_view(const std::string& directory, const Layout& layout);

  const std::string asked_repo_;
  const std::shared_ptr<const ModelSource> source_;
  const ModelOptions options_;
  Cache& cache_;
  Store& store_;
  ThreadPool& pool_;
  const WeightFiles weights_;
  std::map<std::string, uint32_t> by_path_;  // origin files
  std::set<std::string> directories_;        // origin directories, without ""
  std::set<uint32_t> is_weight_;             // and the index: what their headers say shows on them

  mutable std::mutex mutex_;  // guards the rest
  std::shared_ptr<const Layout> layout_;
  bool reading_ = false;
  std::map<uint64_t, std::function<void()>> waiters_;
  uint64_t next_ticket_ = 1;
};

// Where the layers' tensors lie, by origin file (layers.cc).
std::map<uint32_t, std::shared_ptr<const LayerSpans>> layer_spans_of(const ModelTensors& model);

}  // namespace nexus
