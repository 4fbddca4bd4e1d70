// A log whose disk hangs holds up nobody for long, and goes on when it is back.
#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/base_sink.h>

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/until.h"
#include "tools/common/patient_sink.h"

namespace nexus::tools {
namespace {

using std::chrono::milliseconds;

// Lines that arrive wait while it is shut.
class Disk final : public spdlog::sinks::base_sink<std::mutex> {
 public:
  void shut(bool shut) {
    std::lock_guard lock(gate_mutex_);
    shut_ = shut;
    changed_.notify_all();
  }
  // Returns when there are so many.
  std::vector<std::string> lines(size_t count) {
    std::unique_lock lock(gate_mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(60), [&] { return lines_.size() >= count; }));
    return lines_;
  }

 protected:
  void sink_it_(const spdlog::details::log_msg& message) override {
    std::unique_lock lock(gate_mutex_);
    changed_.wait(lock, [&] { return !shut_; });
    lines_.emplace_back(message.payload.data(), message.payload.size());
    changed_.notify_all();
  }
  void flush_() override {}

 private:
  std::mutex gate_mutex_;  // guards the rest
  std::condition_variable changed_;
  bool shut_ = false;
  std::vector<std::string> lines_;
};

TEST(PatientSinkConcurrent, ALineIsThereWhenLogReturns) {
  const auto disk = std::make_shared<Disk>();
  spdlog::logger logger("log", std::make_shared<PatientSink>(disk));
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 50; ++n) logger.info("line");
    });
  }
  for (auto& thread : threads) thread.join();
  logger.info("last {}", 1);
  const auto lines = disk->lines(0);
  ASSERT_EQ(lines.size(), 201u);
  EXPECT_EQ(lines.back(), "last 1");
}

TEST(PatientSinkConcurrent, NobodyWaitsForADiskThatHangsAndItGetsItsLinesLater) {
  const auto disk = std::make_shared<Disk>();
  spdlog::logger logger("log", std::make_shared<PatientSink>(disk, milliseconds(200)));
  disk->shut(true);
  std::thread other([&] { logger.info("0"); });
  other.join();
  for (int n = 1; n < 20; ++n) logger.info("{}", n);  // returns
  disk->shut(false);
  const auto lines = disk->lines(20);
  for (int n = 0; n < 20; ++n) EXPECT_EQ(lines[static_cast<size_t>(n)], std::to_string(n));
  logger.info("again");
  EXPECT_EQ(disk->lines(21).back(), "again");
}

TEST(PatientSinkConcurrent, LinesBeyondItsBoundAreCountedOnly) {
  const auto disk = std::make_shared<Disk>();
  spdlog::logger logger("log", std::make_shared<PatientSink>(disk, milliseconds(100)));
  disk->shut(true);
  constexpr size_t kBeyond = 50;
  // The first is out to be written, not kept.
  for (size_t n = 0; n < 1 + PatientSink::kLinesMax + kBeyond; ++n) logger.info("line");
  disk->shut(false);
  EXPECT_NE(disk->lines(PatientSink::kLinesMax + 2).back().find("50 lines are lost"),
            std::string::npos);
}

TEST(PatientSinkConcurrent, ItsEndDoesNotWaitForWhatHangs) {
  const auto disk = std::make_shared<Disk>();
  {
    spdlog::logger logger("log", std::make_shared<PatientSink>(disk, milliseconds(100)));
    disk->shut(true);
    logger.info("late");
  }
  EXPECT_GT(PatientSink::threads_alive(), 0);
  disk->shut(false);
  EXPECT_EQ(disk->lines(1).back(), "late");
  EXPECT_TRUE(test::until([] { return PatientSink::threads_alive() == 0; }));
}

}  // namespace
}  // namespace nexus::tools
