// Taking URLs apart with libcurl's own parser, so that what is checked is what is connected to.
#pragma once

#include <string>
#include <string_view>

#include "backend/base/error.h"

namespace nexus {

struct Url {
  std::string scheme;  // "http" or "https"
  std::string host;    // lower case; an IPv6 address in brackets
  int port = 0;
  // "https://host:443": what a token or a circuit breaker belongs to.
  std::string origin() const;
  // "host" or "host:port" when the port is not the scheme's own; for messages.
  std::string shown_host() const;
};

// kInvalid for anything that is not an absolute http(s) URL. The message holds no part of it.
Result<Url> parse_url(const std::string& url);

// parse_url(url)->origin(), or "" when it does not parse.
std::string url_origin(const std::string& url);

// parse_url(url)->shown_host(), or "origin" when it does not parse.
std::string url_host(const std::string& url);

// `reference` (a Location or Link target) as seen from `base`; absolute http(s), without a fragment
// and without user information. kOrigin otherwise.
Result<std::string> join_url(const std::string& base, const std::string& reference);

// Whether `reference` names a scheme or a host of its own.
bool is_absolute_reference(std::string_view reference);

// Percent-encodes everything but unreserved characters; '/' stays when keep_slash.
std::string percent_encode(std::string_view text, bool keep_slash);

}  // namespace nexus
