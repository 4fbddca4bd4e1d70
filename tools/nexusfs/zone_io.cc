#include "tools/nexusfs/zone_io.h"

#include <spdlog/spdlog.h>

#include <memory>
#include <span>
#include <utility>

namespace nexus::tools {

namespace {
// kBad while the zone's disk hangs.
io::LoadedTuning load_zone_tuning(const Store& store, int zone, const std::string& path) {
  const auto loaded = std::make_shared<io::LoadedTuning>();
  if (store.run_on_zone(zone, [loaded, path] { *loaded = io::load_tuning(path); })) return *loaded;
  return {io::TuningState::kBad, "the disk does not answer", {}};
}
}  // namespace

std::vector<io::ZoneTuning> load_zone_tunings(const Store& store) {
  std::vector<io::ZoneTuning> tunings;
  for (const ZoneInfo& zone : store.zones()) {
    io::LoadedTuning loaded = load_zone_tuning(store, static_cast<int>(tunings.size()), zone.path);
    if (loaded.state == io::TuningState::kFresh) {
      spdlog::info("I/O settings of {}, measured {}", zone.path, loaded.tuning.measured_at);
    } else if (loaded.state != io::TuningState::kAbsent) {
      spdlog::warn("tuning of {} is {}: {}; defaults are used, run nexus-tune", zone.path,
                   io::tuning_state_name(loaded.state), loaded.reason);
    }
    tunings.push_back({zone.path, std::move(loaded)});
  }
  return tunings;
}

void use_zone_engines(const io::ZoneEngines& engines, CacheOptions& options) {
  options.bulk_read = [&engines](const ObjectFile& file, uint64_t offset,
                                 std::span<std::byte> into) -> Result<void> {
    auto descriptor = file.descriptor();
    if (!descriptor) return tl::unexpected<Error>(descriptor.error());
    auto read = engines.of(file.zone()).read_pinned((*descriptor)->get(), offset, into);
    if (!read && read.error().code == Code::kDisk) file.note_io_error();
    return read;
  };
  options.bulk_shape = [&engines](const ObjectFile& file) {
    const io::EngineSettings& settings = engines.of(file.zone()).read_settings();
    return BulkShape{settings.block_size, io::in_flight_bytes(settings)};
  };
  options.bulk_write = [&engines](ObjectFile& file, uint64_t offset,
                                  std::span<const std::byte> from) {
    io::Engine& engine = engines.of(file.zone());
    return file.write_by(offset, from,
                         [&engine](int fd, uint64_t at, std::span<const std::byte> bytes) {
                           return engine.write_pinned(fd, at, bytes);
                         });
  };
}

}  // namespace nexus::tools
