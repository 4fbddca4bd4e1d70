// Whether an answer is what was asked for. Pure functions of one response.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/net/http_client.h"

namespace nexus {

// W/ and quotes stripped.
std::string normal_etag(std::string_view header);

std::optional<uint64_t> content_length(const HttpResponse& response);

struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;
  uint64_t total = 0;
};
// "bytes a-b/total"; nullopt for anything else, a total of "*" included.
// Of the file, as a 206 or a 416 ("bytes */size") tells it.
std::optional<uint64_t> size_in_content_range(const HttpResponse& response);
std::optional<ContentRange> parse_content_range(std::string_view header);

// How many bytes of the body come before the wanted ones: 0 for a 206 with the exact range and
// total; `asked.offset` for a 200 that is the whole file, from a server that does not do ranges.
// kOrigin for everything else, with both numbers where numbers disagree.
Result<uint64_t> check_range_answer(const HttpResponse& response, const ByteRange& asked,
                                    uint64_t file_size, bool html_expected);

// A 200 to a range is used only when the unwanted bytes before the wanted ones are at most this
// many.
inline constexpr uint64_t kSkipBytesMax = 64ull << 20;

// What an HTTP error status of a hub means, by X-Error-Code and X-Error-Message.
Error hub_error(const HttpResponse& response, bool with_token, const std::string& model_page);

}  // namespace nexus
