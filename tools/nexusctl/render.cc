#include "tools/nexusctl/render.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "tools/common/size.h"

namespace nexus::tools {
namespace {

std::string text(const Json& object, const char* name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_string()) return "-";
  const std::string value = printable(object[name].get<std::string>());
  return value.empty() ? "-" : value;
}

double number(const Json& object, const char* name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_number()) return 0;
  return object[name].get<double>();
}

uint64_t count(const Json& object, const char* name) {
  const double value = number(object, name);
  return value > 0 ? static_cast<uint64_t>(value) : 0;
}

bool truth(const Json& object, const char* name) {
  return object.is_object() && object.contains(name) && object[name].is_boolean() &&
         object[name].get<bool>();
}

Json member(const Json& object, const char* name) {
  return object.is_object() && object.contains(name) ? object[name] : Json();
}

std::string fixed(double value, int digits) {
  char out[64];
  std::snprintf(out, sizeof out, "%.*f", digits, value);
  return out;
}

std::string percent(double ratio) {
  return fixed(100 * ratio, 1) + " %";
}

// Rows under a header, columns padded to the widest cell; the last column is not padded.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string str(const std::string& indent) const {
    std::vector<size_t> widths(rows_.front().size(), 0);
    for (const auto& row : rows_) {
      for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    }
    std::string out;
    for (const auto& row : rows_) {
      out += indent;
      for (size_t i = 0; i < row.size(); ++i) {
        out += row[i];
        if (i + 1 < row.size()) out += std::string(widths[i] - row[i].size() + 2, ' ');
      }
      out += '\n';
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

std::string line(const char* label, const std::string& value) {
  char padded[32];
  std::snprintf(padded, sizeof padded, "%-13s", label);
  return padded + value + "\n";
}

std::string zones_table(const Json& zones) {
  Table table({"ZONE", "TIER", "USED", "DISK", "WRITTEN", "WEAR", "HEALTH"});
  for (const Json& zone : zones) {
    table.add({text(zone, "path"), text(zone, "tier"), format_size(count(zone, "used")),
               format_size(count(zone, "size")), format_size(count(zone, "bytes_written")),
               zone.contains("wear") ? percent(number(zone, "wear")) : "-", text(zone, "health")});
  }
  return table.str("  ");
}

std::string hosts_table(const Json& hosts) {
  if (hosts.empty()) return "";
  Table table({"ORIGIN", "NOW", "RECEIVED", "ROUND TRIP", "FIRST BYTE", "REQUESTS", "FAILED", "RETRIES", "HEDGES"});
  const auto ms = [](double value) { return value > 0 ? fixed(value, 1) + " ms" : std::string("-"); };
  for (const Json& host : hosts) {
    table.add({text(host, "origin"), format_rate(number(host, "bytes_per_s")), format_size(count(host, "bytes")),
               ms(number(host, "round_trip_ms")), ms(number(host, "first_byte_ms")),
               std::to_string(count(host, "requests")), std::to_string(count(host, "failed")),
               std::to_string(count(host, "retries")), std::to_string(count(host, "hedges"))});
  }
  return "origins\n" + table.str("  ");
}

std::string scrub_text(const Json& scrub) {
  if (!truth(scrub, "on")) return "off";
  const uint64_t corrupt = count(scrub, "corrupt");
  const std::string found = ", " + std::to_string(corrupt) + " corrupt since the mount";
  if (truth(scrub, "running")) {
    return format_size(count(scrub, "bytes_done")) + " of " +
           format_size(count(scrub, "bytes_total")) + " checked" + found;
  }
  const double now_ms = static_cast<double>(std::time(nullptr)) * 1000;
  const double last_ms = number(scrub, "last_pass_ms");
  if (last_ms <= 0) return "no pass yet" + found;
  return "last pass " +
         format_duration(static_cast<uint64_t>(std::max(0.0, now_ms - last_ms) / 1000)) + " ago" +
         found;
}

}  // namespace

