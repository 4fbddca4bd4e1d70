// Where something of the daemon listens for TCP connections.
#pragma once

#include <cstdint>
#include <string>

#include "backend/base/error.h"

namespace nexus::tools {

struct ListenAddress {
  std::string host;   // a numeric address, IPv6 without brackets
  uint16_t port = 0;  // 0: any that is free
  std::string text() const;  // "127.0.0.1:9464", "[::1]:9464"
};

// "PORT", which is of the loopback interface, "ADDRESS:PORT" or "[ADDRESS]:PORT". Names are refused: what they stand
// for may change, and with it who can connect.
Result<ListenAddress> parse_listen_address(const std::string& text);

// Whether one can listen there now; kInvalid with the system's reason if not.
Result<void> check_listen_address(const ListenAddress& address);

}  // namespace nexus::tools
