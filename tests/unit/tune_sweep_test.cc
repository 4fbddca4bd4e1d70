// nexus-tune's search against models of disks: it finds what there is to find, and says what it
// could not measure.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "tools/nexus-tune/progress.h"
#include "tools/nexus-tune/report.h"
#include "tools/nexus-tune/sweep.h"

namespace nexus::tune {
namespace {

using io::EngineSettings;

constexpr uint64_t kBytes = 512 << 20;

Sample sample(double gbps, uint64_t bytes, double cpu_s_per_gb = 0.01) {
  Sample made;
  made.bytes = bytes;
  made.seconds = static_cast<double>(bytes) / 1e9 / gbps;
  made.cpu_s = cpu_s_per_gb * static_cast<double>(bytes) / 1e9;
  made.submit.record(5'000);
  made.complete.record(200'000);
  return made;
}

// A disk that likes 16 MiB in flight, direct, and that a second thread does not help.
double model_gbps(const EngineSettings& settings) {
  const double in_flight =
      static_cast<double>(settings.block_size * settings.queue_depth * settings.threads) /
      (16 << 20);
  double gbps = 6 * std::min(1.0, 0.4 + 0.6 * in_flight);
  if (in_flight > 4) gbps *= 0.9;
  if (!settings.overlap) gbps *= 0.8;
  if (!settings.direct) gbps *= 0.5;
  return gbps;
}

Point point(double gbps, double cpu, uint64_t block, unsigned depth) {
  Point made;
  made.settings.block_size = block;
  made.settings.queue_depth = depth;
  made.add(sample(gbps, kBytes, cpu));
  return made;
}

TEST(TuneSweep, FullIsTheSpecificationsGridInHundredToThreeHundredPoints) {
  Features all;
  all.iopoll = true;
  for (const Features& features : {Features{}, all}) {
    const auto configurations = full_configurations(features, kBytes);
    EXPECT_GE(configurations.size(), 100u);
    EXPECT_LE(configurations.size(), 300u);
    std::set<uint64_t> blocks;
    std::set<unsigned> depths, threads;
    std::set<bool> overlap, single, direct, registered;
    for (const EngineSettings& one : configurations) {
      blocks.insert(one.block_size);
      depths.insert(one.queue_depth);
      threads.insert(one.threads);
      overlap.insert(one.overlap);
      single.insert(one.single_submit);
      direct.insert(one.direct);
      registered.insert(one.registered);
      EXPECT_EQ(one, io::clamped(one));
      EXPECT_TRUE(features.iopoll || !one.iopoll);
      EXPECT_EQ(std::count(configurations.begin(), configurations.end(), one), 1);
    }
    for (const uint64_t kib : {128, 256, 512, 1024, 8192}) EXPECT_TRUE(blocks.count(kib << 10));
    EXPECT_EQ(depths, (std::set<unsigned>{4, 8, 16, 32, 64}));
    EXPECT_EQ(threads, (std::set<unsigned>{1, 2, 4, 8}));
    for (const auto& both : {overlap, single, direct, registered}) EXPECT_EQ(both.size(), 2u);
  }
}

TEST(TuneSweep, WhatTheMachineLacksIsLeftOut) {
  Features none{false, false, false, false, false};
  for (const EngineSettings& one : full_configurations(none, kBytes)) {
    EXPECT_FALSE(one.direct || one.registered || one.iopoll || one.sqpoll);
    EXPECT_EQ(one.queue_depth * one.threads, 1u);
  }
  EXPECT_GE(full_configurations(none, kBytes).size(), 4u);
  EXPECT_GE(coarse_configurations(none, kBytes).size(), 4u);
  Features buffered;
  buffered.direct = false;
  for (const EngineSettings& one : coarse_configurations(buffered, kBytes)) {
    EXPECT_FALSE(one.direct);
  }
  for (const EngineSettings& one : full_configurations({}, 64 << 20)) {
    EXPECT_LE(one.block_size * one.queue_depth * one.threads, uint64_t{32} << 20);
  }
}

TEST(TuneSweep, BothSearchesFindTheModelsBest) {
  const std::atomic<bool> stop{false};
  double best[2] = {};
  for (const bool full : {true, false}) {
    SweepOptions options;
    options.full = full;
    int last_done = 0, last_total = 0, measured = 0;
    const SweepResult result = sweep(
        options,
        [&](const EngineSettings& settings, uint64_t bytes) -> Result<Sample> {
          ++measured;
          EXPECT_GT(bytes, 0u);
          EXPECT_LE(bytes, kBytes);
          return sample(model_gbps(settings), bytes);
        },
        [&](int done, int total) {
          EXPECT_EQ(done, last_done + 1);
          EXPECT_LE(done, total);
          last_done = done;
          last_total = total;
        },
        stop);
    ASSERT_GE(result.winner, 0);
    EXPECT_FALSE(result.interrupted);
    EXPECT_EQ(last_done, measured);
    EXPECT_EQ(last_done, last_total);
    best[full] = model_gbps(result.points[static_cast<size_t>(result.winner)].settings);
    EXPECT_GE(best[full], 6 * 0.97);
  }
  EXPECT_GE(best[0], best[1] * 0.95);
}

TEST(TuneSweep, AConfigurationThatFailsIsReportedAndNotChosen) {
  const std::atomic<bool> stop{false};
  SweepOptions options;
  const Measure measure = [](const EngineSettings& settings, uint64_t bytes) -> Result<Sample> {
    if (settings.block_size > (1 << 20)) return fail(Code::kDisk, "read at 0: too large");
    return sample(model_gbps(settings), bytes);
  };
  for (const bool full : {true, false}) {
    options.full = full;
    const SweepResult result = sweep(options, measure, {}, stop);
    ASSERT_GE(result.winner, 0);
    EXPECT_LE(result.points[static_cast<size_t>(result.winner)].settings.block_size, 1u << 20);
    const auto failed = std::find_if(result.points.begin(), result.points.end(),
                                     [](const Point& one) { return !one.error.empty(); });
    ASSERT_NE(failed, result.points.end());
    EXPECT_EQ(failed->error, "read at 0: too large");
  }
  const SweepResult nothing = sweep(
      options,
      [](const EngineSettings&, uint64_t) -> Result<Sample> { return fail(Code::kDisk, "no"); }, {},
      stop);
  EXPECT_EQ(nothing.winner, -1);
}

TEST(TuneSweep, StoppedAnywhereItKeepsWhatWasMeasured) {
  for (const bool full : {true, false}) {
    for (const int after : {0, 1, 5, 20, 26, 30, 40, 300}) {
      std::atomic<bool> stop{after == 0};
      int measured = 0;
      SweepOptions options;
      options.full = full;
      const SweepResult result = sweep(
          options,
          [&](const EngineSettings& settings, uint64_t bytes) -> Result<Sample> {
            if (++measured == after) stop = true;
            return sample(model_gbps(settings), bytes);
          },
          {}, stop);
      if (measured < after) continue;  // it was over before
      EXPECT_TRUE(result.interrupted) << after;
      EXPECT_EQ(result.winner >= 0, after > 0) << after;
      size_t with_figures = 0;
      for (const Point& one : result.points) with_figures += one.measured() ? 1 : 0;
      EXPECT_GE(with_figures, std::min<size_t>(static_cast<size_t>(after), 15));
    }
  }
}

TEST(TuneWinner, IsTheCheapestWithinThreePercent) {
  const uint64_t mib = 1 << 20;
  EXPECT_EQ(pick_winner({}), -1);
  // Fastest; within 3 % with a third of the CPU; too slow.
  EXPECT_EQ(
      pick_winner({point(6.0, 0.3, mib, 64), point(5.9, 0.1, mib, 16), point(5.0, 0.01, mib, 4)}),
      1);
  // Equal CPU: the one with less in flight.
  EXPECT_EQ(pick_winner({point(6.0, 0.10, mib, 64), point(5.85, 0.105, mib, 8)}), 1);
  // Less in flight, but more CPU.
  EXPECT_EQ(pick_winner({point(6.0, 0.10, mib, 64), point(5.85, 0.15, mib, 8)}), 0);
}

TEST(TunePoint, MedianAndSpreadOfItsRuns) {
  Point one;
  EXPECT_EQ(one.throughput(), 0);
  EXPECT_EQ(one.spread(), 0);
  for (const double gbps : {2.0, 5.0, 4.0}) one.add(sample(gbps, 1'000'000'000));
  EXPECT_DOUBLE_EQ(one.throughput(), 4.0);
  EXPECT_NEAR(one.spread(), 0.75, 1e-9);
  EXPECT_EQ(one.complete.count(), 3u);
  EXPECT_EQ(median({1, 2}), 1.5);
  EXPECT_EQ(describe(one.settings), "1 MiB x 16, overlapped, 1 thread, batched, direct");
}

Report report() {
  Report made;
  made.zone = "/data/</script><b>\"zone\"";
  made.device.name = "nvme0n1";
  made.device.file_system = "ext4";
  made.measured_at = "2026-01-31T12:00:00Z";
  made.file_bytes = kBytes;
  made.read = SweepResult{{point(6, 0.1, 1 << 20, 16), point(5, 0.1, 1 << 19, 16)}, 0, false};
  made.read->points.push_back({EngineSettings{}, {}, {}, {}, {}, "read at 0: broken"});
  made.fast_paths = {{"io_uring", true, "", ""}, {"O_DIRECT", false, "not here", "use ext4"}};
  return made;
}

TEST(TuneReport, JsonHasTheAgreedShape) {
  const Json json = report_json(report());
  EXPECT_EQ(json.at("zone"), report().zone);
  EXPECT_TRUE(json.at("device").is_string());
  EXPECT_FALSE(json.contains("write"));
  const Json& best = json.at("read").at("best");
  for (const char* key : {"block_size", "queue_depth", "threads"}) {
    EXPECT_TRUE(best.at(key).is_number_unsigned()) << key;
  }
  for (const char* key : {"overlap", "single_submit", "direct"}) {
    EXPECT_TRUE(best.at(key).is_boolean()) << key;
  }
  EXPECT_NEAR(best.at("throughput_gbps").get<double>(), 6, 1e-6);
  EXPECT_NEAR(best.at("complete_us").at("p99").get<double>(), 200, 0.2);
  EXPECT_EQ(json.at("read").at("points").size(), 3u);
  EXPECT_EQ(json.at("read").at("points")[2].at("error"), "read at 0: broken");
  Report empty = report();
  empty.read = SweepResult{};
  EXPECT_TRUE(report_json(empty).at("read").at("best").is_null());
}

TEST(TuneReport, CsvTableAndHtmlCarryThePoints) {
  const std::string csv = report_csv({report()});
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 4);
  EXPECT_NE(csv.find("\"/data/</script><b>\"\"zone\"\"\",read,1,1048576,16,"), std::string::npos);
  const std::string table = report_table(report());
  EXPECT_NE(table.find("* "), std::string::npos);
  EXPECT_NE(table.find("off: O_DIRECT: not here; use ext4"), std::string::npos);
  EXPECT_EQ(table.find("off: io_uring"), std::string::npos);
  const std::string html = report_html({report()});
  EXPECT_EQ(html.find("</script><b>"), std::string::npos);  // a name cannot end the data
  EXPECT_NE(html.find("\\u003c/script>\\u003cb>"), std::string::npos);
  EXPECT_EQ(html.find("http://"), html.find("http://www.w3.org/2000/svg"));  // a name, no address
  EXPECT_EQ(html.find("https://"), std::string::npos);
  const io::Tuning tuning = tuning_of(report());
  ASSERT_TRUE(tuning.read);
  EXPECT_FALSE(tuning.write);
  EXPECT_EQ(tuning.read->settings.block_size, 1u << 20);
}

TEST(TuneProgress, TellsTheTimeLeft) {
  using std::chrono::seconds;
  EXPECT_EQ(progress_line("read", 0, 4, seconds(0)),
            "read      0/4 [                              ]");
  EXPECT_EQ(progress_line("read", 2, 4, seconds(63)),
            "read      2/4 [===============               ] 1 min 3 s left");
  EXPECT_EQ(progress_line("write", 9, 0, seconds(1)).find("left") == std::string::npos, false);
}

}  // namespace
}  // namespace nexus::tune
