#include "tools/common/listen_address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>

#include "tools/common/size.h"

namespace nexus::tools {
namespace {

constexpr const char* kLoopback = "127.0.0.1";

tl::unexpected<Error> bad(const std::string& text, const std::string& why) {
  return fail(Code::kInvalid, "'" + printable(text) + "': " + why);
}

bool is_ipv6(const std::string& host) {
  return host.find(':') != std::string::npos;
}

}  // namespace

std::string ListenAddress::text() const {
  return (is_ipv6(host) ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

Result<ListenAddress> parse_listen_address(const std::string& text) {
  ListenAddress address{kLoopback, 0};
  std::string port = text;
  if (const size_t colon = text.rfind(':'); colon != std::string::npos) {
    address.host = text.substr(0, colon);
    port = text.substr(colon + 1);
    const bool bracketed =
        address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']';
    if (bracketed) address.host = address.host.substr(1, address.host.size() - 2);
    unsigned char bytes[sizeof(in6_addr)];
    const bool numeric = inet_pton(bracketed ? AF_INET6 : AF_INET, address.host.c_str(), bytes) == 1;
    if (!numeric) return bad(text, "must be PORT, IPV4:PORT or [IPV6]:PORT, with a numeric address");
  }
  const auto [end, error] =
      std::from_chars(port.data(), port.data() + port.size(), address.port);
  if (error != std::errc{} || end != port.data() + port.size()) {
    return bad(text, "the port must be 0 to 65535");
  }
  return address;
}

Result<void> check_listen_address(const ListenAddress& address) {
  sockaddr_storage storage{};
  socklen_t length = 0;
  if (is_ipv6(address.host)) {
    auto* to = reinterpret_cast<sockaddr_in6*>(&storage);
    to->sin6_family = AF_INET6;
    to->sin6_port = htons(address.port);
    inet_pton(AF_INET6, address.host.c_str(), &to->sin6_addr);
    length = sizeof(*to);
  } else {
    auto* to = reinterpret_cast<sockaddr_in*>(&storage);
    to->sin_family = AF_INET;
    to->sin_port = htons(address.port);
    inet_pton(AF_INET, address.host.c_str(), &to->sin_addr);
    length = sizeof(*to);
  }
  const int fd = ::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int reuse = 1;  // as servers do: connections of an earlier one may linger
  const bool ok = fd >= 0 &&
                  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof(reuse)) == 0 &&
                  ::bind(fd, reinterpret_cast<const sockaddr*>(&storage), length) == 0 &&
                  ::listen(fd, 1) == 0;
  const int error = errno;
  if (fd >= 0) ::close(fd);
  if (!ok) return fail(Code::kInvalid, address.text() + ": cannot listen: " + std::strerror(error));
  return {};
}

}  // namespace nexus::tools
