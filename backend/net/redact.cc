#include "backend/net/redact.h"

namespace nexus {

// Works on text, not on a parsed URL: what does not parse must not leak either.
std::string redact_url(std::string_view url) {
  std::string query;
  const size_t cut = url.find_first_of("?#");
  if (cut != std::string_view::npos) {
    if (url[cut] == '?') query = "?...";
    url = url.substr(0, cut);
  }
  const size_t scheme_end = url.find("://");
  const size_t authority = scheme_end == std::string_view::npos ? 0 : scheme_end + 3;
  size_t path = url.find_first_of("/\\", authority);
  if (path == std::string_view::npos) path = url.size();
  // The last '@' before the path: a password may hold one itself.
  const size_t at = url.substr(0, path).rfind('@');
  std::string shown(url.substr(0, authority));
  if (at != std::string_view::npos && at >= authority) {
    shown += url.substr(at + 1);
  } else {
    shown += url.substr(authority);
  }
  return shown + query;
}

}  // namespace nexus
