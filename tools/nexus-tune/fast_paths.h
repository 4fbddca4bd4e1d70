// Which fast paths this machine has, and for each that is off the reason and the remedy.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "tools/nexus-tune/sweep.h"
#include "tools/nexus-tune/zone.h"

namespace nexus::tune {

struct FastPath {
  std::string name;
  bool on = false;
  std::string reason, remedy;  // when it is off
};

// What is asked of the system; tests answer themselves.
struct SystemFacts {
  bool io_uring = false;
  std::string io_uring_reason;
  bool registered = false;
  std::string registered_reason;
  bool sqpoll = false;
  std::string sqpoll_reason;
  std::string kernel;      // release
  bool sys_admin = false;  // CAP_SYS_ADMIN
  std::string libfuse;     // version that this was built with
  bool passthrough_built = false;
  std::string cuda_reason;    // why there is no GPU; "" when there is one
  std::string cufile_reason;  // why libcufile cannot be loaded; "" when it can
  bool nvidia_fs = false;     // its kernel module is loaded
};
SystemFacts system_facts();

std::vector<FastPath> fast_paths(const SystemFacts& facts, const Zone* zone);
// "off: io_uring: reason; remedy", a line each; "" when all are on.
std::string fast_paths_text(const std::vector<FastPath>& paths);
nlohmann::json fast_paths_json(const std::vector<FastPath>& paths);

Features features_of(const SystemFacts& facts, const Zone& zone);

}  // namespace nexus::tune
