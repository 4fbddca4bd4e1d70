// What a store finds when it starts: which objects survived, and what is garbage.
//
// The catalog is believed for complete objects, so that a start reads each directory once, and
// neither sidecars nor inodes: that a file has the size of its row is found out when it is opened
// (object_file.h). Where a row is missing, damaged or incomplete the file's size and the sidecar
// are read too, and of the two the one that vouches for more chunks counts (every chunk in either
// was synced before it was written down).
//
// A zone whose disk does not answer is left alone: its rows stay, and what they name is found by
// the next start that can read it.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/store/catalog.h"
#include "backend/store/sidecar.h"
#include "backend/store/zones.h"

namespace nexus {

struct RecoveredObject {
  SidecarRecord record;
  std::string path;
  int zone = 0;
  bool row_current = true, sidecar_current = true;  // false: to be written again
};

// What the catalog says of a zone that could not be read, in whole or in part.
struct UnreadZone {
  uint64_t objects = 0, bytes = 0;  // present chunks
};

struct Recovery {
  std::vector<RecoveredObject> objects;
  std::vector<std::string> stale_rows;  // files whose row is to be deleted
  uint64_t max_generation = 0;
  std::map<int, uint64_t> zone_bytes_written;  // the most that any record of the zone knew of
  std::map<int, UnreadZone> unread;            // zones whose disk hangs
};

// `rows` are sorted by file. Reads the zones' directories, removes what belongs to no object, and
// logs what was dropped (the first few by name, then a count). `wipe`: nothing survives.
Recovery recover_objects(const std::vector<std::shared_ptr<Zone>>& zones,
                         std::vector<CatalogRow> rows, bool wipe);

}  // namespace nexus
