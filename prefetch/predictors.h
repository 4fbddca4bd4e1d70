// What comes next, as pure functions of where a walk was.
#pragma once

#include <array>
#include <span>
#include <vector>

namespace nexus::prefetch {

enum class Predictor { kFileOrder, kSequential, kReverse, kStrided, kReplay };
inline constexpr int kPredictors = 5;

struct Prediction {
  Predictor kind = Predictor::kSequential;
  std::vector<int> layers;  // nearest first; empty: no opinion
  double confidence = 0;    // 0 to 1, from the walk alone
};

// Below it one layer is fetched ahead, from it on as many as the depth says.
inline constexpr double kSure = 0.75;

// `walk` is where one walk was, oldest first; the model's layers are 0 to count - 1; at most
// `depth` layers come back. Each step in the same direction halves the doubt.
// From layer 0 the next is 1; a first access elsewhere predicts nothing.
Prediction predict_sequential(std::span<const int> walk, int count, int depth);
Prediction predict_reverse(std::span<const int> walk, int count, int depth);
// Equal steps of 2 and more: a rank of a pipeline. Needs three layers.
Prediction predict_strided(std::span<const int> walk, int count, int depth);
// What came next when the model was last walked. `recent` is the order of all walks together.
Prediction predict_replay(std::span<const int> recent, std::span<const int> recorded, int count,
                          int depth);

// What comes next in the origin's files, for who reads those: writers sort layers 0, 1, 10, 11, 2. `file_order` may be
// empty.
Prediction predict_file_order(std::span<const int> recent, std::span<const int> file_order,
                              int count, int depth);

// How often each predictor was right of late. A predictor that is wrong is asked for one layer
// only, then for none; it is measured on, so that it comes back when it is right again.
// Not thread-safe.
class Accuracy {
 public:
  // `kind` said that `layer` is next. The same word twice counts once.
  void predicted(Predictor kind, int layer);
  // A reader came to `layer`. A prediction that did not come true within `patience` events of the
  // model was wrong.
  void accessed(int layer, int patience);
  double of(Predictor kind) const;  // 1: always right, or not known
  // The most layers to fetch ahead on its word.
  int limit(Predictor kind, int depth) const;

 private:
  struct Score {
    int right = 0, wrong = 0;
  };
  struct Open {
    Predictor kind;
    int layer;
    int age;  // in events
  };
  void count(Predictor kind, bool right);
  std::array<Score, kPredictors> scores_{};
  std::vector<Open> open_;
};

// Which predictor to believe for a walk: the one with the most confidence times accuracy, the
// earlier of equals. Its layers are cut to what confidence and accuracy allow. Tells `accuracy`
// what each of them said.
Prediction predict(std::span<const int> walk, std::span<const int> recent,
                   std::span<const int> recorded, std::span<const int> file_order, int count,
                   int depth, Accuracy& accuracy);

}  // namespace nexus::prefetch
