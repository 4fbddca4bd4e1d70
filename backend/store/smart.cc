#include "backend/store/smart.h"

#include <libnvme.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "backend/store/disk_io.h"

namespace nexus {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kDataUnitBytes = 512'000;  // NVMe: thousands of 512 bytes

// "nvme0n1", "nvme0n1p2" -> "nvme0"; "" for any other name.
std::string controller_in(const std::string& name) {
  if (!name.starts_with("nvme")) return "";
  const size_t digits = std::strlen("nvme");
  const size_t end = name.find_first_not_of("0123456789", digits);
  return end == digits ? "" : name.substr(0, end);
}

}  // namespace

Result<SmartHealth> read_smart(const std::string& controller) {
  const UniqueFd fd(::nvme_open(controller.c_str()));
  if (!fd) {
    const bool refused = errno == EACCES || errno == EPERM;
    return fail(refused ? Code::kAccess : Code::kUnsupported,
                controller + ": " + std::strerror(errno));
  }
  nvme_smart_log log{};
  // Positive: the device's own status.
  if (const int status = ::nvme_get_log_smart(fd.get(), NVME_NSID_ALL, false, &log); status != 0) {
    const bool refused = status < 0 && (errno == EACCES || errno == EPERM);
    return fail(refused ? Code::kAccess : Code::kUnsupported,
                controller + ": no SMART log" +
                    (status < 0 ? std::string(": ") + std::strerror(errno) : std::string()));
  }
  // 128 bits, little-endian; the upper half is 0 for the next 9 * 10^24 bytes.
  uint64_t units = 0;
  for (int i = 7; i >= 0; --i) units = units << 8 | log.data_units_written[i];
  return SmartHealth{log.percent_used, units * kDataUnitBytes};
}

std::string nvme_controller_of(uint64_t device, const std::string& sys_dev_block) {
  const fs::path link = fs::path(sys_dev_block) /
                        (std::to_string(major(device)) + ":" + std::to_string(minor(device)));
  std::error_code ec;
  const fs::path dir = fs::canonical(link, ec);
  if (ec) return "";
  if (auto found = controller_in(dir.filename()); !found.empty()) return found;
  // LVM and encryption: dm-0 on top of the real disk.
  std::vector<std::string> slaves;
  for (fs::directory_iterator it(dir / "slaves", ec), end; !ec && it != end; it.increment(ec)) {
    slaves.push_back(controller_in(it->path().filename()));
  }
  std::erase(slaves, "");
  return slaves.empty() ? "" : *std::min_element(slaves.begin(), slaves.end());
}

Result<SmartHealth> smart_of(const std::string& path, const SmartReader& read,
                             const std::string& sys_dev_block) {
  struct stat st;
  if (::stat(path.c_str(), &st) != 0) {
    return fail(Code::kUnsupported, path + ": " + std::strerror(errno));
  }
  const std::string controller = nvme_controller_of(st.st_dev, sys_dev_block);
  if (controller.empty()) return fail(Code::kUnsupported, "not an NVMe device");
  return read(controller);
}

}  // namespace nexus
