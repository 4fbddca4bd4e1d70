#include "backend/net/url.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>

namespace nexus {

namespace {

struct CurlUrlFree {
  void operator()(CURLU* handle) const { curl_url_cleanup(handle); }
};
using CurlUrl = std::unique_ptr<CURLU, CurlUrlFree>;

std::string get_part(CURLU* handle, CURLUPart part, unsigned flags) {
  char* text = nullptr;
  if (curl_url_get(handle, part, &text, flags) != CURLUE_OK || text == nullptr) return "";
  std::string value(text);
  curl_free(text);
  return value;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool http_scheme(const std::string& scheme) {
  return scheme == "http" || scheme == "https";
}

}  // namespace

std::string Url::origin() const {
  return scheme + "://" + host + ":" + std::to_string(port);
}

std::string Url::shown_host() const {
  const int usual = scheme == "https" ? 443 : 80;
  return port == usual ? host : host + ":" + std::to_string(port);
}

Result<Url> parse_url(const std::string& url) {
  CurlUrl handle(curl_url());
  // CURLU_NON_SUPPORT_SCHEME: the scheme is judged here, not by what libcurl was built with.
  if (!handle || curl_url_set(handle.get(), CURLUPART_URL, url.c_str(),
                              CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE) != CURLUE_OK) {
    return fail(Code::kInvalid, "not a URL");
  }
  Url parsed;
  parsed.scheme = lower(get_part(handle.get(), CURLUPART_SCHEME, 0));
  if (!http_scheme(parsed.scheme)) return fail(Code::kInvalid, "not an http or https URL");
  parsed.host = lower(get_part(handle.get(), CURLUPART_HOST, 0));
  parsed.port = std::atoi(get_part(handle.get(), CURLUPART_PORT, CURLU_DEFAULT_PORT).c_str());
  if (parsed.host.empty() || parsed.port <= 0) return fail(Code::kInvalid, "a URL without a host");
  return parsed;
}

std::string url_origin(const std::string& url) {
  auto parsed = parse_url(url);
  return parsed ? parsed->origin() : "";
}

std::string url_host(const std::string& url) {
  auto parsed = parse_url(url);
  return parsed ? parsed->shown_host() : "origin";
}

Result<std::string> join_url(const std::string& base, const std::string& reference) {
  CurlUrl handle(curl_url());
  const unsigned flags = CURLU_NON_SUPPORT_SCHEME | CURLU_URLENCODE;
  if (!handle || curl_url_set(handle.get(), CURLUPART_URL, base.c_str(), flags) != CURLUE_OK) {
    return fail(Code::kOrigin, "not a URL");
  }
  if (reference.empty() ||
      curl_url_set(handle.get(), CURLUPART_URL, reference.c_str(), flags) != CURLUE_OK) {
    return fail(Code::kOrigin, "a redirect to something that is not a URL");
  }
  if (!http_scheme(lower(get_part(handle.get(), CURLUPART_SCHEME, 0)))) {
    return fail(Code::kOrigin, "a redirect to something that is not http or https");
  }
  curl_url_set(handle.get(), CURLUPART_FRAGMENT, nullptr, 0);
  // A relative reference stays with the user information of a base that has it; an absolute one
  // names credentials that are not ours to send.
  if (is_absolute_reference(reference)) {
    curl_url_set(handle.get(), CURLUPART_USER, nullptr, 0);
    curl_url_set(handle.get(), CURLUPART_PASSWORD, nullptr, 0);
  }
  std::string joined = get_part(handle.get(), CURLUPART_URL, 0);
  if (!parse_url(joined)) return fail(Code::kOrigin, "a redirect to something that is not a URL");
  return joined;
}

bool is_absolute_reference(std::string_view reference) {
  if (reference.starts_with("//")) return true;
  const size_t stop = reference.find_first_of(":/?#");
  return stop != std::string_view::npos && stop > 0 && reference[stop] == ':';
}

std::string percent_encode(std::string_view text, bool keep_slash) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
                       (byte >= 'a' && byte <= 'z') || byte == '-' || byte == '.' || byte == '_' ||
                       byte == '~' || (byte == '/' && keep_slash);
    if (plain) {
      encoded += c;
    } else {
      encoded += '%';
      encoded += kHex[byte >> 4];
      encoded += kHex[byte & 15];
    }
  }
  return encoded;
}

}  // namespace nexus
