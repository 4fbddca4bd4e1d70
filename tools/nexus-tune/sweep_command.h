// The default command: measure, print, store.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "tools/common/config.h"

namespace nexus::tune {

struct SweepArguments {
  std::string zone;  // empty: those of the configured cache_dir
  bool full = false, read_only = false, json = false, store = true;
  std::optional<std::string> size;
  int runs = 3;
  std::string csv, html;  // files to write; empty: none
  std::string scratch;    // see DiskBench::make()
};

// The exit status: 0; 1 with a line on standard error; 130 when `stop` ended it, after printing and
// storing what there was.
int sweep_command(const tools::ConfigFlags& flags, const SweepArguments& arguments,
                  const std::atomic<bool>& stop);

}  // namespace nexus::tune
