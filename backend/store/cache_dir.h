// The directory that one daemon owns: made, checked, private, locked.
#pragma once

#include <string>

#include "backend/base/error.h"
#include "backend/store/disk_io.h"

namespace nexus {

class CacheDir {
 public:
  // Makes the directory (and its parents) where it is missing, sets it to 0700 and takes the lock.
  // kInvalid when it is not a directory, not ours or not writable; kLimit, with the pid, when
  // another process holds it.
  static Result<CacheDir> open(const std::string& path);

  // Lets another daemon have it.
  void release() { lock_.reset(); }

 private:
  explicit CacheDir(UniqueFd lock) : lock_(std::move(lock)) {}
  UniqueFd
      lock_;  // the flock lives as long as this descriptor, so a killed daemon leaves none behind
};

// As many descriptors as the system lets us have: one for every object in use.
void raise_descriptor_limit();

}  // namespace nexus
