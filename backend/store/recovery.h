// What a store finds when it starts: which objects survived, and what is garbage.
//
// An object survives when its file has exactly the size that its row or its sidecar says. The
// catalog is believed for complete objects, so that a start reads each directory once and no
// sidecar; where a row is missing, damaged or incomplete the sidecar is read too, and of the two
// the one that vouches for more chunks counts (every chunk in either was synced before it was
// written down).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backend/store/catalog.h"
#include "backend/store/sidecar.h"

namespace nexus {

struct RecoveredObject {
  SidecarRecord record;
  std::string path;
  int zone = 0;
  bool row_current = true, sidecar_current = true;  // false: to be written again
};

struct Recovery {
  std::vector<RecoveredObject> objects;
  std::vector<std::string> stale_rows;  // files whose row is to be deleted
  uint64_t max_generation = 0;
  std::map<int, uint64_t> zone_bytes_written;  // the most that any record of the zone knew of
};

// Reads the zones' directories, removes what belongs to no object, and logs what was dropped (the
// first few by name, then a count). `wipe`: nothing survives.
Recovery recover_objects(const std::vector<std::string>& zone_paths, std::vector<CatalogRow> rows,
                         bool wipe);

}  // namespace nexus
