// The cache's bulk reads and writes by the engine of each file's zone.
#pragma once

#include <vector>

#include "backend/cache/cache.h"
#include "backend/io/zone_engines.h"
#include "backend/store/store.h"

namespace nexus::tools {

// What nexus-tune found for each zone, in the order of their numbers. Logs which are used, and of
// the others why not.
std::vector<io::ZoneTuning> load_zone_tunings(const Store& store);

// `engines` outlives the cache that is made with these options.
void use_zone_engines(const io::ZoneEngines& engines, CacheOptions& options);

}  // namespace nexus::tools
