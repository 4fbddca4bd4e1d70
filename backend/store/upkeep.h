// Finding what lies in the zones and belongs to no object.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace nexus {

// Every file below the zones' objects/?? directories, sidecars and temporary ones too.
std::vector<std::string> list_zone_files(const std::vector<std::string>& zone_paths);
// The object's file that `path` belongs to: itself, or what its sidecar describes.
std::string object_path_of(const std::string& path);
// Removes it and returns what it took on disk; nothing when it was gone or is not a file.
std::optional<uint64_t> remove_orphan(const std::string& path);

// Size of a file, 0 when there is none.
uint64_t file_bytes(const std::string& path);

}  // namespace nexus
