// A snapshot as text, for the catalog.
#pragma once

#include <string>

#include "backend/base/error.h"
#include "backend/origin/origin.h"

namespace nexus {

std::string snapshot_to_json(const Snapshot& snapshot);
// local_path is kept only for files that still are there with the right size.
Result<Snapshot> snapshot_from_json(const std::string& text);

}  // namespace nexus
