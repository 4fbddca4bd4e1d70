// Names and values of user.nexus.*, without FUSE in it.
//
//   file             state tier zone bytes_cached hits xxh3 verified etag revision layer tensors
//   source
//                    error pinned note; only those that apply are listed
//   model directory  stats revision source error
//   root             stats
//
// Thread safety: both functions may be called from any thread; they return at once.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fs/tree.h"

namespace nexus::fs {

inline constexpr char kXattrPrefix[] = "user.nexus.";
// The two that may be set (Edge::setxattr).
inline constexpr char kXattrPinned[] = "user.nexus.pinned";
inline constexpr char kXattrPrefetch[] = "user.nexus.prefetch";
inline constexpr char kXattrHash[] = "user.nexus.xxh3";

// Full names, in the order above. xxh3 is listed only where the content is here.
std::vector<std::string> xattr_names(const Node& node);
// Nothing: the node has no such attribute (ENODATA). xxh3 is not answered here: it takes time.
using StatsJson = std::function<std::string(const std::string& model)>;
std::optional<std::string> xattr_value(const Node& node, const std::string& name,
                                       const StatsJson& stats_json);

}  // namespace nexus::fs
