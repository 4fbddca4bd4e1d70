#include "backend/format/object_layout.h"

namespace nexus {

ObjectLayout whole_file_layout(uint32_t file, uint64_t size) {
  ObjectLayout layout;
  layout.size = size;
  if (size > 0) layout.extents.push_back({0, size, file, 0});
  return layout;
}

}  // namespace nexus
