// What an NVMe device says of its own wear.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "backend/base/error.h"

namespace nexus {

struct SmartHealth {
  int percentage_used = 0;     // of its endurance as its maker estimates it; may be over 100
  uint64_t bytes_written = 0;  // by everybody, ever; in steps of 512,000
};

// Asks a controller ("nvme0") for its log. kAccess without the privilege, else kUnsupported.
using SmartReader = std::function<Result<SmartHealth>(const std::string& controller)>;
Result<SmartHealth> read_smart(const std::string& controller);

// Of the device that `path` lies on. kUnsupported where that is not NVMe; for a volume over
// several, the first. Waits for the disk.
Result<SmartHealth> smart_of(const std::string& path, const SmartReader& read = read_smart,
                             const std::string& sys_dev_block = "/sys/dev/block");

// The controller below a block device of this number; "" where there is none.
std::string nvme_controller_of(uint64_t device, const std::string& sys_dev_block);

}  // namespace nexus
