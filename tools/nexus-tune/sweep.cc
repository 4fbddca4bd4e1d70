#include "tools/nexus-tune/sweep.h"

#include <algorithm>
#include <chrono>

namespace nexus::tune {

namespace {

using io::EngineSettings;

constexpr uint64_t kKiB = 1024, kMiB = 1024 * kKiB;
constexpr uint64_t kBlocks[] = {128 * kKiB, 256 * kKiB, 512 * kKiB, kMiB};  // the specification's
constexpr uint64_t kLargeBlocks[] = {2 * kMiB, 4 * kMiB, 8 * kMiB};
constexpr unsigned kDepths[] = {4, 8, 16, 32, 64};
constexpr uint64_t kQuickBytesMin = 32 * kMiB;
constexpr size_t kFinalists = 8;

// Configurations in order, each once, that make sense for a file of `bytes`.
class List {
 public:
  List(const Features& features, uint64_t bytes) : features_(features), bytes_(bytes) {}
  void add(EngineSettings settings) {
    if (!features_.direct) settings.direct = false;
    if (!features_.registered) settings.registered = false;
    if (!features_.io_uring) {  // the caller's thread does it block by block
      settings.queue_depth = 1;
      settings.threads = 1;
      settings.overlap = settings.registered = settings.single_submit = false;
    }
    const uint64_t in_flight = settings.block_size * settings.queue_depth * settings.threads;
    if (in_flight > std::max(bytes_ / 2, 4 * kMiB)) return;  // no queue to keep full
    if (std::find(all_.begin(), all_.end(), settings) == all_.end()) all_.push_back(settings);
  }
  std::vector<EngineSettings> take() { return std::move(all_); }

 private:
  const Features features_;
  const uint64_t bytes_;
  std::vector<EngineSettings> all_;
};

EngineSettings made(uint64_t block, unsigned depth, bool overlap = true, unsigned threads = 1) {
  EngineSettings settings;
  settings.block_size = block;
  settings.queue_depth = depth;
  settings.overlap = overlap;
  settings.threads = threads;
  return settings;
}

// The sweep under way.
class Run {
 public:
  Run(const SweepOptions& options, const Measure& measure, const OnProgress& progress,
      const std::atomic<bool>& stop)
      : options_(options), measure_(measure), progress_(progress), stop_(stop) {}