std::string render_status(const Json& status) {
  std::string out;
  out += line("version", text(status, "version") + " (libfuse " + text(status, "libfuse") +
                             ", kernel " + text(status, "kernel") + ")");
  out += line("mountpoint", text(status, "mountpoint"));
  out += line("daemon", "pid " + std::to_string(count(status, "pid")) + ", up " +
                            format_duration(count(status, "uptime_s")));
  out += line("cache", text(status, "cache_dir") + ", " +
                           format_size(count(status, "cache_used_bytes")) + " of " +
                           format_size(count(status, "cache_max_bytes")) +
                           (truth(status, "cache_dir_hangs") ? "; its disk does not answer" : ""));
  out += line("integrity", text(status, "integrity"));
  const std::string reason = text(status, "passthrough_reason");
  out += line("passthrough", std::string(truth(status, "passthrough") ? "on" : "off") +
                                 (reason == "-" ? "" : " (" + reason + ")"));
  const std::string ring_reason = text(status, "fuse_io_uring_reason");
  out += line("FUSE uring", std::string(truth(status, "fuse_io_uring") ? "on" : "off") +
                                   (ring_reason == "-" ? "" : " (" + ring_reason + ")"));
  const std::string ram_reason = text(status, "ram_tier_reason");
  out += line("RAM tier",
              text(status, "ram_tier") +
                  (ram_reason == "-" || ram_reason.empty() ? "" : " (" + ram_reason + ")") + ", " +
                  format_size(count(status, "ram_used_bytes")) + " of " +
                  format_size(count(status, "ram_max_bytes")));
  if (status.contains("scrub")) out += line("scrub", scrub_text(status["scrub"]));
  if (truth(status, "offline")) out += line("network", "offline: cached data only");

  out += "origins\n";
  Table origins({"NAME", "ORIGIN", "STATE"});
  for (const Json& origin : member(status, "origins")) {
    origins.add({text(origin, "name"), text(origin, "origin"),
                 truth(origin, "reachable") ? "ok" : "out of reach"});
  }
  out += origins.str("  ");
  out += "zones\n" + zones_table(member(status, "zones"));
  for (const Json& zone : member(status, "zones")) {
    if (truth(zone, "unread")) {
      out += line("unread",
                  text(zone, "path") +
                      ": did not answer at the start; the files there are found by the next");
    }
    if (!zone.contains("smart")) continue;
    out += line("device", text(zone, "path") + ": " +
                              std::to_string(count(zone["smart"], "percentage_used")) +
                              " % of its life used, " +
                              format_size(count(zone["smart"], "bytes_written")) + " written");
  }
  out += "models\n";
  Table models({"MODEL", "COMMIT", "SOURCE"});
  std::string troubles;
  for (const Json& model : member(status, "models")) {
    models.add({text(model, "name"), text(model, "commit"), text(model, "source")});
    if (model.contains("error"))
      troubles += "  " + text(model, "name") + ": " + text(model, "error") + "\n";
  }
  out += models.str("  ");
  for (const Json& pin : member(status, "pins")) {
    const std::string file = text(pin, "file");
    out += line("pinned", text(pin, "model") + (file == "-" ? "" : "/" + file));
  }
  if (!troubles.empty()) out += "trouble\n" + troubles;
  return out;
}

std::string render_stats(const Json& stats) {
  const Json performance = member(stats, "performance"), prefetcher = member(stats, "prefetcher");
  const auto gb = [&](const char* used, const char* most) {
    return fixed(number(stats, used), 2) + " of " + fixed(number(stats, most), 2) + " GB, ";
  };
  std::string out;
  out += line("disk", gb("disk_cache_size_gb", "max_disk_cache_size_gb") +
                          std::to_string(count(stats, "disk_cache_entries")) + " files");
  out += line("memory", gb("memory_cache_size_gb", "max_memory_cache_size_gb") +
                            std::to_string(count(stats, "memory_cache_entries")) + " files");
  out += line("requests", std::to_string(count(performance, "total_requests")) + ": " +
                              std::to_string(count(performance, "total_hits")) + " hits, " +
                              std::to_string(count(performance, "total_misses")) + " misses, " +
                              percent(number(performance, "cache_hit_ratio")) + " hits");
  out += line("latency", fixed(number(performance, "avg_latency_ms"), 1) + " ms for the " +
                             std::to_string(count(performance, "reads_waited")) + " that waited, " +
                             fixed(number(performance, "read_wait_s"), 1) + " s together");
  out += line("evictions", std::to_string(count(performance, "total_evictions")));
  out += line("downloaded", format_size(count(performance, "bytes_downloaded")));
  out += line("from cache", format_size(count(performance, "bytes_served_from_cache")));
  out += line("read-ahead", "queue " + std::to_string(count(prefetcher, "queue_depth")) + ", " +
                                percent(number(prefetcher, "prefetch_hit_ratio")) + " hits, " +
                                format_size(count(prefetcher, "issued_bytes")) + " asked for, " +
                                format_size(count(prefetcher, "used_bytes")) + " used, " +
                                format_size(count(prefetcher, "wasted_bytes")) + " wasted");
  const Json downloader = member(stats, "downloader"), queue = member(downloader, "queue");
  out += line("downloads", std::to_string(count(downloader, "active_downloads")) +
                               " at work; requests that wait: " +
                               std::to_string(count(queue, "demand")) + " for readers, " +
                               std::to_string(count(queue, "read_ahead")) + " ahead of them, " +
                               std::to_string(count(queue, "prefetch")) + " for later layers");
  out += hosts_table(member(downloader, "hosts"));
  out += line("scrub", scrub_text(member(stats, "scrub")));
  const Json migration = member(stats, "migration");
  out += line("migration", std::to_string(count(migration, "objects")) + " files moved, " +
                               format_size(count(migration, "bytes")));
  out += "zones\n" + zones_table(member(stats, "zones"));
  return out;
}

