// How a program that knows a cache_dir finds the process that owns it: cache_dir/control is a
// symbolic link to that process's control socket. A link that a killed process left leads to a
// socket nobody answers at.
#pragma once

#include <string>

#include "backend/base/error.h"

namespace nexus::tools {

// Lives as long as the socket answers; held by the owner of cache_dir alone.
class ControlLink {
 public:
  // Replaces what an earlier owner left.
  static Result<ControlLink> make(const std::string& cache_dir, const std::string& socket);
  ~ControlLink();
  ControlLink(ControlLink&& other) noexcept;
  ControlLink& operator=(ControlLink&&) = delete;

 private:
  explicit ControlLink(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Where the link leads; kNotFound without one.
Result<std::string> control_socket_of(const std::string& cache_dir);

}  // namespace nexus::tools
