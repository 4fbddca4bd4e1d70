#include "tools/common/environment.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>

namespace nexus::tools {

Environment process_environment() {
  return [](const std::string& name) -> std::optional<std::string> {
    const char* value = std::getenv(name.c_str());
    if (!value || !*value) return std::nullopt;
    return std::string(value);
  };
}

std::string home_directory(const Environment& environment) {
  if (auto home = environment("HOME")) return *home;
  const passwd* entry = getpwuid(getuid());
  return entry && entry->pw_dir ? entry->pw_dir : "";
}

}  // namespace nexus::tools
