#include "backend/cache/object.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdio>
#include <tuple>

#include "backend/cache/flight.h"

namespace nexus {

namespace {
uint64_t hash_text(const std::string& text) {
  return XXH3_64bits(text.data(), text.size());
}

// What tells the content of an origin file apart from every other: its ETag where the origin gives
// one, else the place where it was seen.
std::string content_identity(const Snapshot& snapshot, const OriginFile& file) {
  if (!file.etag.empty()) return snapshot.repo + "#" + file.etag + "#" + std::to_string(file.size);
  return snapshot.repo + "@" + snapshot.commit + "/" + file.path;
}
}  // namespace

ObjectSpec blob_spec(std::shared_ptr<const ModelSource> source, uint32_t file) {
  const OriginFile& origin_file = source->snapshot.files[file];
  ObjectSpec spec;
  spec.key = "blob:" + content_identity(source->snapshot, origin_file);
  spec.model = source->snapshot.repo;
  spec.name = source->snapshot.repo + "@" + source->snapshot.commit + "/" + origin_file.path;
  spec.sha256 = origin_file.sha256;
  spec.etag = origin_file.etag;
  spec.local_path = origin_file.local_path;
  spec.layout = whole_file_layout(file, origin_file.size);
  spec.whole = origin_file.size <= kChunkBytes;
  spec.source = std::move(source);
  return spec;
}

uint64_t file_id_of_blob(const std::string& key) {
  return hash_text(key.substr(sizeof "blob:" - 1));
}

std::string view_key(const std::string& kind, const ModelSource& source,
                     const ObjectLayout& layout) {
  std::string text = std::to_string(layout.size);
  uint32_t last_file = UINT32_MAX;
  for (const Extent& extent : layout.extents) {
    if (extent.file != last_file) {
      text += content_identity(source.snapshot, source.snapshot.files[extent.file]);
      last_file = extent.file;
    }
    const uint64_t numbers[] = {extent.dest, extent.length, extent.src};
    text.append(reinterpret_cast<const char*>(numbers), sizeof numbers);
  }
  for (const Literal& literal : layout.literals) {
    text += std::to_string(literal.dest) + ":" + literal.bytes;
  }
  const XXH128_hash_t hash = XXH3_128bits(text.data(), text.size());
  char hex[33];
  std::snprintf(hex, sizeof hex, "%016llx%016llx", static_cast<unsigned long long>(hash.high64),
                static_cast<unsigned long long>(hash.low64));
  return kind + ":" + source.snapshot.repo + ":" + hex;
}

Object::Object(ObjectSpec spec)
    : spec_(std::move(spec)),
      id_(hash_text(spec_.key)),
      checked_((spec_.layout.size + kChunkBytes - 1) / kChunkBytes / 64 + 1) {}

Object::~Object() = default;

std::shared_ptr<ObjectFile> Object::file() const {
  std::lock_guard lock(mutex_);
  return file_;
}

std::shared_ptr<ObjectFile> Object::ram_copy() const {
  std::lock_guard lock(mutex_);
  return ram_;
}

std::shared_ptr<ObjectFile> Object::fastest_file() const {
  std::lock_guard lock(mutex_);
  return ram_ ? ram_ : file_;
}

bool Object::resident() const {
  auto f = file();
  return f && f->complete();
}

void Object::set_error(const std::string& error) {
  std::lock_guard lock(mutex_);
  error_ = error;
}

ObjectInfo Object::info() const {
  ObjectInfo info;
  info.size = size();
  info.hits = hits_.load(std::memory_order_relaxed);
  info.verified = digest_ok_.load(std::memory_order_relaxed);
  info.pinned = pinned();
  std::shared_ptr<ObjectFile> f;
  bool in_ram = false;
  {
    std::lock_guard lock(mutex_);
    f = file_;
    in_ram = ram_ != nullptr;
    info.error = error_;
  }
  if (f) {
    info.bytes_cached = f->present_bytes();
    info.zone = f->zone();
  }
  if (f && f->complete()) {
    info.state = ObjectState::kResident;
  } else if (fetching_.load(std::memory_order_relaxed)) {
    info.state = ObjectState::kFetching;
  }
  if (!spec_.local_path.empty()) {
    info.tier = "origin";
    info.state = ObjectState::kResident;
    info.bytes_cached = 0;
  } else if (!f || info.bytes_cached == 0) {
    info.tier = "origin";
  } else {
    info.tier = in_ram || f->zone() < 0 ? "ram" : "ssd";
  }
  return info;
}

ObjectMeta Object::meta() const {
  ObjectMeta meta;
  meta.key = spec_.key;
  meta.model = spec_.model;
  meta.name = spec_.name;
  meta.sha256 = spec_.sha256;
  meta.verified = digest_ok_.load(std::memory_order_relaxed);
  meta.size = size();
  meta.last_access_ms = last_access_ms_.load(std::memory_order_relaxed);
  meta.hits = hits_.load(std::memory_order_relaxed);
  return meta;
}

uint64_t Object::file_id(uint32_t file) const {
  const Snapshot& snapshot = spec_.source->snapshot;
  return hash_text(content_identity(snapshot, snapshot.files[file]));
}

const std::vector<Object::SourceExtent>& Object::source_extents() const {
  std::call_once(extents_once_, [this] {
    source_extents_.reserve(spec_.layout.extents.size());
    uint32_t last_file = UINT32_MAX;
    uint64_t id = 0;
    for (const Extent& extent : spec_.layout.extents) {
      if (extent.file != last_file) id = file_id(last_file = extent.file);
      source_extents_.push_back({id, extent.src, extent.length, extent.dest});
    }
    std::sort(source_extents_.begin(), source_extents_.end(), [](const auto& a, const auto& b) {
      return std::tie(a.file_id, a.src) < std::tie(b.file_id, b.src);
    });
  });
  return source_extents_;
}

}  // namespace nexus
