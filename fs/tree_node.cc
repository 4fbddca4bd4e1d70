#include <xxhash.h>

#include "fs/tree.h"

namespace nexus::fs {

std::string decode_revision(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && text[i + 1] == '2' &&
        (text[i + 2] == 'F' || text[i + 2] == 'f')) {
      result += '/';
      i += 2;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string encode_revision(std::string_view revision) {
  std::string result;
  for (const char c : revision) {
    if (c == '/') {
      result += "%2F";
    } else {
      result += c;
    }
  }
  return result;
}

uint64_t inode_of_path(std::string_view path) {
  if (path.empty()) return 1;
  const uint64_t hash = XXH3_64bits(path.data(), path.size());
  return hash < 2 ? hash + 2 : hash;  // 0 means "no inode" to many programs, 1 is the root
}

uint64_t Node::size() const {
  if (kind == NodeKind::kHubRef) return entry.literal.size();
  return kind == NodeKind::kModelFile ? entry.size : 0;
}

uint64_t Node::inode() const {
  return inode_of_path(path);
}

bool Node::same(const Node& other) const {
  if (kind != other.kind || path != other.path || name != other.name || ref != other.ref) {
    return false;
  }
  if (!model != !other.model) return false;
  if (model && model != other.model &&
      (model->repo() != other.model->repo() || model->commit() != other.model->commit())) {
    return false;
  }
  if (entry.size != other.entry.size || entry.literal != other.entry.literal) return false;
  if (!entry.object != !other.entry.object) return false;
  return entry.object == other.entry.object ||
         entry.object->spec().key == other.entry.object->spec().key;
}

}  // namespace nexus::fs
