// Helpers that let the store's tests read as stories.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "backend/store/store.h"

namespace nexus::store_test {

namespace fs = std::filesystem;

class TempDir {
 public:
  explicit TempDir(std::string base = "/tmp") {
    base += "/nexus-store-XXXXXX";
    path_ = ::mkdtemp(base.data());
  }
  // For many small objects, where it is not the disk that is tested.
  static std::string in_memory() { return fs::exists("/dev/shm") ? "/dev/shm" : "/tmp"; }
  ~TempDir() {
    std::error_code ec;
    fs::remove_all(path_, ec);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Byte `i` of every object follows from its seed alone, so that any reader can tell a true byte.
inline std::vector<std::byte> true_bytes(uint64_t seed, uint64_t offset, size_t length) {
  std::vector<std::byte> bytes(length);
  for (size_t i = 0; i < length; ++i) {
    uint64_t x = (offset + i) / 8 * 0x9e3779b97f4a7c15u + seed * 0xbf58476d1ce4e5b9u;
    x ^= x >> 29;
    bytes[i] = static_cast<std::byte>(x >> ((offset + i) % 8 * 8));
  }
  return bytes;
}

inline ObjectMeta meta_of(const std::string& key, uint64_t size) {
  ObjectMeta meta;
  meta.key = key;
  meta.model = "org/m";
  meta.name = "org/m@main/" + key;
  meta.size = size;
  return meta;
}

inline StoreOptions options_at(const std::string& dir, int num_zones = 4) {
  StoreOptions options;
  options.cache_dir = dir;
  options.num_zones = num_zones;
  return options;
}

inline std::unique_ptr<Store> open_store(const std::string& dir, bool persist = true) {
  StoreOptions options;
  options.cache_dir = dir;
  options.persist = persist;
  auto store = Store::open(options);
  if (!store) {
    ADD_FAILURE() << store.error().what;
    return nullptr;
  }
  return std::move(*store);
}

inline Result<void> fill_chunk(ObjectFile& file, uint64_t seed, uint64_t chunk) {
  const uint64_t offset = chunk * kChunkBytes;
  if (auto done = file.write(offset, true_bytes(seed, offset, file.chunk_length(chunk))); !done) {
    return done;
  }
  return file.seal_chunk(chunk);
}

// Creates an object, writes the chunks asked for (all, if none is named) and checkpoints it.
inline std::shared_ptr<ObjectFile> put(Store& store, const std::string& key, uint64_t size,
                                       uint64_t seed, std::vector<uint64_t> chunks = {}) {
  auto file = store.create(meta_of(key, size), chunks.empty());
  if (!file) {
    ADD_FAILURE() << file.error().what;
    return nullptr;
  }
  if (chunks.empty()) {
    for (uint64_t chunk = 0; chunk < (*file)->chunks(); ++chunk) chunks.push_back(chunk);
  }
  for (uint64_t chunk : chunks) {
    auto done = fill_chunk(**file, seed, chunk);
    if (!done) ADD_FAILURE() << done.error().what;
  }
  store.checkpoint(*file, meta_of(key, size));
  return *file;
}

inline bool chunk_is_true(const ObjectFile& file, uint64_t seed, uint64_t chunk) {
  std::vector<std::byte> bytes(file.chunk_length(chunk));
  return file.read(chunk * kChunkBytes, bytes).has_value() &&
         bytes == true_bytes(seed, chunk * kChunkBytes, bytes.size()) &&
         file.verify_chunk(chunk).has_value();
}

inline bool all_chunks_true(const ObjectFile& file, uint64_t seed) {
  for (uint64_t chunk = 0; chunk < file.chunks(); ++chunk) {
    if (file.has(chunk) && !chunk_is_true(file, seed, chunk)) return false;
  }
  return true;
}

inline const StoredObject* find(const std::vector<StoredObject>& objects, const std::string& key) {
  for (const StoredObject& object : objects) {
    if (object.meta.key == key) return &object;
  }
  return nullptr;
}

// Object files and sidecars below `dir`, whatever they hold.
inline std::vector<std::string> object_files(const std::string& dir) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file() && entry.path().string().find("/objects/") != std::string::npos) {
      files.push_back(entry.path());
    }
  }
  return files;
}

inline void overwrite(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

inline mode_t mode_of(const std::string& path) {
  struct stat st {};
  ::stat(path.c_str(), &st);
  return st.st_mode & 07777;
}

}  // namespace nexus::store_test
