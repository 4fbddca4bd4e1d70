#include "prefetch/read_ahead.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <mutex>
#include <utility>

namespace nexus::prefetch {

namespace {
// What the store keeps an order under: all commits of a repo have the same layers, as a rule.
std::string order_id(const std::string& model) {
  return "walk:" + model.substr(0, model.find('@'));
}

uint64_t missing_of(const LayerPiece& piece) {
  if (!piece.object->spec().local_path.empty()) return 0;  // served from where it lies
  const auto file = piece.object->file();
  if (!file) return piece.range.length;
  uint64_t missing = 0;
  for (uint64_t at = piece.range.offset; at < piece.range.end();) {
    const uint64_t chunk = at / kChunkBytes;
    const uint64_t stop = std::min(piece.range.end(), (chunk + 1) * kChunkBytes);
    if (!file->has(chunk)) missing += stop - at;
    at = stop;
  }
  return missing;
}
}  // namespace

// The pieces of a layer under one ticket. Thread-safe.
class LayerReadAhead::Fetcher : public std::enable_shared_from_this<Fetcher> {
 public:
  using Done = std::function<void(Result<void>)>;

  Fetcher(Cache& cache, bool strict) : cache_(cache), strict_(strict) {}

  // What strict integrity fetches for a piece: the files that it is made from, or all of the file that it is in.
  std::map<std::string, uint64_t> missing_files(const std::vector<LayerPiece>& pieces) {
    std::map<std::string, uint64_t> missing;
    if (!strict_) return missing;
    const auto add = [&](const std::shared_ptr<Object>& file) {
      auto [entry, first] = missing.try_emplace(file->spec().key, 0);
      if (first) entry->second = missing_of({file, {0, file->size()}});
    };
    for (const LayerPiece& piece : pieces) {
      const ObjectSpec& spec = piece.object->spec();
      for (const HeaderDigest& header : spec.headers) add(cache_.object(blob_spec(spec.source, header.file)));
      if (spec.headers.empty()) add(piece.object);
    }
    std::erase_if(missing, [](const auto& file) { return file.second == 0; });
    return missing;
  }

  uint64_t fetch(const std::vector<LayerPiece>& pieces, int priority, Done done) {
    auto group = std::make_shared<Group>();
    group->left = pieces.size() + 1;
    group->done = std::move(done);
    {
      std::lock_guard lock(mutex_);
      group->ticket = next_++;
      groups_.emplace(group->ticket, group);
    }
    for (const LayerPiece& piece : pieces) {
      const uint64_t ticket = cache_.prefetch(
          piece.object, piece.range, priority,
          [self = shared_from_this(), group](Result<void> result) { self->end(*group, result); });
      std::lock_guard lock(mutex_);
      group->tickets.push_back(ticket);
    }
    end(*group, {});  // no piece is the last one before all have begun
    return group->ticket;
  }

  void cancel(uint64_t ticket) {
    std::vector<uint64_t> tickets;
    {
      std::lock_guard lock(mutex_);
      const auto group = groups_.find(ticket);
      if (group == groups_.end()) return;
      tickets = group->second->tickets;
    }
    for (const uint64_t one : tickets) cache_.cancel(one);
  }

 private:
  struct Group {
    uint64_t ticket = 0;
    size_t left = 0;
    std::vector<uint64_t> tickets;
    Result<void> result;
    Done done;
  };

  void end(Group& group, const Result<void>& result) {
    Done done;
    Result<void> all;
    {
      std::lock_guard lock(mutex_);
      if (!result) group.result = result;
      if (--group.left > 0) return;
      done = std::move(group.done);
      all = group.result;
      groups_.erase(group.ticket);
    }
    done(std::move(all));
  }

  Cache& cache_;
  const bool strict_;
  std::mutex mutex_;  // guards everything below, and the groups
  std::map<uint64_t, std::shared_ptr<Group>> groups_;
  uint64_t next_ = 1;
};

class LayerReadAhead::Source final : public LayerSource {
 public:
  Source(std::shared_ptr<Model> model, std::shared_ptr<Fetcher> fetcher)
      : model_(std::move(model)), fetcher_(std::move(fetcher)) {}

  int layer_count() override { return model_->layer_count(); }
  std::vector<int> file_order() override { return model_->file_order(); }
  uint64_t missing(LayerView view, int layer) override {
    uint64_t bytes = 0;
    for (const LayerPiece& piece : model_->layer_pieces(view, layer)) bytes += missing_of(piece);
    return bytes;
  }
  std::map<std::string, uint64_t> missing_files(LayerView view, int layer) override {
    return fetcher_->missing_files(model_->layer_pieces(view, layer));
  }
  uint64_t fetch(LayerView view, int layer, int turn, Fetcher::Done done) override {
    std::vector<LayerPiece> pieces = model_->layer_pieces(view, layer);
    std::erase_if(pieces, [](const LayerPiece& piece) { return missing_of(piece) == 0; });
    return fetcher_->fetch(pieces, kPrefetch + turn, std::move(done));
  }
  void cancel(uint64_t ticket) override { fetcher_->cancel(ticket); }

 private:
  const std::shared_ptr<Model> model_;
  const std::shared_ptr<Fetcher> fetcher_;
};

std::vector<int> LayerReadAhead::Orders::load(const std::string& model) {
  std::vector<int> order;
  const std::string text = store_.load_header(order_id(model)).value_or("");
  const char* const end = text.data() + text.size();
  for (const char* at = text.data(); at < end;) {
    int layer = 0;
    const auto [next, error] = std::from_chars(at, end, layer);
    if (error != std::errc{}) return {};
    order.push_back(layer);
    at = next + 1;  // a comma
  }
  return order;
}

void LayerReadAhead::Orders::save(const std::string& model, const std::vector<int>& order) {
  std::string text;
  for (const int layer : order) text += (text.empty() ? "" : ",") + std::to_string(layer);
  store_.save_header(order_id(model), text);
}

LayerReadAhead::LayerReadAhead(SchedulerOptions options, Cache& cache, Store& store)
    : orders_(store),
      fetcher_(std::make_shared<Fetcher>(cache, options.strict)),
      scheduler_(options, executor_, orders_, [] { return std::chrono::steady_clock::now(); }) {}

LayerReadAhead::~LayerReadAhead() {
  stop();
}

void LayerReadAhead::on_layer(const std::shared_ptr<Model>& model, LayerView view, int layer,
                              bool here) {
  executor_.post([this, model, view, layer, here] {
    scheduler_.on_layer(model->repo() + "@" + model->commit(),
                        std::make_shared<Source>(model, fetcher_), view, layer, here);
  });
}

void LayerReadAhead::on_file(const std::shared_ptr<Model>& model, LayerView view, std::vector<int> layers) {
  executor_.post([this, model, view, layers = std::move(layers)] {
    scheduler_.on_file(model->repo() + "@" + model->commit(), std::make_shared<Source>(model, fetcher_), view, layers);
  });
}

void LayerReadAhead::plan(PlanAction action, const std::string& repo, const std::string& commit,
                          std::function<void(std::vector<int>)> done) {
  executor_.post([this, action, model = repo + "@" + commit, done = std::move(done)] {
    if (action == PlanAction::kRecord) scheduler_.record_plan(model);
    if (action == PlanAction::kDrop) scheduler_.drop_plan(model);
    done(scheduler_.plan(model));
  });
}

void LayerReadAhead::stop() {
  executor_.post([this] { scheduler_.stop(); });
  executor_.stop();
}

}  // namespace nexus::prefetch
