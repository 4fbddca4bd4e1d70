// Predictors: what comes next, from where a walk was.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "prefetch/predictors.h"

namespace nexus::prefetch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Layers = std::vector<int>;

TEST(PrefetchSequential, AFirstAccessAtLayerZeroPredictsLayerOneAlone) {
  Accuracy accuracy;
  EXPECT_THAT(predict(Layers{0}, Layers{0}, {}, {}, 16, 4, accuracy).layers, ElementsAre(1));
}

TEST(PrefetchSequential, AFirstAccessElsewherePredictsNothing) {
  for (int layer = 1; layer < 16; ++layer) {
    Accuracy accuracy;
    EXPECT_THAT(predict(Layers{layer}, Layers{layer}, {}, {}, 16, 4, accuracy).layers, IsEmpty());
  }
}

TEST(PrefetchSequential, TwoFromTheStartAreSure) {
  Accuracy accuracy;
  EXPECT_THAT(predict(Layers{0, 1}, Layers{0, 1}, {}, {}, 16, 3, accuracy).layers,
              ElementsAre(2, 3, 4));
}

TEST(PrefetchSequential, TwoElsewherePredictOneAndThreeAreSure) {
  Accuracy accuracy;
  EXPECT_THAT(predict(Layers{5, 6}, Layers{5, 6}, {}, {}, 16, 3, accuracy).layers, ElementsAre(7));
  EXPECT_THAT(predict(Layers{5, 6, 7}, Layers{5, 6, 7}, {}, {}, 16, 3, accuracy).layers,
              ElementsAre(8, 9, 10));
}

TEST(PrefetchSequential, NeverBeyondTheLastLayer) {
  EXPECT_THAT(predict_sequential(Layers{12, 13, 14}, 16, 5).layers, ElementsAre(15));
  EXPECT_THAT(predict_sequential(Layers{13, 14, 15}, 16, 5).layers, IsEmpty());
  EXPECT_THAT(predict_sequential(Layers{0}, 1, 5).layers, IsEmpty());
}

TEST(PrefetchSequential, ConfidenceGrowsWithTheRunAndABreakEndsIt) {
  double last = 0;
  Layers walk{3};
  for (int layer = 4; layer < 9; ++layer) {
    walk.push_back(layer);
    const double now = predict_sequential(walk, 16, 1).confidence;
    EXPECT_GT(now, last);
    last = now;
  }
  walk.push_back(2);
  EXPECT_THAT(predict_sequential(walk, 16, 1).layers, IsEmpty());
}

TEST(PrefetchReverse, FollowsAWalkDownToZero) {
  EXPECT_THAT(predict_reverse(Layers{15}, 16, 3).layers, IsEmpty());
  EXPECT_THAT(predict_reverse(Layers{9, 8, 7}, 16, 3).layers, ElementsAre(6, 5, 4));
  EXPECT_THAT(predict_reverse(Layers{3, 2, 1}, 16, 3).layers, ElementsAre(0));
  EXPECT_THAT(predict_reverse(Layers{2, 1, 0}, 16, 3).layers, IsEmpty());
  EXPECT_THAT(predict_reverse(Layers{1, 2, 3}, 16, 3).layers, IsEmpty());
}

TEST(PrefetchReverse, FromTheLastLayerTwoAreSure) {
  Accuracy accuracy;
  EXPECT_THAT(predict(Layers{15, 14}, Layers{15, 14}, {}, {}, 16, 2, accuracy).layers,
              ElementsAre(13, 12));
  EXPECT_THAT(predict(Layers{9, 8}, Layers{9, 8}, {}, {}, 16, 2, accuracy).layers, ElementsAre(7));
}

TEST(PrefetchStrided, NeedsThreeLayersAtEqualSteps) {
  EXPECT_THAT(predict_strided(Layers{0, 4}, 32, 2).layers, IsEmpty());
  EXPECT_THAT(predict_strided(Layers{0, 4, 8}, 32, 2).layers, ElementsAre(12, 16));
  EXPECT_THAT(predict_strided(Layers{0, 4, 9}, 32, 2).layers, IsEmpty());
  EXPECT_THAT(predict_strided(Layers{20, 17, 14}, 32, 3).layers, ElementsAre(11, 8, 5));
  EXPECT_THAT(predict_strided(Layers{1, 2, 3}, 32, 2).layers, IsEmpty());
}

TEST(PrefetchReplay, TheFirstLayerOfTheRecordPredictsTheSecond) {
  const Layers recorded{7, 3, 0, 9};
  const Prediction said = predict_replay(Layers{7}, recorded, 16, 3);
  EXPECT_THAT(said.layers, ElementsAre(3, 0, 9));
  EXPECT_LT(said.confidence, kSure);
  EXPECT_THAT(predict_replay(Layers{3}, recorded, 16, 3).layers, IsEmpty());
  EXPECT_THAT(predict_replay(Layers{5}, recorded, 16, 3).layers, IsEmpty());
}

