#include "tools/nexus-tune/report.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>

#include "tools/common/size.h"

namespace nexus::tune {

namespace {

constexpr size_t kRowsShown = 8;

double in_us(uint64_t ns) {
  return static_cast<double>(ns) / 1000;
}

Json latency_json(const io::Histogram& histogram) {
  return Json{{"p50", in_us(histogram.percentile(50))},
              {"p99", in_us(histogram.percentile(99))},
              {"max", in_us(histogram.max())}};
}

Json point_json(const Point& point) {
  Json json = io::settings_json(point.settings);
  json["memory_bytes"] = point.memory_bytes();
  json["throughput_gbps"] = point.throughput();
  json["runs_gbps"] = point.gbps;
  json["spread"] = point.spread();
  json["cpu_s_per_gb"] = point.cpu();
  json["submit_us"] = latency_json(point.submit);
  json["complete_us"] = latency_json(point.complete);
  if (!point.error.empty()) json["error"] = point.error;
  return json;
}

Json direction_json(const SweepResult& result) {
  Json points = Json::array();
  for (const Point& point : result.points) points.push_back(point_json(point));
  Json json = {{"best", nullptr}, {"points", std::move(points)}};
  if (result.winner >= 0) {
    json["best"] = point_json(result.points[static_cast<size_t>(result.winner)]);
  }
  if (result.interrupted) json["interrupted"] = true;
  return json;
}

std::string csv_rows(const Report& report, Direction direction, const SweepResult& result) {
  std::string zone = "\"";
  for (const char c : report.zone) zone += c == '"' ? std::string("\"\"") : std::string(1, c);
  zone += '"';
  std::string out;
  for (size_t i = 0; i < result.points.size(); ++i) {
    const Point& point = result.points[i];
    const auto& s = point.settings;
    char row[512];
    std::snprintf(
        row, sizeof row,
        ",%s,%d,%llu,%u,%u,%d,%d,%d,%d,%d,%d,%.4f,%.4f,%zu,%.4f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f",
        direction_name(direction), static_cast<int>(i) == result.winner ? 1 : 0,
        static_cast<unsigned long long>(s.block_size), s.queue_depth, s.threads, s.overlap,
        s.single_submit, s.direct, s.registered, s.iopoll, s.sqpoll, point.throughput(),
        point.spread(), point.gbps.size(), point.cpu(), in_us(point.submit.percentile(50)),
        in_us(point.submit.percentile(99)), in_us(point.submit.max()),
        in_us(point.complete.percentile(50)), in_us(point.complete.percentile(99)),
        in_us(point.complete.max()));
    out += zone + row + "\n";
  }
  return out;
}

std::string table_rows(Direction direction, const SweepResult& result) {
  std::vector<size_t> order;
  for (size_t i = 0; i < result.points.size(); ++i) {
    if (result.points[i].measured()) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return result.points[a].throughput() > result.points[b].throughput();
  });
  std::string out = direction_name(direction);
  out += ": " + std::to_string(order.size()) + " configurations measured" +
         (result.interrupted ? ", interrupted" : "") + "\n";
  if (result.winner < 0) {
    std::string why = "nothing was measured";
    for (const Point& point : result.points) {
      if (!point.error.empty()) why = point.error;
    }
    return out + "  " + tools::printable(why) + "\n";
  }
  if (order.size() > kRowsShown) order.resize(kRowsShown);
  const auto winner = static_cast<size_t>(result.winner);
  if (std::find(order.begin(), order.end(), winner) == order.end()) order.push_back(winner);
  char row[512];
  std::snprintf(row, sizeof row, "    %7s %7s %9s %11s %11s %11s  %s\n", "GB/s", "spread",
                "CPU s/GB", "submit p99", "done p50", "done p99", "configuration");
  out += row;
  for (const size_t index : order) {
    const Point& point = result.points[index];
    std::snprintf(row, sizeof row, "  %s %7.2f %6.1f%% %9.3f %8.0f us %8.0f us %8.0f us  %s\n",
                  index == winner ? "*" : " ", point.throughput(), 100 * point.spread(),
                  point.cpu(), in_us(point.submit.percentile(99)),
                  in_us(point.complete.percentile(50)), in_us(point.complete.percentile(99)),
                  describe(point.settings).c_str());
    out += row;
  }
  return out;
}

std::optional<io::TunedDirection> tuned(const std::optional<SweepResult>& result) {
  if (!result || result->winner < 0) return std::nullopt;
  const Point& best = result->points[static_cast<size_t>(result->winner)];
  return io::TunedDirection{best.settings, best.throughput(), best.cpu()};
}

}  // namespace

std::string now_utc() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm parts{};
  ::gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

Json report_json(const Report& report) {
  Json json = {{"zone", report.zone}, {"device", report.device.describe()}};
  if (report.read) json["read"] = direction_json(*report.read);
  if (report.write) json["write"] = direction_json(*report.write);
  return json;
}

std::string report_csv(const std::vector<Report>& reports) {
  std::string out =
      "zone,direction,best,block_size,queue_depth,threads,overlap,single_submit,direct,registered,"
      "iopoll,sqpoll,throughput_gbps,spread,runs,cpu_s_per_gb,submit_p50_us,submit_p99_us,"
      "submit_max_us,complete_p50_us,complete_p99_us,complete_max_us\n";
  for (const Report& report : reports) {
    if (report.read) out += csv_rows(report, Direction::kRead, *report.read);
    if (report.write) out += csv_rows(report, Direction::kWrite, *report.write);
  }
  return out;
}

std::string report_table(const Report& report) {
  std::string out = "zone " + tools::printable(report.zone) + " on " +
                    tools::printable(report.device.describe()) + ", test file " +
                    tools::format_size(report.file_bytes) + "\n";
  if (report.read) out += table_rows(Direction::kRead, *report.read);
  if (report.write) out += table_rows(Direction::kWrite, *report.write);
  return out + report_remarks(report);
}

std::string report_remarks(const Report& report) {
  std::string out;
  for (const std::string& note : report.notes) out += "note: " + tools::printable(note) + "\n";
  return out + fast_paths_text(report.fast_paths);
}

io::Tuning tuning_of(const Report& report) {
  return {report.measured_at, report.device, tuned(report.read), tuned(report.write)};
}

}  // namespace nexus::tune
