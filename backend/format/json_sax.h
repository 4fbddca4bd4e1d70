// A base for readers that walk JSON as a stream. nlohmann::json calls one method a token; a reader
// overrides what its format allows and every other token ends the walk. No exception leaves
// walk_json.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "backend/base/error.h"

namespace nexus {

class JsonSax : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return reject("null"); }
  bool boolean(bool) override { return reject("a boolean"); }
  bool number_integer(number_integer_t) override { return reject("a negative number"); }
  bool number_unsigned(number_unsigned_t) override { return reject("a number"); }
  bool number_float(number_float_t, const string_t&) override { return reject("a fraction"); }
  bool string(string_t&) override { return reject("a string"); }
  bool binary(binary_t&) override { return reject("binary data"); }
  bool start_object(std::size_t) override { return reject("an object"); }
  bool key(string_t&) override { return reject("a key"); }
  bool end_object() override { return reject("the end of an object"); }
  bool start_array(std::size_t) override { return reject("an array"); }
  bool end_array() override { return reject("the end of an array"); }
  // The library's own message quotes the last token, which may be the whole input: not passed on.
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return stop("not JSON at byte " + std::to_string(position));
  }

  // Why the walk ended early.
  const std::string& error() const { return error_; }

 protected:
  bool stop(std::string why) {
    error_ = std::move(why);
    return false;
  }
  // Where the reader is, for the message: "tensor \"x\"".
  virtual std::string where() const = 0;

 private:
  bool reject(const char* token) { return stop(where() + ": unexpected " + token); }

  std::string error_;
};

// Walks `json`; kCorrupt with the reader's reason where it stopped.
inline Result<void> walk_json(std::string_view json, JsonSax& reader) {
  // To nlohmann's lexer a NUL is the end of the input: what follows would go unread.
  if (const size_t nul = json.find('\0'); nul != std::string_view::npos) {
    return fail(Code::kCorrupt, "not JSON at byte " + std::to_string(nul + 1));
  }
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader)) {
    return fail(Code::kCorrupt, reader.error());
  }
  return {};
}

}  // namespace nexus