TEST(PrefetchReplay, AgreementMakesItSure) {
  const Layers recorded{7, 3, 0, 9, 5};
  EXPECT_GE(predict_replay(Layers{7, 3}, recorded, 16, 3).confidence, kSure);
  EXPECT_THAT(predict_replay(Layers{7, 3}, recorded, 16, 2).layers, ElementsAre(0, 9));
  EXPECT_GE(predict_replay(Layers{1, 3, 0, 9}, recorded, 16, 3).confidence, kSure);
  EXPECT_THAT(predict_replay(Layers{4, 0}, recorded, 16, 3).layers, IsEmpty());
}

TEST(PrefetchReplay, ARecordOfAnotherModelNamesNoLayersThatAreNotThere) {
  EXPECT_THAT(predict_replay(Layers{0}, Layers{0, 40, -3, 2}, 4, 5).layers, ElementsAre(2));
}

TEST(PrefetchAccuracy, StartsTrustingAndHitsKeepIt) {
  Accuracy accuracy;
  EXPECT_EQ(accuracy.of(Predictor::kSequential), 1.0);
  for (int layer = 1; layer < 50; ++layer) {
    accuracy.predicted(Predictor::kSequential, layer);
    accuracy.accessed(layer, 4);
  }
  EXPECT_EQ(accuracy.of(Predictor::kSequential), 1.0);
  EXPECT_EQ(accuracy.limit(Predictor::kSequential, 5), 5);
}

TEST(PrefetchAccuracy, AWrongPredictorIsTurnedDownThenOffAndComesBack) {
  Accuracy accuracy;
  const auto wrong = [&](int layer) {
    accuracy.predicted(Predictor::kStrided, layer);
    for (int i = 0; i < 4; ++i) accuracy.accessed(1000, 4);
  };
  wrong(1);
  EXPECT_EQ(accuracy.limit(Predictor::kStrided, 5), 5);  // once may happen
  wrong(2);
  wrong(3);
  EXPECT_EQ(accuracy.limit(Predictor::kStrided, 5), 1);
  wrong(4);
  EXPECT_EQ(accuracy.limit(Predictor::kStrided, 5), 0);
  EXPECT_EQ(accuracy.limit(Predictor::kSequential, 5), 5);  // each for itself
  for (int layer = 10; layer < 30; ++layer) {
    accuracy.predicted(Predictor::kStrided, layer);
    accuracy.accessed(layer, 4);
  }
  EXPECT_EQ(accuracy.limit(Predictor::kStrided, 5), 5);
}

TEST(PrefetchAccuracy, APredictionMayComeTrueAFewEventsLater) {
  Accuracy accuracy;
  accuracy.predicted(Predictor::kSequential, 3);
  accuracy.accessed(20, 4);
  accuracy.accessed(21, 4);
  accuracy.accessed(3, 4);
  EXPECT_EQ(accuracy.of(Predictor::kSequential), 1.0);
}

TEST(PrefetchChoice, TheOrderOfTheFilesIsFollowedWhereTheReaderFollowsIt) {
  Accuracy accuracy;
  const Layers files{0, 1, 10, 11, 2, 3, 4};
  EXPECT_THAT(predict(Layers{0}, Layers{0}, {}, files, 12, 3, accuracy).layers, ElementsAre(1));
  const Prediction next = predict(Layers{0, 1}, Layers{0, 1}, {}, files, 12, 3, accuracy);
  EXPECT_EQ(next.kind, Predictor::kFileOrder);
  EXPECT_THAT(next.layers, ElementsAre(10, 11, 2));
  accuracy.accessed(10, 4);
  EXPECT_THAT(predict(Layers{10}, Layers{0, 1, 10}, {}, files, 12, 3, accuracy).layers, ElementsAre(11, 2, 3));
}

// Walks 0, 1, 2, ... against another order that has been recorded or lies in the files.
void expect_the_walk_is_believed(const Layers& recorded, const Layers& file_order) {
  Accuracy accuracy;
  Layers walk;
  for (int layer = 0; layer < 10; ++layer) {
    walk.push_back(layer);
    accuracy.accessed(layer, 4);
    const Prediction next = predict(walk, walk, recorded, file_order, 16, 1, accuracy);
    if (layer > 0) {
      EXPECT_EQ(next.kind, Predictor::kSequential);
      EXPECT_THAT(next.layers, ElementsAre(layer + 1));
    }
  }
}

TEST(PrefetchChoice, TheOrderOfTheFilesGivesWayToAWalkByNumber) {
  expect_the_walk_is_believed({}, {0, 9, 8, 7, 6, 5, 4, 3, 2, 1});
}

TEST(PrefetchChoice, AWrongRecordGivesWayToTheWalkItself) {
  expect_the_walk_is_believed({0, 9, 8, 7, 6, 5, 4, 3, 2, 1}, {});
}

}  // namespace
}  // namespace nexus::prefetch
