// The making of an object's file, apart from the store so that a thread may hang in it.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "backend/base/error.h"
#include "backend/store/disk_io.h"

namespace nexus {

// What it comes to; shared by who asked and the thread that does it.
struct NewFile {
  enum Owner { kUnmade, kMade, kNobodys };
  std::atomic<Owner> owner{kUnmade};
  UniqueFd fd;
  bool preallocated = false;
  std::optional<Error> failure;  // there is no file then
  bool unwell = false;           // and it says something about the zone's health
};

// In a zone's directory. Random, so that no name is ever used twice: an ObjectFile that opens its
// file late can never open another object's.
std::string new_object_path(const std::string& zone);

// Of `size` bytes at once; `whole` files are allocated where the file system can do that. May block
// for as long as the disk likes.
void make_object_file(const std::string& path, uint64_t size, bool whole, NewFile& made);

}  // namespace nexus
