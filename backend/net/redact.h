// What may be shown of a URL. Signed queries and credentials stay out of logs, xattrs, stats,
// errors.
#pragma once

#include <string>
#include <string_view>

namespace nexus {

// Scheme, host, port and path; user info is dropped and a query becomes "?...".
std::string redact_url(std::string_view url);

}  // namespace nexus
