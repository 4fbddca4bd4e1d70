// The process's environment variables, as a value that tests replace.
#pragma once

#include <functional>
#include <optional>
#include <string>

namespace nexus::tools {

// A variable's value; nothing when it is unset or empty.
using Environment = std::function<std::optional<std::string>(const std::string& name)>;

Environment process_environment();

// $HOME, else the password database's; "" when neither knows.
std::string home_directory(const Environment& environment);

}  // namespace nexus::tools
