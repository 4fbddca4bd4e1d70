#include "backend/origin/answer_check.h"

#include <algorithm>
#include <cctype>
#include <charconv>

namespace nexus {

namespace {

// Reads digits at the front of `text`, and then `stop`; what it read is cut off.
std::optional<uint64_t> take_number(std::string_view& text, char stop) {
  uint64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || next == end || *next != stop) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(next - text.data()) + 1);
  return value;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::string number(uint64_t value) {
  return std::to_string(value);
}

}  // namespace

std::string normal_etag(std::string_view header) {
  if (header.starts_with("W/")) header.remove_prefix(2);
  if (header.size() >= 2 && header.front() == '"' && header.back() == '"') {
    header = header.substr(1, header.size() - 2);
  }
  return std::string(header);
}

std::optional<uint64_t> content_length(const HttpResponse& response) {
  const auto text = response.header("content-length");
  if (!text) return std::nullopt;
  uint64_t value = 0;
  const char* end = text->data() + text->size();
  const auto [next, error] = std::from_chars(text->data(), end, value);
  if (error != std::errc{} || next != end) return std::nullopt;
  return value;
}

std::optional<ContentRange> parse_content_range(std::string_view header) {
  if (header.size() < 6 || lower(std::string(header.substr(0, 6))) != "bytes ") return std::nullopt;
  header.remove_prefix(6);
  ContentRange range;
  const auto first = take_number(header, '-');
  const auto last = first ? take_number(header, '/') : std::nullopt;
  if (!last) return std::nullopt;
  const char* end = header.data() + header.size();
  const auto [next, error] = std::from_chars(header.data(), end, range.total);
  if (error != std::errc{} || next != end) return std::nullopt;
  range.first = *first;
  range.last = *last;
  return range;
}

std::optional<uint64_t> size_in_content_range(const HttpResponse& response) {
  const std::string text = response.header("content-range").value_or("");
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return std::nullopt;
  uint64_t size = 0;
  const char* end = text.data() + text.size();
  const auto [next, error] = std::from_chars(text.data() + slash + 1, end, size);
  if (error != std::errc{} || next != end) return std::nullopt;
  return size;
}

Result<uint64_t> check_range_answer(const HttpResponse& response, const ByteRange& asked,
                                    uint64_t file_size, bool html_expected) {
  const auto encoding = response.header("content-encoding");
  if (encoding && lower(*encoding) != "identity") {
    return fail(Code::kOrigin, "a compressed body, which was not asked for");
  }
  const auto length = content_length(response);
  if (response.status == 206) {
    const auto header = response.header("content-range");
    if (!header) return fail(Code::kOrigin, "206 without Content-Range");
    const auto range = parse_content_range(*header);
    if (!range) return fail(Code::kOrigin, "206 with a Content-Range that makes no sense");
    if (range->total != file_size) {
      return fail(Code::kOrigin, "the file has " + number(range->total) +
                                     " bytes there, but the listing says " + number(file_size));
    }
    if (range->first != asked.offset || range->last + 1 != asked.end()) {
      return fail(Code::kOrigin, "answered with the range " + number(range->first) + "-" +
                                     number(range->last) + " instead");
    }
    if (length && *length != asked.length) {
      return fail(Code::kOrigin,
                  "a body of " + number(*length) + " bytes for a range of " + number(asked.length));
    }
    return uint64_t{0};
  }
  if (response.status != 200) {
    return fail(Code::kOrigin, "HTTP " + std::to_string(response.status));
  }
  const auto type = response.header("content-type");
  if (!html_expected && type && lower(*type).starts_with("text/html")) {
    return fail(Code::kOrigin, "a web page (text/html) instead of the file");
  }
  if (!length) return fail(Code::kOrigin, "200 without a Content-Length to a range request");
  if (*length != file_size) {
    return fail(Code::kOrigin, "200 with " + number(*length) +
                                   " bytes to a range request, but the listing says " +
                                   number(file_size));
  }
  if (asked.offset > kSkipBytesMax) {
    return fail(Code::kOrigin, "the server does not do range requests");
  }
  return asked.offset;
}

Error hub_error(const HttpResponse& response, bool with_token, const std::string& model_page) {
  const std::string code = response.header("x-error-code").value_or("");
  const std::string message = lower(response.header("x-error-message").value_or(""));
  const std::string status = "HTTP " + std::to_string(response.status);
  if (code == "GatedRepo") {
    return {Code::kAccess, with_token
                               ? "the model is gated and the token does not open it: ask for "
                                 "access at " +
                                     model_page
                               : "the model is gated: ask for access at " + model_page +
                                     " and give a token (HF_TOKEN or --token-file)"};
  }
  if (code == "RepoNotFound") {
    return {Code::kNotFound, with_token ? "no such model, or the token does not open it"
                                        : "no such model, or it is private and needs a token"};
  }
  if (code == "RevisionNotFound") return {Code::kNotFound, "no such revision"};
  if (code == "EntryNotFound") return {Code::kNotFound, "no such file"};
  if (response.status == 401) {
    if (message.find("credentials") != std::string::npos &&
        message.find("invalid") != std::string::npos) {
      return {Code::kAccess, "the hub does not accept the token"};
    }
    // What the hub says of a repo that does not exist, as it does not tell that from a private one.
    return {Code::kNotFound, "no such model, or it is private and needs a token (HTTP 401)"};
  }
  if (response.status == 403) return {Code::kAccess, "access denied (HTTP 403)"};
  if (response.status == 404 || response.status == 410) {
    return {Code::kNotFound, "not found (" + status + ")"};
  }
  return {Code::kOrigin, status};
}

}  // namespace nexus
