// What is being fetched, in one line.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "backend/cache/cache.h"

namespace nexus::tools {

// "2 files, 1.20 GB of 4.00 GB, 112 MB/s, 25 s left: org/name@commit/layer_3.pt 34 %"; "" when
// nothing is being fetched. Names the file that somebody waits for first. Cut to `columns` (0: not
// at all).
std::string progress_line(const std::vector<Progress>& progress, size_t columns);

}  // namespace nexus::tools
