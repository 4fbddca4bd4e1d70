// Sending and receiving on a Unix stream socket with a file descriptor beside the bytes
// (SCM_RIGHTS).
#pragma once

#include <sys/types.h>

#include <memory>
#include <span>
#include <string_view>

#include "backend/store/object_file.h"

namespace nexus::tools {

// As send(2) with MSG_NOSIGNAL. `fd`, unless -1, goes with the first byte that is sent.
ssize_t send_with_descriptor(int socket, std::string_view bytes, int fd);
// As recv(2). A descriptor that came along replaces *received; of several the first is kept.
ssize_t receive_with_descriptor(int socket, std::span<char> into,
                                std::shared_ptr<const Descriptor>& received);

}  // namespace nexus::tools
