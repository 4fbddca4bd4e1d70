#include "backend/io/zone_engines.h"

#include <algorithm>

namespace nexus::io {

uint64_t in_flight_bytes(const EngineSettings& settings) {
  const EngineSettings used = clamped(settings);
  return used.block_size * used.queue_depth * used.threads;
}

ZoneEngines::ZoneEngines(const std::vector<ZoneTuning>& zones, EngineOptions options) {
  for (const ZoneTuning& zone : zones) {
    const EngineSettings read = clamped(zone.loaded.read_settings());
    const EngineSettings write = clamped(zone.loaded.write_settings());
    const auto same = std::find_if(engines_.begin(), engines_.end(), [&](const auto& engine) {
      return engine->read_settings() == read && engine->write_settings() == write;
    });
    by_zone_.push_back(static_cast<size_t>(same - engines_.begin()));
    if (same == engines_.end()) engines_.push_back(std::make_unique<Engine>(read, write, options));
  }
  if (engines_.empty()) {
    engines_.push_back(std::make_unique<Engine>(EngineSettings{}, EngineSettings{}, options));
  }
}

size_t ZoneEngines::index_of(int zone) const {
  const auto at = static_cast<size_t>(zone);
  return zone >= 0 && at < by_zone_.size() ? by_zone_[at] : 0;
}

}  // namespace nexus::io
