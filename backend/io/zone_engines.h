// The engines of a mount: each zone's bytes go by the settings that were found for its own disk.
//
// Zones of the same settings share one engine, so that four directories of one disk are not four
// sets of rings.
//
// Thread safety: constant once made; the engines are safe from any thread themselves.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/io/engine.h"
#include "backend/io/tuning.h"

namespace nexus::io {

struct ZoneTuning {
  std::string zone;  // its directory
  LoadedTuning loaded;
};

// Bytes that the settings keep on the way at once.
uint64_t in_flight_bytes(const EngineSettings& settings);

class ZoneEngines {
 public:
  // In the order of the zones' numbers. With no zone at all there is one engine of the defaults.
  explicit ZoneEngines(const std::vector<ZoneTuning>& zones, EngineOptions options = {});

  // Of a zone that is not known (a number beyond the list, -1): the first.
  Engine& of(int zone) const { return *engines_[index_of(zone)]; }
  size_t index_of(int zone) const;

  const std::vector<std::unique_ptr<Engine>>& engines() const { return engines_; }

 private:
  std::vector<std::unique_ptr<Engine>> engines_;
  std::vector<size_t> by_zone_;  // index of engines_
};

}  // namespace nexus::io
