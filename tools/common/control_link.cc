#include "tools/common/control_link.h"

#include <filesystem>
#include <system_error>
#include <utility>

namespace nexus::tools {

namespace files = std::filesystem;

namespace {
std::string link_in(const std::string& cache_dir) {
  return cache_dir + "/control";
}
}  // namespace

Result<ControlLink> ControlLink::make(const std::string& cache_dir, const std::string& socket) {
  const std::string path = link_in(cache_dir);
  const std::string fresh = path + ".new";
  std::error_code error;
  files::remove(fresh, error);
  files::create_symlink(socket, fresh, error);
  if (!error) files::rename(fresh, path, error);
  if (error) return fail(Code::kDisk, path + ": " + error.message());
  return ControlLink(path);
}

ControlLink::~ControlLink() {
  std::error_code ignored;
  if (!path_.empty()) files::remove(path_, ignored);
}

ControlLink::ControlLink(ControlLink&& other) noexcept : path_(std::exchange(other.path_, "")) {}

Result<std::string> control_socket_of(const std::string& cache_dir) {
  std::error_code error;
  const files::path socket = files::read_symlink(link_in(cache_dir), error);
  if (error) return fail(Code::kNotFound, cache_dir + ": no process answers for it");
  return socket.string();
}

}  // namespace nexus::tools
