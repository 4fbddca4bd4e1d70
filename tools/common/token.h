// Which hub token is used. The first of these that there is:
//   the --token-file flag or token_file key (which must then exist), HF_TOKEN, the file that
//   HF_TOKEN_PATH names, $HF_HOME/token, ~/.cache/huggingface/token
#pragma once

#include <string>

#include "backend/base/error.h"
#include "tools/common/environment.h"

namespace nexus::tools {

struct Token {
  std::string value;   // "" means anonymous
  std::string source;  // where it came from, for the log; never the token itself
};

// kInvalid when `token_file` cannot be read or is empty, or when a token holds anything but visible
// ASCII: it becomes part of a header line. Errors never show the token.
Result<Token> find_token(const std::string& token_file, const Environment& environment);

}  // namespace nexus::tools
