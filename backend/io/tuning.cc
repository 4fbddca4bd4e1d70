#include "backend/io/tuning.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <utility>

#include "backend/store/disk_io.h"

namespace nexus::io {

namespace {

using Json = nlohmann::json;

constexpr int kVersion = 1;
constexpr size_t kFileBytesMax = 1 << 20;

Result<bool> boolean(const Json& json, const char* name) {
  if (!json.contains(name) || !json[name].is_boolean()) {
    return fail(Code::kInvalid, std::string(name) + ": must be true or false");
  }
  return json[name].get<bool>();
}

Result<uint64_t> whole(const Json& json, const char* name, uint64_t least, uint64_t most) {
  if (!json.contains(name) || !json[name].is_number_unsigned() ||
      json[name].get<uint64_t>() < least || json[name].get<uint64_t>() > most) {
    return fail(Code::kInvalid, std::string(name) + ": must be " + std::to_string(least) + " to " +
                                    std::to_string(most));
  }
  return json[name].get<uint64_t>();
}

std::string text(const Json& json, const char* name) {
  return json.contains(name) && json[name].is_string() ? json[name].get<std::string>() : "";
}

double number(const Json& json, const char* name) {
  return json.contains(name) && json[name].is_number() ? json[name].get<double>() : 0;
}

Json direction_json(const TunedDirection& direction) {
  Json json = settings_json(direction.settings);
  json["throughput_gbps"] = direction.throughput_gbps;
  json["cpu_s_per_gb"] = direction.cpu_s_per_gb;
  return json;
}

Result<std::optional<TunedDirection>> direction_from(const Json& json, const char* name) {
  if (!json.contains(name)) return std::optional<TunedDirection>();
  const Json& found = json[name];
  if (!found.is_object()) return fail(Code::kInvalid, std::string(name) + ": must be an object");
  auto settings = settings_from_json(found);
  if (!settings) return fail(settings.error(), name);
  return TunedDirection{*settings, number(found, "throughput_gbps"), number(found, "cpu_s_per_gb")};
}

Result<Tuning> tuning_from(const std::string& bytes) {
  const Json json = Json::parse(bytes, nullptr, false);
  if (!json.is_object()) return fail(Code::kInvalid, "not a JSON object");
  if (number(json, "version") != kVersion) {
    return fail(Code::kInvalid, "not of version " + std::to_string(kVersion));
  }
  Tuning tuning;
  tuning.measured_at = text(json, "measured_at");
  tuning.device.kernel = text(json, "kernel");
  if (!json.contains("device") || !json["device"].is_object()) {
    return fail(Code::kInvalid, "device: must be an object");
  }
  const Json& device = json["device"];
  tuning.device.name = text(device, "name");
  tuning.device.model = text(device, "model");
  tuning.device.serial = text(device, "serial");
  tuning.device.file_system = text(device, "file_system");
  if (device.contains("size_bytes") && device["size_bytes"].is_number_unsigned()) {
    tuning.device.size_bytes = device["size_bytes"].get<uint64_t>();
  }
  auto read = direction_from(json, "read");
  if (!read) return tl::unexpected(read.error());
  auto write = direction_from(json, "write");
  if (!write) return tl::unexpected(write.error());
  tuning.read = *read;
  tuning.write = *write;
  return tuning;
}

// Of a missing file: nothing.
Result<std::optional<Tuning>> read_tuning(const std::string& path) {
  struct stat st;
  if (::stat(path.c_str(), &st) != 0 && errno == ENOENT) return std::optional<Tuning>();
  auto bytes = read_file(AT_FDCWD, path, kFileBytesMax);
  if (!bytes) return tl::unexpected(bytes.error());
  auto tuning = tuning_from(*bytes);
  if (!tuning) return fail(tuning.error(), path);
  return *tuning;
}

}  // namespace

const char* tuning_state_name(TuningState state) {
  switch (state) {
    case TuningState::kAbsent:
      return "absent";
    case TuningState::kFresh:
      return "fresh";
    case TuningState::kStale:
      return "stale";
    case TuningState::kBad:
      return "bad";
  }
  return "bad";
}

EngineSettings LoadedTuning::read_settings() const {
  return state == TuningState::kFresh && tuning.read ? tuning.read->settings : EngineSettings{};
}

EngineSettings LoadedTuning::write_settings() const {
  return state == TuningState::kFresh && tuning.write ? tuning.write->settings : EngineSettings{};
}

Json settings_json(const EngineSettings& settings) {
  return Json{{"block_size", settings.block_size},
              {"queue_depth", settings.queue_depth},
              {"threads", settings.threads},
              {"overlap", settings.overlap},
              {"single_submit", settings.single_submit},
              {"direct", settings.direct},
              {"registered", settings.registered},
              {"iopoll", settings.iopoll},
              {"sqpoll", settings.sqpoll}};
}

Result<EngineSettings> settings_from_json(const Json& json) {
  EngineSettings settings;
  const auto take_whole = [&](const char* name, uint64_t least, uint64_t most,
                              auto& into) -> Result<void> {
    auto value = whole(json, name, least, most);
    if (!value) return tl::unexpected(value.error());
    into = static_cast<std::remove_reference_t<decltype(into)>>(*value);
    return {};
  };
  if (auto ok = take_whole("block_size", kBlockMin, kBlockMax, settings.block_size); !ok) {
    return tl::unexpected(ok.error());
  }
  if (settings.block_size % kDirectAlign != 0) {
    return fail(Code::kInvalid, "block_size: must be a multiple of 4096");
  }
  if (auto ok = take_whole("queue_depth", 1, kDepthMax, settings.queue_depth); !ok) {
    return tl::unexpected(ok.error());
  }
  if (auto ok = take_whole("threads", 1, kThreadsMax, settings.threads); !ok) {
    return tl::unexpected(ok.error());
  }
  const std::pair<const char*, bool*> flags[] = {
      {"overlap", &settings.overlap}, {"single_submit", &settings.single_submit},
      {"direct", &settings.direct},   {"registered", &settings.registered},
      {"iopoll", &settings.iopoll},   {"sqpoll", &settings.sqpoll}};
  for (const auto& [name, into] : flags) {
    auto value = boolean(json, name);
    if (!value) return tl::unexpected(value.error());
    *into = *value;
  }
  return settings;
}

Result<void> store_tuning(const std::string& zone, Tuning tuning) {
  const std::string path = zone + "/" + kTuningFile;
  if (!tuning.read || !tuning.write) {
    const auto before = read_tuning(path);
    if (before && *before && difference((*before)->device, tuning.device).empty()) {
      if (!tuning.read) tuning.read = (*before)->read;
      if (!tuning.write) tuning.write = (*before)->write;
    }
  }
  Json json = {{"version", kVersion},
               {"measured_at", tuning.measured_at},
               {"kernel", tuning.device.kernel},
               {"device", Json{{"name", tuning.device.name},
                               {"model", tuning.device.model},
                               {"serial", tuning.device.serial},
                               {"size_bytes", tuning.device.size_bytes},
                               {"file_system", tuning.device.file_system}}}};
  if (tuning.read) json["read"] = direction_json(*tuning.read);
  if (tuning.write) json["write"] = direction_json(*tuning.write);
  return replace_file(path, json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

Json load_machine(const std::string& cache_dir) {
  const auto bytes = read_file(AT_FDCWD, cache_dir + "/" + kMachineFile, kFileBytesMax);
  Json json = bytes ? Json::parse(*bytes, nullptr, false) : Json();
  return json.is_object() ? json : Json::object();
}

Result<void> store_machine(const std::string& cache_dir, const Json& machine) {
  return replace_file(cache_dir + "/" + kMachineFile,
                      machine.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

LoadedTuning load_tuning(const std::string& zone, const DeviceIdentity& now) {
  LoadedTuning loaded;
  auto found = read_tuning(zone + "/" + kTuningFile);
  if (!found) {
    loaded.state = TuningState::kBad;
    loaded.reason = found.error().what;
  } else if (*found) {
    loaded.tuning = std::move(**found);
    loaded.reason = difference(loaded.tuning.device, now);
    loaded.state = loaded.reason.empty() ? TuningState::kFresh : TuningState::kStale;
  }
  return loaded;
}

LoadedTuning load_tuning(const std::string& zone) {
  auto now = identify_device(zone);
  if (now) return load_tuning(zone, *now);
  return {TuningState::kBad, now.error().what, {}};
}

}  // namespace nexus::io
