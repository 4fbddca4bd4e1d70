#include "backend/model/loaded_model.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "backend/format/safetensors.h"

namespace nexus {

namespace {
constexpr uint64_t kIndexMax = 64'000'000;  // bytes; the largest index.json known is under 10 MB
}

// Counted down by the pool; whoever takes it to zero builds the layout.
struct LoadedModel::Gathering {
  std::mutex mutex;  // guards everything
  size_t left = 0;
  std::shared_ptr<HeaderBudget> budget;
  std::map<uint32_t, HeaderOutcome> headers;
  std::optional<std::map<std::string, std::string>> weight_map;
  std::string index_error;
  bool index_transient = false;
};

LoadedModel::LoadedModel(std::string asked_repo, std::shared_ptr<const ModelSource> source,
                         ModelOptions options, Cache& cache, Store& store, ThreadPool& pool)
    : asked_repo_(std::move(asked_repo)),
      source_(std::move(source)),
      options_(options),
      cache_(cache),
      store_(store),
      pool_(pool),
      weights_(choose_weight_files(source_->snapshot)) {
  const auto& files = source_->snapshot.files;
  for (uint32_t i = 0; i < files.size(); ++i) {
    by_path_.emplace(files[i].path, i);
    for (size_t slash = files[i].path.find('/'); slash != std::string::npos;
         slash = files[i].path.find('/', slash + 1)) {
      directories_.insert(files[i].path.substr(0, slash));
    }
  }
  is_weight_.insert(weights_.files.begin(), weights_.files.end());
  if (weights_.index) is_weight_.insert(*weights_.index);
}

void LoadedModel::start() {
  for (const std::string& complaint : source_->snapshot.complaints) {
    spdlog::warn("{}@{}: {}", asked_repo_, commit(), complaint);
  }
  std::lock_guard lock(mutex_);
  if (weights_.kind == WeightKind::kNone) {
    auto layout = std::make_shared<Layout>();
    layout->made = std::chrono::steady_clock::now();
    layout_ = std::move(layout);
    return;
  }
  read_headers();
}

void LoadedModel::read_header(const std::shared_ptr<Gathering>& gathering, uint32_t file) {
  HeaderRequest request;
  request.source = source_;
  request.file = file;
  request.kind = weights_.kind;
  request.budget = gathering->budget;
  request.done = [self = shared_from_this(), gathering, file](HeaderOutcome outcome) {
    {
      std::lock_guard guard(gathering->mutex);
      gathering->headers[file] = std::move(outcome);
      if (--gathering->left > 0) return;
    }
    self->gathered(gathering);
  };
  read_weight_header(std::move(request), store_, pool_);
}

// Holds mutex_.
void LoadedModel::read_headers() {
  reading_ = true;
  auto gathering = std::make_shared<Gathering>();
  gathering->left = weights_.files.size() + (weights_.index ? 1 : 0);
  gathering->budget =
      std::make_shared<HeaderBudget>(static_cast<int64_t>(options_.header_bytes_max));
  // All at once: the headers and the index are one step after the listing.
  for (const uint32_t file : weights_.files) read_header(gathering, file);
  if (!weights_.index) return;
  read_small_file(
      source_, *weights_.index, kIndexMax, store_, pool_,
      [self = shared_from_this(), gathering](Result<std::string> bytes) {
        auto map = bytes.and_then([](const std::string& text) { return parse_weight_index(text); });
        {
          std::lock_guard guard(gathering->mutex);
          if (map) {
            gathering->weight_map = std::move(*map);
          } else {
            gathering->index_error = map.error().what;
            gathering->index_transient =
                map.error().code == Code::kOffline || map.error().code == Code::kOrigin;
          }
          if (--gathering->left > 0) return;
        }
        self->gathered(gathering);
      });
}

// Files that only the index names (a draft head beside numbered shards): one more step, rarely
// taken.
bool LoadedModel::read_named_by_index(const std::shared_ptr<Gathering>& gathering) {
  if (!gathering->weight_map) return false;
  const std::string directory = directory_of(source_->snapshot.files[*weights_.index].path);
  std::set<uint32_t> named;
  for (const auto& [tensor, base] : *gathering->weight_map) {
    auto it = by_path_.find(directory + base);
    if (it != by_path_.end() && !gathering->headers.count(it->second)) named.insert(it->second);
  }
  if (named.empty()) return false;
  gathering->left = named.size();
  for (const uint32_t file : named) read_header(gathering, file);
  return true;
}

void LoadedModel::gathered(const std::shared_ptr<Gathering>& gathering) {
  if (read_named_by_index(gathering)) return;
  auto layout = build(*gathering);
  std::map<uint64_t, std::function<void()>> waiters;
  {
    std::lock_guard lock(mutex_);
    layout_ = std::move(layout);
    reading_ = false;
    waiters.swap(waiters_);
  }
  for (const auto& [ticket, ready] : waiters) ready();
}

std::shared_ptr<LoadedModel::Layout> LoadedModel::build(Gathering& gathering) {
  auto layout = std::make_shared<Layout>();
  layout->made = std::chrono::steady_clock::now();
  const auto& files = source_->snapshot.files;
  std::map<uint32_t, WeightHeader> headers;
  for (auto& [file, outcome] : gathering.headers) {
    layout->transient |= outcome.transient;
    if (!outcome.note.empty()) {
      layout->file_notes[file] = outcome.note;
    } else if (!outcome.header.error.empty()) {
      // A header that could not be fetched says nothing against the file; one that is wrong does.
      if (!outcome.transient) {
        layout->file_errors[file] = files[file].path + ": " + outcome.header.error;
      }
    }
    layout->digests[file] = std::move(outcome.digests);
    headers.emplace(file, std::move(outcome.header));
  }
  layout->transient |= gathering.index_transient;
  std::string directory;
  if (weights_.index) directory = directory_of(files[*weights_.index].path);
  WeightFiles read = weights_;
  read.files.clear();
  for (const auto& [file, header] : headers) read.files.push_back(file);
  layout->model =
      gather_tensors(source_->snapshot, read, headers,
                     gathering.weight_map ? &*gathering.weight_map : nullptr, directory);
  if (!gathering.index_error.empty()) {
    layout->model.complaints.insert(layout->model.complaints.begin(), gathering.index_error);
  }
  if (weights_.index && !layout->model.complaints.empty()) {
    layout->file_notes[*weights_.index] =
        files[*weights_.index].path + ": " + layout->model.complaints.front();
  }
  for (const std::string& complaint : layout->model.complaints) {
    spdlog::warn("{}@{}: {}", asked_repo_, commit(), complaint);
  }
  layout->spans = layer_spans_of(layout->model);
  const auto& assignment = layout->model.assignment;
  for (size_t i = 0; i < assignment.layers.size(); ++i) {
    const std::string name = "layer_" + std::to_string(i);
    layout->layers.push_back(
        torch_node(name, static_cast<int>(i), assignment.layers[i].tensors, *layout));
  }
  if (!assignment.layers.empty() || !assignment.non_layer.empty()) {
    layout->non_layer = torch_node("non_layer", -1, assignment.non_layer, *layout);
  }
  return layout;
}

std::shared_ptr<const LoadedModel::Layout> LoadedModel::ready_layout() {
  std::lock_guard lock(mutex_);
  if (layout_ && layout_->transient && !reading_ &&
      std::chrono::steady_clock::now() - layout_->made > options_.retry_after &&
      source_->origin->reachable()) {
    layout_.reset();
    read_headers();
  }
  return layout_;
}

uint64_t LoadedModel::when_ready(std::function<void()> ready) {
  {
    std::lock_guard lock(mutex_);
    if (!layout_) {
      const uint64_t ticket = next_ticket_++;
      waiters_.emplace(ticket, std::move(ready));
      return ticket;
    }
  }
  ready();
  return 0;
}

void LoadedModel::cancel_wait(uint64_t ticket) {
  std::lock_guard lock(mutex_);
  waiters_.erase(ticket);
}

std::string LoadedModel::error() const {
  std::string text;
  for (const std::string& complaint : source_->snapshot.complaints) text += complaint + "\n";
  std::lock_guard lock(mutex_);
  if (layout_) {
    for (const std::string& complaint : layout_->model.complaints) text += complaint + "\n";
  }
  if (!text.empty()) text.pop_back();
  return text;
}

}  // namespace nexus
