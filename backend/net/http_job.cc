#include "backend/net/http_job.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <chrono>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>

namespace nexus {

namespace {

constexpr long kBufferBytes = 512 * 1024;
constexpr size_t kHeaderBytesMax = 256 * 1024;  // of one answer; then it is no answer
constexpr uint64_t kDrainBytesMax =
    64 * 1024;  // of an unwanted body; beyond it the connection is closed

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && std::strchr(" \t\r\n", text.back()) != nullptr) text.remove_suffix(1);
  return text;
}

size_t header_line(char* data, size_t size, size_t count, void* user) {
  HttpJob& job = *static_cast<HttpJob*>(user);
  const size_t bytes = size * count;
  if (job.answered) return bytes;  // trailers
  const std::string_view line(data, bytes);
  job.header_bytes += bytes;
  if (job.header_bytes > kHeaderBytesMax) {
    job.error = Error{Code::kOrigin, job.host + ": headers beyond 256 KiB"};
    return 0;
  }
  if (line.starts_with("HTTP/")) {
    job.response = HttpResponse{};
    const size_t space = line.find(' ');
    if (space != std::string_view::npos) {
      std::from_chars(line.data() + space + 1, line.data() + line.size(), job.response.status);
    }
    return bytes;
  }
  const std::string_view text = trim(line);
  if (!text.empty()) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos) return bytes;
    std::string name(trim(text.substr(0, colon)));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    job.response.headers[std::move(name)] = trim(text.substr(colon + 1));
    return bytes;
  }
  if (job.response.status < 200) return bytes;  // 100 Continue and the like
  job.answered = true;
  if (!job.request.on_headers) return bytes;
  auto verdict = job.request.on_headers(job.response);
  if (verdict) return bytes;
  job.error = std::move(verdict.error());
  if (job.request.method == "HEAD") return bytes;
  uint64_t length = kDrainBytesMax;
  if (auto text_length = job.response.header("content-length")) {
    std::from_chars(text_length->data(), text_length->data() + text_length->size(), length);
  }
  return length <= kDrainBytesMax ? bytes : 0;
}

size_t body_piece(char* data, size_t size, size_t count, void* user) {
  HttpJob& job = *static_cast<HttpJob*>(user);
  const size_t bytes = size * count;
  if (job.error) {
    job.drained += bytes;
    return job.drained <= kDrainBytesMax ? bytes : 0;
  }
  job.meter->body(bytes, std::chrono::steady_clock::now());
  job.received += bytes;
  if (!job.request.on_body) return bytes;
  auto verdict = job.request.on_body({reinterpret_cast<const std::byte*>(data), bytes});
  if (verdict) return bytes;
  job.error = std::move(verdict.error());
  return 0;
}

}  // namespace

std::optional<std::string> HttpResponse::header(const std::string& lower_case_name) const {
  auto it = headers.find(lower_case_name);
  if (it == headers.end()) return std::nullopt;
  return it->second;
}

void set_up(HttpJob& job, const HttpOptions& options) {
  CURL* easy = job.easy;
  const HttpRequest& request = job.request;
  curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(easy, CURLOPT_PRIVATE, &job);
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, kBufferBytes);
  curl_easy_setopt(easy, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(easy, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT,
                   static_cast<long>(options.connect_timeout.count()));
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, options.stall_bytes_per_s);
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME, static_cast<long>(options.stall_time.count()));
  curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(request.timeout.count()));
  // Bulk goes over HTTP/1.1, a connection each: streams of one HTTP/2 connection would share one
  // congestion window. Small requests share an HTTP/2 connection where TLS offers it.
  curl_easy_setopt(
      easy, CURLOPT_HTTP_VERSION,
      static_cast<long>(request.range ? CURL_HTTP_VERSION_1_1 : CURL_HTTP_VERSION_2TLS));
  if (!options.user_agent.empty()) {
    curl_easy_setopt(easy, CURLOPT_USERAGENT, options.user_agent.c_str());
  }
  if (!options.ca_file.empty()) curl_easy_setopt(easy, CURLOPT_CAINFO, options.ca_file.c_str());
  if (!options.netrc_file.empty()) {
    curl_easy_setopt(easy, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_OPTIONAL));
    curl_easy_setopt(easy, CURLOPT_NETRC_FILE, options.netrc_file.c_str());
  }
  if (request.method == "HEAD") curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
  // Stored bytes, never a compressed form of them: offsets would mean something else.
  job.headers = curl_slist_append(nullptr, "Accept-Encoding: identity");
  for (const auto& line : request.headers) {
    job.headers = curl_slist_append(job.headers, line.c_str());
  }
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, job.headers);
  if (request.range && request.range->length > 0) {
    const std::string range =
        std::to_string(request.range->offset) + "-" + std::to_string(request.range->end() - 1);
    curl_easy_setopt(easy, CURLOPT_RANGE, range.c_str());
  }
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, header_line);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, &job);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, body_piece);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, &job);
}

std::string describe_failure(CURL* easy, CURLcode code) {
  long os_errno = 0;
  curl_easy_getinfo(easy, CURLINFO_OS_ERRNO, &os_errno);
  std::string text = curl_easy_strerror(code);
  if (code == CURLE_COULDNT_CONNECT && os_errno != 0) {
    text = std::strerror(static_cast<int>(os_errno));
  }
  if (code == CURLE_PARTIAL_FILE) text = "connection closed before the end of the body";
  if (code == CURLE_GOT_NOTHING) text = "connection closed without an answer";
  if (!text.empty()) text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

double connect_ms(CURL* easy) {
  long connects = 0;
  curl_off_t resolved = 0, connected = 0;
  curl_easy_getinfo(easy, CURLINFO_NUM_CONNECTS, &connects);
  curl_easy_getinfo(easy, CURLINFO_NAMELOOKUP_TIME_T, &resolved);
  curl_easy_getinfo(easy, CURLINFO_CONNECT_TIME_T, &connected);
  if (connects == 0 || connected <= resolved) return 0;
  return static_cast<double>(connected - resolved) / 1000;
}

double first_byte_ms(CURL* easy) {
  curl_off_t sent = 0, answered = 0;
  curl_easy_getinfo(easy, CURLINFO_PRETRANSFER_TIME_T, &sent);
  curl_easy_getinfo(easy, CURLINFO_STARTTRANSFER_TIME_T, &answered);
  return answered > sent ? static_cast<double>(answered - sent) / 1000 : 0;
}

bool no_connection(CURLcode code) {
  return code == CURLE_COULDNT_CONNECT || code == CURLE_COULDNT_RESOLVE_HOST ||
         code == CURLE_COULDNT_RESOLVE_PROXY || code == CURLE_SSL_CONNECT_ERROR ||
         code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_PROXY;
}

}  // namespace nexus
