// Files of a model that no origin has: what programs put into the cache (Cache::put). They are
// objects like any other, whole, hashed and durable, and differ in this: when their bytes are gone
// nothing can bring them again, so they are evicted after everything else, and what asks for one
// that is gone is told so.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/base/error.h"
#include "backend/cache/object.h"

namespace nexus {

// Stands where a model has its commit, in names and for a model of put files alone.
inline constexpr char kPutCommit[] = "0000000000000000000000000000000000000000";

struct PutFile {
  std::string model;  // "org/name", or an alias; no revision
  std::string file;   // "layer_3.pt"
  uint64_t size = 0;
  std::string hash;  // XXH3-128 of the content, 32 hex digits; Cache::put() works it out
};

// Gives [offset, offset + into.size()) of the content. Called from one thread, twice for each byte,
// in order.
using PutRead = std::function<Result<void>(uint64_t offset, std::span<std::byte> into)>;

// The key follows from model, file and content.
ObjectSpec put_spec(const PutFile& put);
// Nothing when the object came from an origin.
std::optional<PutFile> put_file_of(const ObjectMeta& meta);
bool is_put_key(const std::string& key);
// Where put files come from: it has none of their bytes.
std::shared_ptr<Origin> put_origin();

}  // namespace nexus