std::string render_objects(const Json& answer) {
  Table table({"STATE", "CACHED", "SIZE", "%", "TIER", "HITS", "PIN", "RATE", "LEFT", "NAME"});
  size_t shown = 0;
  for (const Json& object : member(answer, "objects")) {
    std::string rate = "-", left = "-";
    if (object.contains("bytes_per_s")) rate = format_rate(number(object, "bytes_per_s"));
    if (object.contains("eta_s") && object["eta_s"].is_number()) {
      left = format_duration(count(object, "eta_s"));
    }
    table.add({text(object, "state"), format_size(count(object, "bytes_cached")),
               format_size(count(object, "size")), fixed(number(object, "percent"), 0),
               text(object, "tier"), std::to_string(count(object, "hits")),
               truth(object, "pinned") ? "pin" : "-", rate, left, text(object, "name")});
    ++shown;
  }
  return shown == 0 ? "nothing is cached\n" : table.str("");
}

std::string render_dropped(const Json& answer) {
  return std::to_string(count(answer, "objects")) + " files dropped, " +
         format_size(count(answer, "bytes")) + "\n";
}

std::string render_migration(const Json& answer) {
  const Json moved = member(answer, "moved"), stayed = member(answer, "stayed");
  std::string out;
  for (const Json& one : moved) {
    out += text(one, "name") + ": " + text(one, "from") + " (" + text(one, "from_tier") + ") -> " +
           text(one, "to") + " (" + text(one, "to_tier") + ")\n";
  }
  for (const Json& one : stayed) {
    if (one.is_string()) out += "stayed: " + printable(one.get<std::string>()) + "\n";
  }
  return out + std::to_string(moved.size()) + " files moved, " +
         format_size(count(answer, "moved_bytes")) + "\n";
}

std::string render_verify(const Json& answer, bool origin) {
  std::string out = std::to_string(count(answer, "objects")) + " files checked, " +
                    format_size(count(answer, "bytes"));
  // Of layers and incomplete files the hub has none.
  if (origin) {
    out += ", " + std::to_string(count(answer, "matched_origin")) + " as the hub's digests say";
  }
  const Json corrupt = member(answer, "corrupt");
  out += corrupt.empty() ? "; all sound\n"
                         : "; " + std::to_string(corrupt.size()) +
                               " corrupt, dropped, fetched again when they are read:\n";
  for (const Json& one : corrupt) {
    if (one.is_string()) out += "  " + printable(one.get<std::string>()) + "\n";
  }
  if (answer.contains("orphan_files")) {
    if (!member(answer, "moved").empty()) out += render_migration(answer);
    out += std::to_string(count(answer, "orphan_files")) + " orphaned files removed, " +
           format_size(count(answer, "orphan_bytes")) + "\n";
    out += "catalog: " + format_size(count(answer, "catalog_bytes_before")) + " -> " +
           format_size(count(answer, "catalog_bytes_after")) + "\n";
  }
  return out;
}

std::string render_warm(const Json& answer, bool waited) {
  const Json failed = member(answer, "failed");
  std::string out = std::to_string(count(answer, "files")) + " files, " +
                    format_size(count(answer, "bytes")) +
                    (waited ? (failed.empty() ? ": cached\n" : "\n")
                            : ": being fetched (nexusctl ls shows how far)\n");
  for (const Json& one : failed) {
    if (one.is_string()) out += "failed: " + printable(one.get<std::string>()) + "\n";
  }
  return out;
}

std::string render_progress(const Json& progress) {
  constexpr uint64_t kCells = 30;
  const uint64_t done = count(progress, "bytes_done"), all = count(progress, "bytes_total");
  const double part =
      all == 0 ? 1.0 : std::min(1.0, static_cast<double>(done) / static_cast<double>(all));
  const auto filled = static_cast<size_t>(part * kCells);
  return "[" + std::string(filled, '#') + std::string(kCells - filled, '.') + "] " +
         fixed(100 * part, 0) + " %  " + format_size(done) + " of " + format_size(all) + ", " +
         std::to_string(count(progress, "files_done")) + " of " +
         std::to_string(count(progress, "files_total")) + " files";
}

std::string render_top(const Json& status, const Json& stats, const Json& objects) {
  std::string out = text(status, "mountpoint") + ", up " +
                    format_duration(count(status, "uptime_s")) + ", " +
                    std::to_string(count(status, "open_files")) + " open, " +
                    std::to_string(count(status, "parked")) + " waiting\n" + render_stats(stats);
  Json busy = {{"objects", Json::array()}};
  for (const Json& object : member(objects, "objects")) {
    if (text(object, "state") == "fetching") busy["objects"].push_back(object);
  }
  out += busy["objects"].empty() ? "nothing is being fetched\n" : render_objects(busy);
  return out;
}

std::string render_plan(const Json& answer) {
  std::string order;
  for (const Json& layer : member(answer, "order")) {
    if (layer.is_number_integer()) order += " " + std::to_string(layer.get<int64_t>());
  }
  std::string out = text(answer, "model") + ":" + (order.empty() ? " no order recorded" : order);
  if (truth(answer, "recording")) out += " (the next walk over all layers is recorded)";
  return out + "\n";
}

std::string render_refresh(const std::string& model, const Json& commits) {
  const std::string before = text(commits, "old"), now = text(commits, "new");
  if (before == now) return printable(model) + ": unchanged at " + now + "\n";
  return printable(model) + ": " + before + " -> " + now + "\n";
}

}  // namespace nexus::tools
