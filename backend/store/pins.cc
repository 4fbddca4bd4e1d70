#include "backend/store/pins.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "backend/store/disk_io.h"

namespace nexus {

namespace {
constexpr size_t kPinsBytesMax = 64 << 20;

std::string pins_path(const std::string& cache_dir) {
  return cache_dir + "/pins";
}
}  // namespace

std::string encode_pins(const Pins& pins) {
  std::string text;
  for (const Pin& pin : pins) text += pin.model + "\t" + pin.file + "\n";
  return text;
}

Pins decode_pins(std::string_view text) {
  Pins pins;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end == std::string_view::npos) break;  // torn, or not ours
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    const size_t tab = line.find('\t');
    if (tab == std::string_view::npos || tab == 0) continue;
    pins.insert({std::string(line.substr(0, tab)), std::string(line.substr(tab + 1))});
  }
  return pins;
}

Result<Pins> load_pins(const std::string& cache_dir) {
  if (::access(pins_path(cache_dir).c_str(), F_OK) != 0 && errno == ENOENT) return Pins();
  auto text = read_file(AT_FDCWD, pins_path(cache_dir), kPinsBytesMax);
  if (!text) return tl::unexpected(text.error());
  return decode_pins(*text);
}

Result<void> save_pins(const std::string& cache_dir, const Pins& pins) {
  for (const Pin& pin : pins) {
    const bool legal = !pin.model.empty() && pin.model.find_first_of("\t\n") == std::string::npos &&
                       pin.file.find('\n') == std::string::npos;
    if (!legal) return fail(Code::kInvalid, "a name with a newline cannot be pinned");
  }
  if (auto saved = replace_file(pins_path(cache_dir), encode_pins(pins)); !saved) return saved;
  return sync_dir(cache_dir);
}

}  // namespace nexus
