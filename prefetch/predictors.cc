#include "prefetch/predictors.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>

namespace nexus::prefetch {

namespace {
constexpr double kLimited = 0.6;  // accuracy below it: one layer ahead
constexpr double kOff = 0.35;     // and below it: none
constexpr int kPrior = 2;         // right predictions that everybody starts with
constexpr int kMemory = 16;       // predictions after which old ones count half

// How often the walk's last step was taken in a row.
int run_of(std::span<const int> walk, int step) {
  int run = 0;
  for (size_t i = walk.size(); i-- > 1 && walk[i] - walk[i - 1] == step;) ++run;
  return run;
}

double confidence_of(int steps) {
  return 1.0 - std::pow(0.5, steps);
}

Prediction stepping(Predictor kind, std::span<const int> walk, int step, int steps, int count,
                    int depth) {
  Prediction prediction{kind, {}, confidence_of(steps)};
  for (int i = 1; i <= depth; ++i) {
    const int layer = walk.back() + i * step;
    if (layer < 0 || layer >= count) break;
    prediction.layers.push_back(layer);
  }
  return prediction;
}
}  // namespace

Prediction predict_sequential(std::span<const int> walk, int count, int depth) {
  if (walk.empty()) return {Predictor::kSequential, {}, 0};
  const int run = run_of(walk, 1);
  const bool from_start = walk[walk.size() - 1 - static_cast<size_t>(run)] == 0;
  const int steps = run + (from_start ? 1 : 0);
  if (steps == 0) return {Predictor::kSequential, {}, 0};
  return stepping(Predictor::kSequential, walk, 1, steps, count, depth);
}

Prediction predict_reverse(std::span<const int> walk, int count, int depth) {
  const int run = run_of(walk, -1);
  if (run == 0) return {Predictor::kReverse, {}, 0};
  const bool from_end = walk[walk.size() - 1 - static_cast<size_t>(run)] == count - 1;
  return stepping(Predictor::kReverse, walk, -1, run + (from_end ? 1 : 0), count, depth);
}

Prediction predict_strided(std::span<const int> walk, int count, int depth) {
  if (walk.size() < 3) return {Predictor::kStrided, {}, 0};
  const int step = walk.back() - walk[walk.size() - 2];
  const int run = run_of(walk, step);
  if (std::abs(step) < 2 || run < 2) return {Predictor::kStrided, {}, 0};
  return stepping(Predictor::kStrided, walk, step, run, count, depth);
}

namespace {
Prediction replaying(Predictor kind, std::span<const int> recent, std::span<const int> recorded,
                     int count, int depth) {
  Prediction prediction{kind, {}, 0};
  if (recent.empty()) return prediction;
  const auto at = std::find(recorded.begin(), recorded.end(), recent.back());
  if (at == recorded.end()) return prediction;
  const auto place = static_cast<size_t>(at - recorded.begin());
  // How far back both orders agree; the first layer of the record agrees with a first access.
  size_t steps = 0;
  while (steps < place && steps + 1 < recent.size() &&
         recorded[place - steps - 1] == recent[recent.size() - steps - 2]) {
    ++steps;
  }
  if (steps == place && (steps > 0 || recent.size() == 1)) ++steps;
  if (steps == 0) return prediction;
  prediction.confidence = confidence_of(static_cast<int>(steps));
  for (size_t i = place + 1; i < recorded.size(); ++i) {
    if (static_cast<int>(prediction.layers.size()) == depth) break;
    if (recorded[i] >= 0 && recorded[i] < count) prediction.layers.push_back(recorded[i]);
  }
  return prediction;
}
}  // namespace

Prediction predict_replay(std::span<const int> recent, std::span<const int> recorded, int count,
                          int depth) {
  return replaying(Predictor::kReplay, recent, recorded, count, depth);
}

Prediction predict_file_order(std::span<const int> recent, std::span<const int> file_order,
                              int count, int depth) {
  return replaying(Predictor::kFileOrder, recent, file_order, count, depth);
}

void Accuracy::predicted(Predictor kind, int layer) {
  for (const Open& open : open_) {
    if (open.kind == kind && open.layer == layer) return;
  }
  open_.push_back({kind, layer, 0});
}

void Accuracy::accessed(int layer, int patience) {
  std::erase_if(open_, [&](Open& open) {
    const bool right = open.layer == layer;
    if (!right && ++open.age < patience) return false;
    count(open.kind, right);
    return true;
  });
}

void Accuracy::count(Predictor kind, bool right) {
  Score& score = scores_[static_cast<size_t>(kind)];
  ++(right ? score.right : score.wrong);
  if (score.right + score.wrong <= kMemory) return;
  score.right /= 2;
  score.wrong /= 2;
}

double Accuracy::of(Predictor kind) const {
  const Score& score = scores_[static_cast<size_t>(kind)];
  return static_cast<double>(score.right + kPrior) /
         static_cast<double>(score.right + score.wrong + kPrior);
}

int Accuracy::limit(Predictor kind, int depth) const {
  const double accuracy = of(kind);
  if (accuracy < kOff) return 0;
  return accuracy < kLimited ? std::min(1, depth) : depth;
}

Prediction predict(std::span<const int> walk, std::span<const int> recent,
                   std::span<const int> recorded, std::span<const int> file_order, int count,
                   int depth, Accuracy& accuracy) {
  Prediction best;
  double best_weight = 0;
  for (Prediction& said : std::array{
           predict_file_order(recent, file_order, count, depth),
           predict_sequential(walk, count, depth), predict_reverse(walk, count, depth),
           predict_strided(walk, count, depth), predict_replay(recent, recorded, count, depth)}) {
    if (said.layers.empty()) continue;
    const int limit =
        std::min(accuracy.limit(said.kind, depth), said.confidence < kSure ? 1 : depth);
    const double weight = said.confidence * accuracy.of(said.kind);
    accuracy.predicted(said.kind, said.layers.front());
    if (limit == 0 || weight <= best_weight) continue;
    said.layers.resize(std::min(said.layers.size(), static_cast<size_t>(limit)));
    best_weight = weight;
    best = std::move(said);
  }
  return best;
}

}  // namespace nexus::prefetch
