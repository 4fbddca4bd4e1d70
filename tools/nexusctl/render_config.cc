#include "tools/nexusctl/render_config.h"

#include <algorithm>
#include <cstdio>

#include "tools/common/size.h"

namespace nexus::tools {
namespace {

std::string text(const Json& object, const char* name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_string()) return "";
  return printable(object[name].get<std::string>());
}

double number(const Json& object, const char* name) {
  if (!object.is_object() || !object.contains(name) || !object[name].is_number()) return 0;
  return object[name].get<double>();
}

bool truth(const Json& object, const char* name) {
  return object.is_object() && object.contains(name) && object[name].is_boolean() &&
         object[name].get<bool>();
}

const Json& member(const Json& object, const char* name) {
  static const Json kNone;
  return object.is_object() && object.contains(name) ? object[name] : kNone;
}

std::string row(const std::string& name, const std::string& value) {
  std::string padded = name;
  padded.resize(std::max<size_t>(padded.size() + 1, 26), ' ');
  return "  " + padded + value + "\n";
}

std::string value_text(const Json& value) {
  if (value.is_string()) {
    const std::string shown = printable(value.get<std::string>());
    return shown.empty() ? "-" : shown;
  }
  if (value.is_object() && value.empty()) return "-";
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

std::string settings_text(const Json& settings) {
  char line[256];
  std::snprintf(line, sizeof line, "block %.0f KiB x %.0f, %s, %.0f thread%s, %s, %s%s%s%s",
                number(settings, "block_size") / 1024, number(settings, "queue_depth"),
                truth(settings, "overlap") ? "overlapped" : "sequential",
                number(settings, "threads"), number(settings, "threads") == 1 ? "" : "s",
                truth(settings, "single_submit") ? "single submit" : "batched",
                truth(settings, "direct") ? "direct" : "buffered",
                truth(settings, "registered") ? ", registered" : "",
                truth(settings, "iopoll") ? ", IOPOLL" : "",
                truth(settings, "sqpoll") ? ", SQPOLL" : "");
  return line;
}

std::string measured_text(const Json& direction) {
  char rate[64];
  std::snprintf(rate, sizeof rate, ": %.2f GB/s", number(direction, "throughput_gbps"));
  return settings_text(direction) + rate;
}

std::string zone_text(const Json& zone) {
  std::string out = "  " + text(zone, "zone") + ": " + text(zone, "state");
  const std::string state = text(zone, "state"), reason = text(zone, "reason");
  if (!reason.empty()) out += " (" + reason + ")";
  if (state == "absent") out += ", not measured before this mount: run nexus-tune and mount again";
  if (state == "stale" || state == "bad") out += ", not used: run nexus-tune";
  out += "\n";
  if (const std::string when = text(zone, "measured_at"); !when.empty()) {
    out += "    measured " + when + " on " + text(zone, "device") + "\n";
  }
  for (const char* direction : {"read", "write"}) {
    if (zone.is_object() && zone.contains(direction)) {
      out += std::string("    ") + direction + " " + measured_text(zone[direction]) + "\n";
    }
  }
  return out;
}

// One engine for the zones whose settings are the same.
std::string engine_text(const Json& engine) {
  std::string out =
      std::string("engine: ") +
      (truth(engine, "io_uring") ? "io_uring" : "pread and pwrite, " + text(engine, "reason")) +
      "\n";
  if (const Json& zones = member(engine, "zones"); zones.is_array()) {
    for (const Json& zone : zones) out += "    of " + value_text(zone) + "\n";
  }
  out += "    read  " + settings_text(member(engine, "read")) + "\n";
  out += "    write " + settings_text(member(engine, "write")) + "\n";
  if (const std::string reason = text(engine, "direct_reason"); !reason.empty()) {
    out += "    without O_DIRECT, at times: " + reason + "\n";
  }
  if (const double fixed = number(engine, "fixed_requests"); fixed > 0) {
    char line[64];
    std::snprintf(line, sizeof line, "    by registered buffers: %.0f requests so far\n", fixed);
    out += line;
  }
  if (const std::string reason = text(engine, "registered_reason"); !reason.empty()) {
    out += "    without registered buffers: " + reason + "\n";
  }
  return out;
}

// What a mount uses of an origin's link, and where that comes from.
std::string link_text(const Json& link) {
  const auto from = [&](const char* name) {
    const std::string source = text(link, name);
    if (source != "nexus-tune link") return source;
    return source + ", measured " + text(link, "measured_at");
  };
  char line[64];
  std::snprintf(line, sizeof line, ": %.0f connections (", number(link, "connections"));
  std::string out = "origin " + text(link, "origin") + line + from("connections_from") + ")";
  if (number(link, "part_bytes") > 0) {
    std::snprintf(line, sizeof line, ", requests of up to %.0f MiB (",
                  number(link, "part_bytes") / (1 << 20));
    out += line + from("part_bytes_from") + ")";
  }
  return out + "\n";
}

std::string machine_text(const Json& machine) {
  std::string out;
  const Json& links = member(machine, "link");
  if (links.is_object()) {
    for (const auto& [origin, link] : links.items()) {
      const Json& best = member(link, "best");
      char line[160];
      std::snprintf(line, sizeof line,
                    ": %.0f connections x %.0f MiB, %.3f GB/s, first byte %.1f ms",
                    number(best, "connections"), number(best, "range_bytes") / (1 << 20),
                    number(best, "throughput_gbps"), number(best, "first_byte_ms"));
      out += "link " + printable(origin) + line + ", measured " + text(link, "measured_at") + "\n";
    }
  }
  if (const Json& copies = member(machine, "host_to_device"); copies.is_object()) {
    const Json& best = member(copies, "best");
    char line[160];
    std::snprintf(line, sizeof line, ": ring of %.0f x %.0f MiB, %.1f GB/s",
                  number(best, "ring_depth"), number(best, "chunk_bytes") / (1 << 20),
                  number(best, "throughput_gbps"));
    out += "host to " + text(copies, "device") + line + ", measured " +
           text(copies, "measured_at") + "\n";
  }
  return out;
}

}  // namespace

std::string render_config(const Json& answer) {
  const std::string file = text(answer, "file");
  std::string out = "config " + (file.empty() ? "(no file)" : file) + "\n";
  const Json& config = member(answer, "config");
  if (config.is_object()) {
    for (const auto& [key, value] : config.items()) out += row(printable(key), value_text(value));
  }
  const Json& engines = member(answer, "engines");
  if (engines.is_array()) {
    for (const Json& engine : engines) out += engine_text(engine);
  }
  out += "tuning\n";
  const Json& zones = member(answer, "tuning");
  if (zones.is_array()) {
    for (const Json& zone : zones) out += zone_text(zone);
  }
  if (const Json& links = member(answer, "links"); links.is_array()) {
    for (const Json& link : links) out += link_text(link);
  }
  return out + machine_text(member(answer, "machine"));
}

}  // namespace nexus::tools
