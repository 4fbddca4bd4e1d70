// The plain SQLite C API with owners for its handles and errors as values.
//
// Thread safety: none; a Database and its Statements are used under one lock.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "backend/base/error.h"

namespace nexus {

class Statement {
 public:
  // Bound text and blobs are not copied: they must live until the step.
  void bind(int index, std::string_view text);
  void bind_blob(int index, std::string_view bytes);
  void bind(int index, int64_t value);
  // True: a row is there. False: done.
  Result<bool> step();
  // One step that gives no row, then ready to be bound again.
  Result<void> run();
  std::string text(int column) const;  // also blobs
  int64_t integer(int column) const { return sqlite3_column_int64(handle_.get(), column); }

 private:
  friend class Database;
  struct Finalize {
    void operator()(sqlite3_stmt* handle) const { sqlite3_finalize(handle); }
  };
  Statement(sqlite3* database, sqlite3_stmt* handle) : database_(database), handle_(handle) {}
  sqlite3* database_;
  std::unique_ptr<sqlite3_stmt, Finalize> handle_;
  int bind_result_ = SQLITE_OK;  // the first bind that failed; step() reports it
};

class Database {
 public:
  static Result<Database> open(const std::string& path, int flags);
  Result<void> exec(const char* sql);
  Result<Statement> prepare(const char* sql);
  // The last call failed because of what is in the file.
  bool damaged() const;
  // The first column of the first row.
  Result<std::string> query_text(const char* sql);

 private:
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  explicit Database(sqlite3* handle) : handle_(handle) {}
  std::unique_ptr<sqlite3, Close> handle_;
};

}  // namespace nexus
