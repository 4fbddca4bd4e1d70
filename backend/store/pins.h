// What the user pinned: `cache_dir/pins`, apart from the catalog, so that losing that loses no pin.
//
// One line a pin: the model ("org/name"), a tab, and the file's path in the model or nothing for
// the whole model. A pin names no commit: it goes on after a refresh. Paths that hold a newline
// cannot be pinned.
#pragma once

#include <compare>
#include <set>
#include <string>
#include <string_view>

#include "backend/base/error.h"

namespace nexus {

struct Pin {
  std::string model;  // "org/name"
  std::string file;   // "layer_3.pt", or "" for every file of the model
  auto operator<=>(const Pin&) const = default;
};
using Pins = std::set<Pin>;

std::string encode_pins(const Pins& pins);
// Lines that are no pin are left out.
Pins decode_pins(std::string_view text);

// No file is no pins; one that cannot be read is reported.
Result<Pins> load_pins(const std::string& cache_dir);
// Durable on return. kInvalid when a pin cannot be written down; kNoSpace, kDisk.
Result<void> save_pins(const std::string& cache_dir, const Pins& pins);

}  // namespace nexus
