#include "tools/common/token.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <vector>

namespace nexus::tools {
namespace {

constexpr std::streamsize kTokenBytesMax = 8192;

std::string stripped(const std::string& text) {
  constexpr const char* kWhitespace = " \t\r\n\v\f";
  const size_t first = text.find_first_not_of(kWhitespace);
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(kWhitespace) - first + 1);
}

Result<Token> checked(const std::string& raw, const std::string& source) {
  Token token{stripped(raw), source};
  const bool visible = std::all_of(token.value.begin(), token.value.end(),
                                   [](char c) { return c > 0x20 && c < 0x7f; });
  if (!visible)
    return fail(Code::kInvalid, source + ": the token holds control or other odd characters");
  if (token.value.size() > static_cast<size_t>(kTokenBytesMax)) {
    return fail(Code::kInvalid, source + ": the token is longer than 8 KiB");
  }
  return token;
}

struct FileText {
  int error = 0;  // errno
  std::string text;
};

FileText read_token_file(const std::string& path) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) return {errno ? errno : EIO, ""};
  std::string text(static_cast<size_t>(kTokenBytesMax) + 1,
                   '\0');  // one more: checked() sees it is too long
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return {errno ? errno : EIO, ""};
  text.resize(static_cast<size_t>(in.gcount()));
  return {0, text};
}

}  // namespace

Result<Token> find_token(const std::string& token_file, const Environment& environment) {
  if (!token_file.empty()) {
    const FileText file = read_token_file(token_file);
    if (file.error)
      return fail(Code::kInvalid, "token file " + token_file + ": " + std::strerror(file.error));
    auto token = checked(file.text, "token file " + token_file);
    if (token && token->value.empty()) return fail(Code::kInvalid, token->source + ": is empty");
    return token;
  }
  if (auto value = environment("HF_TOKEN")) {
    auto token = checked(*value, "HF_TOKEN");
    if (!token || !token->value.empty()) return token;
  }
  std::vector<std::string> files;
  if (auto path = environment("HF_TOKEN_PATH")) files.push_back(*path);
  if (auto hf_home = environment("HF_HOME")) files.push_back(*hf_home + "/token");
  if (const std::string home = home_directory(environment); !home.empty()) {
    files.push_back(home + "/.cache/huggingface/token");
  }
  for (const std::string& path : files) {
    const FileText file = read_token_file(path);
    if (file.error) continue;
    auto token = checked(file.text, path);
    if (!token || !token->value.empty()) return token;
  }
  return Token{};
}

}  // namespace nexus::tools
