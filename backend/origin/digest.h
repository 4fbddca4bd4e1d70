// A commit for origins that have none: a digest of the listing.
#pragma once

#include <string>

#include "backend/origin/origin.h"

namespace nexus {

// 40 hex digits (SHA-256, cut) over names, sizes and ETags.
std::string listing_digest(const std::vector<OriginFile>& files);

}  // namespace nexus
