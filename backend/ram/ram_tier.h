// The RAM tier: memory that holds copies of complete objects, as files that the kernel can serve by
// passthrough. Their truth stays on disk, so dropping a copy loses nothing, and neither does a
// crash.
//
// The files lie in a private tmpfs with huge pages that is attached to no path, and small ones in a
// second with small pages; so nothing of it is left after the process. Where the kernel refuses
// that they are memfds.
//
// Thread safety: every method may be called from any thread. Files may outlive the last other
// reference to the tier; they keep it.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>

#include "backend/base/error.h"
#include "backend/store/object_file.h"

namespace nexus {

struct RamTierOptions {
  // Wanted; the tier takes at most 3/4 of the control group's memory limit and of the machine's
  // memory: the daemon, its readers and their mappings need the rest.
  uint64_t limit_bytes = 0;
  bool tmpfs = true;  // false: memfds, as on a kernel that refuses it (tests)
};

class RamTier : public std::enable_shared_from_this<RamTier> {
 public:
  // Null, with `reason` saying why, when there is to be none (limit 0) or can be none.
  static std::shared_ptr<RamTier> open(const RamTierOptions& options, std::string* reason);
  ~RamTier();
  RamTier(const RamTier&) = delete;
  RamTier& operator=(const RamTier&) = delete;

  enum class Memory { kNow, kByPopulate };
  // A file of exactly `size` bytes, no chunk present; zone() is -1. kLimit when the tier has no
  // room for it, kNoSpace when memory is short. What it takes is free again once the file is
  // destroyed and nobody has it open or mapped any more. kByPopulate: its memory is not allocated
  // yet, and nothing may touch a page that RamMapping::populate() has not.
  Result<std::shared_ptr<ObjectFile>> create(const std::string& key, uint64_t size,
                                             Memory memory = Memory::kNow);

  // Nobody but `file` itself has it open or mapped: a mapping outlives its handle (and
  // FUSE_RELEASE), which no count of opens sees.
  static bool idle(const ObjectFile& file);

  // Whether `size` more can be had, apart from what other objects leave: below the limit, and
  // enough memory stays available on the machine.
  bool could_hold(uint64_t size) const;
  // Memory is short on the machine, so nothing more should be taken for a copy.
  static bool memory_is_short(uint64_t size);

  uint64_t limit_bytes() const { return limit_; }
  uint64_t used_bytes() const;              // with what was dropped while mapped
  uint64_t charge_of(uint64_t size) const;  // what a file of this size takes
  // "tmpfs with huge pages", "tmpfs", "memfd", and why it is not the first.
  const std::string& kind() const { return kind_; }
  const std::string& reason() const { return reason_; }

 private:
  RamTier() = default;
  void let_go(std::shared_ptr<const Descriptor> descriptor, uint64_t charge);
  void sweep_locked() const;

  // Constant once made.
  uint64_t limit_ = 0;
  int huge_ = -1, small_ = -1;  // the two mounts, or -1: memfds
  std::string kind_, reason_;

  struct Leaving {
    std::shared_ptr<const Descriptor> descriptor;
    uint64_t charge;
  };
  mutable std::mutex mutex_;  // guards the two below
  mutable uint64_t used_ = 0;
  mutable std::list<Leaving> leaving_;  // destroyed while somebody had them open or mapped
};

// A file's bytes in our address space, for filling it. Unmapped at the end.
class RamMapping {
 public:
  static Result<RamMapping> map(const ObjectFile& file);
  ~RamMapping();
  RamMapping(RamMapping&& other) noexcept;
  RamMapping& operator=(RamMapping&&) = delete;

  // Allocates and maps [offset, offset + length); kNoSpace. Offset on a page. Unlike fallocate()
  // this makes room for huge pages where the page cache has taken and broken up all memory.
  Result<void> populate(uint64_t offset, uint64_t length);

  // The whole of the file's last page too: O_DIRECT may write up to its end.
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  RamMapping(std::span<std::byte> bytes, std::shared_ptr<const Descriptor> descriptor)
      : bytes_(bytes), descriptor_(std::move(descriptor)) {}
  std::span<std::byte> bytes_;
  std::shared_ptr<const Descriptor> descriptor_;
};

}  // namespace nexus