  SweepResult full() {
    for (const EngineSettings& settings : full_configurations(options_.features, options_.bytes)) {
      result_.points.push_back({settings, {}, {}, {}, {}, {}});
    }
    const int finals = 2 * static_cast<int>(kFinalists);
    total_ = static_cast<int>(result_.points.size()) * options_.runs + finals;
    // A run of all after a run of all: what drifts on the machine drifts for all of them.
    std::vector<size_t> all(result_.points.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = i;
    for (int run = 0; run < options_.runs; ++run) run_each(all, options_.bytes);
    // The best of two hundred is best by luck as well: the first ones again.
    const std::vector<size_t> first = finalists(kFinalists);
    for (int run = 0; run < 2; ++run) run_each(first, options_.bytes);
    return finish(first);
  }

  SweepResult quick() {
    const auto coarse = coarse_configurations(options_.features, options_.bytes);
    total_ = static_cast<int>(coarse.size() + 8 + 8 + 6 * 2);
    std::vector<size_t> alive;
    for (const EngineSettings& settings : coarse) alive.push_back(point_of(settings));
    // A first look, which also tells how much fits into the time.
    run_each(alive, kQuickBytesMin);
    alive = best_of(alive, 6);
    const double rate = alive.empty() ? 1 : result_.points[alive[0]].throughput();
    const auto bytes_for = [&](double seconds) {
      const auto bytes = static_cast<uint64_t>(rate * 1e9 * seconds);
      return std::clamp(bytes - bytes % kMiB, kQuickBytesMin,
                        std::max(options_.bytes, kQuickBytesMin));
    };
    const double second = options_.seconds / 22;
    forget(alive);
    run_each(alive, bytes_for(0.3 * second));
    alive = best_of(alive, 3);
    // Around the best two: what the coarse net is too wide for.
    std::vector<size_t> near;
    for (size_t i = 0; i < std::min<size_t>(2, alive.size()); ++i) {
      const EngineSettings around = result_.points[alive[i]].settings;
      for (const EngineSettings& settings : neighbours(around, options_.bytes)) {
        const size_t index = point_of(settings);
        if (result_.points[index].gbps.empty()) near.push_back(index);
      }
    }
    total_ = done_ + static_cast<int>(near.size()) + 6 * options_.runs;
    run_each(near, bytes_for(0.3 * second));
    alive.insert(alive.end(), near.begin(), near.end());
    alive = best_of(alive, 6);
    forget(alive);
    for (int run = 0; run < options_.runs; ++run) run_each(alive, bytes_for(0.5 * second));
    return finish(alive);
  }

 private:
  size_t point_of(const EngineSettings& settings) {
    for (size_t i = 0; i < result_.points.size(); ++i) {
      if (result_.points[i].settings == settings) return i;
    }
    result_.points.push_back({settings, {}, {}, {}, {}, {}});
    return result_.points.size() - 1;
  }

  // Short runs say less than the long ones that follow: they are not mixed.
  void forget(const std::vector<size_t>& indices) {
    if (stop_) return;
    for (const size_t index : indices) {
      Point& point = result_.points[index];
      short_runs_.emplace_back(index, point);
      point = {point.settings, {}, {}, {}, {}, {}};
    }
  }

  void run_each(const std::vector<size_t>& indices, uint64_t bytes) {
    for (const size_t index : indices) {
      if (stop_) {
        result_.interrupted = true;
        return;
      }
      // A slow or busy disk: the searcher settles for what it knows.
      if (!options_.full && std::chrono::steady_clock::now() > end_) return;
      Point& point = result_.points[index];
      if (point.error.empty()) {
        auto sample = measure_(point.settings, bytes);
        if (sample) {
          point.add(*sample);
        } else {
          point.error = sample.error().what;
        }
      }
      ++done_;
      if (progress_) progress_(done_, std::max(total_, done_));
    }
  }

  std::vector<size_t> best_of(std::vector<size_t> indices, size_t count) const {
    const auto& points = result_.points;
    std::erase_if(indices, [&](size_t index) { return !points[index].measured(); });
    std::stable_sort(indices.begin(), indices.end(), [&](size_t a, size_t b) {
      return points[a].throughput() > points[b].throughput();
    });
    if (indices.size() > count) indices.resize(count);
    return indices;
  }

  // Half of them the fastest, the other half the cheapest of those that come close.
  std::vector<size_t> finalists(size_t count) const {
    std::vector<size_t> all(result_.points.size());
    for (size_t i = 0; i < all.size(); ++i) all[i] = i;
    all = best_of(all, all.size());
    if (all.size() <= count) return all;
    std::vector<size_t> chosen(all.begin(), all.begin() + static_cast<ptrdiff_t>(count / 2));
    const double close = result_.points[all[0]].throughput() * 0.95;
    std::vector<size_t> rest(all.begin() + static_cast<ptrdiff_t>(count / 2), all.end());
    std::erase_if(rest, [&](size_t i) { return result_.points[i].throughput() < close; });
    std::stable_sort(rest.begin(), rest.end(), [&](size_t a, size_t b) {
      const Point &x = result_.points[a], &y = result_.points[b];
      return x.cpu() != y.cpu() ? x.cpu() < y.cpu() : x.memory_bytes() < y.memory_bytes();
    });
    if (rest.size() > count - chosen.size()) rest.resize(count - chosen.size());
    chosen.insert(chosen.end(), rest.begin(), rest.end());
    return chosen;
  }

  // The winner is one of `last`, the ones measured most; when interrupted before, of all.
  SweepResult finish(const std::vector<size_t>& last) {
    // Interrupted between forgetting the short runs and having long ones: better those than none.
    for (auto& [index, point] : short_runs_) {
      if (!result_.points[index].measured()) result_.points[index] = point;
    }
    const bool last_measured = std::any_of(
        last.begin(), last.end(), [&](size_t index) { return result_.points[index].measured(); });
    std::vector<Point> candidates;
    std::vector<size_t> places;
    for (size_t i = 0; i < result_.points.size(); ++i) {
      const bool is_last = std::find(last.begin(), last.end(), i) != last.end();
      if (!result_.interrupted && last_measured && !is_last) continue;
      candidates.push_back(result_.points[i]);
      places.push_back(i);
    }
    const int winner = pick_winner(candidates);
    result_.winner = winner < 0 ? -1 : static_cast<int>(places[static_cast<size_t>(winner)]);
    return std::move(result_);
  }

  const SweepOptions& options_;
  const Measure& measure_;
  const OnProgress& progress_;
  const std::atomic<bool>& stop_;
  SweepResult result_;
  std::vector<std::pair<size_t, Point>> short_runs_;
  const std::chrono::steady_clock::time_point end_ =
      std::chrono::steady_clock::now() +
      std::chrono::milliseconds(static_cast<int64_t>(options_.seconds * 1100));
  int done_ = 0, total_ = 0;
};

}  // namespace

std::vector<EngineSettings> full_configurations(const Features& features, uint64_t bytes) {
  List list(features, bytes);
  for (const bool overlap : {true, false}) {
    for (const unsigned depth : kDepths) {
      for (const uint64_t block : kBlocks) list.add(made(block, depth, overlap));
      for (const uint64_t block : kLargeBlocks) list.add(made(block, depth, overlap));
    }
  }
  for (const unsigned threads : {2u, 4u, 8u}) {
    for (const uint64_t block : kBlocks) {
      for (const unsigned depth : kDepths) list.add(made(block, depth, true, threads));
      for (const unsigned depth : {4u, 16u}) list.add(made(block, depth, false, threads));
    }
  }
  for (const uint64_t block : kBlocks) {
    for (const unsigned depth : {4u, 16u, 64u}) {
      for (const bool overlap : {true, false}) {
        EngineSettings single = made(block, depth, overlap);
        single.single_submit = true;
        list.add(single);
      }
      for (const unsigned threads : {1u, 4u}) {
        EngineSettings registered = made(block, depth, true, threads);
        registered.registered = true;
        list.add(registered);
      }
      for (const unsigned threads : {1u, 4u}) {
        EngineSettings buffered = made(block, depth, true, threads);
        buffered.direct = false;
        list.add(buffered);
      }
    }
    for (const unsigned depth : {16u, 64u}) {
      EngineSettings polled = made(block, depth);
      polled.iopoll = features.iopoll && features.direct;
      list.add(polled);
      EngineSettings kernel_thread = made(block, depth);
      kernel_thread.sqpoll = features.sqpoll;
      list.add(kernel_thread);
    }
  }
  return list.take();
}

std::vector<EngineSettings> coarse_configurations(const Features& features, uint64_t bytes) {
  List list(features, bytes);
  for (const uint64_t block : {256 * kKiB, kMiB, 4 * kMiB}) {
    for (const unsigned depth : {4u, 16u, 64u}) list.add(made(block, depth));
  }
  list.add(made(kMiB, 16, false));
  list.add(made(kMiB, 8, true, 2));
  list.add(made(kMiB, 8, true, 4));
  list.add(made(256 * kKiB, 32, true, 4));
  list.add(made(kMiB, 4, true, 8));
  EngineSettings variant = made(kMiB, 16);
  variant.single_submit = true;
  list.add(variant);
  variant = made(kMiB, 16);
  variant.registered = true;
  list.add(variant);
  for (const unsigned threads : {1u, 4u}) {
    variant = made(kMiB, 16, true, threads);
    variant.direct = false;
    list.add(variant);
  }
  variant = made(kMiB, 16);
  variant.iopoll = features.iopoll && features.direct;
  list.add(variant);
  variant = made(kMiB, 16);
  variant.sqpoll = features.sqpoll;
  list.add(variant);
  if (!features.io_uring) {
    for (const uint64_t block : kBlocks) list.add(made(block, 1));
  }
  return list.take();
}

std::vector<EngineSettings> neighbours(const EngineSettings& of, uint64_t bytes) {
  List list({}, bytes);
  const auto with = [&](uint64_t block, unsigned depth, unsigned threads) {
    if (block < kBlocks[0] || block > 8 * kMiB || depth < 2 || depth > 128 || threads < 1 ||
        threads > 8) {
      return;
    }
    EngineSettings settings = of;
    settings.block_size = block;
    settings.queue_depth = depth;
    settings.threads = threads;
    list.add(settings);
  };
  with(of.block_size / 2, of.queue_depth, of.threads);
  with(of.block_size * 2, of.queue_depth, of.threads);
  if (of.queue_depth > 1) {
    with(of.block_size, of.queue_depth / 2, of.threads);
    with(of.block_size, of.queue_depth * 2, of.threads);
    with(of.block_size, of.queue_depth, of.threads * 2);
  }
  return list.take();
}

SweepResult sweep(const SweepOptions& options, const Measure& measure, const OnProgress& progress,
                  const std::atomic<bool>& stop) {
  Run run(options, measure, progress, stop);
  return options.full ? run.full() : run.quick();
}

}  // namespace nexus::tune
