#include "backend/store/sqlite.h"

namespace nexus {

namespace {

tl::unexpected<Error> sqlite_error(sqlite3* database, int result, const char* doing) {
  Code code = Code::kDisk;
  switch (result & 0xff) {
    case SQLITE_FULL:
      code = Code::kNoSpace;
      break;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_ERROR:  // the schema is not ours: no such table or column
    case SQLITE_MISMATCH:
      code = Code::kCorrupt;
      break;
    default:
      break;
  }
  return fail(code, std::string("catalog: ") + doing + ": " +
                        (database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(result)));
}

}  // namespace

void Statement::bind(int index, std::string_view text) {
  const int result = sqlite3_bind_text64(handle_.get(), index, text.data() ? text.data() : "",
                                         text.size(), SQLITE_STATIC, SQLITE_UTF8);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
}

void Statement::bind_blob(int index, std::string_view bytes) {
  const int result = sqlite3_bind_blob64(handle_.get(), index, bytes.data() ? bytes.data() : "",
                                         bytes.size(), SQLITE_STATIC);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
}

void Statement::bind(int index, int64_t value) {
  const int result = sqlite3_bind_int64(handle_.get(), index, value);
  if (bind_result_ == SQLITE_OK) bind_result_ = result;
}

Result<bool> Statement::step() {
  if (bind_result_ != SQLITE_OK) return sqlite_error(database_, bind_result_, "bind");
  const int result = sqlite3_step(handle_.get());
  if (result == SQLITE_ROW) return true;
  if (result == SQLITE_DONE) return false;
  return sqlite_error(database_, result, sqlite3_sql(handle_.get()));
}

Result<void> Statement::run() {
  auto stepped = step();
  sqlite3_reset(handle_.get());
  sqlite3_clear_bindings(handle_.get());
  bind_result_ = SQLITE_OK;
  if (!stepped) return tl::unexpected(stepped.error());
  return {};
}

std::string Statement::text(int column) const {
  // The bytes before their count: the order that SQLite asks for.
  const void* bytes = sqlite3_column_blob(handle_.get(), column);
  const int size = sqlite3_column_bytes(handle_.get(), column);
  if (bytes == nullptr) return {};
  return {static_cast<const char*>(bytes), static_cast<size_t>(size)};
}

Result<Database> Database::open(const std::string& path, int flags) {
  sqlite3* handle = nullptr;
  const int result = sqlite3_open_v2(path.c_str(), &handle, flags, nullptr);
  Database database(handle);  // SQLite gives a handle also when it fails
  if (result != SQLITE_OK) return sqlite_error(handle, result, "open");
  sqlite3_extended_result_codes(handle, 1);
  sqlite3_busy_timeout(handle, 2000);
  return database;
}

Result<void> Database::exec(const char* sql) {
  const int result = sqlite3_exec(handle_.get(), sql, nullptr, nullptr, nullptr);
  if (result != SQLITE_OK) return sqlite_error(handle_.get(), result, sql);
  return {};
}

Result<Statement> Database::prepare(const char* sql) {
  sqlite3_stmt* statement = nullptr;
  const int result = sqlite3_prepare_v2(handle_.get(), sql, -1, &statement, nullptr);
  if (result != SQLITE_OK) return sqlite_error(handle_.get(), result, sql);
  return Statement(handle_.get(), statement);
}

bool Database::damaged() const {
  const int result = sqlite3_errcode(handle_.get()) & 0xff;
  return result == SQLITE_CORRUPT || result == SQLITE_NOTADB;
}

Result<std::string> Database::query_text(const char* sql) {
  auto statement = prepare(sql);
  if (!statement) return tl::unexpected(statement.error());
  auto row = statement->step();
  if (!row) return tl::unexpected(row.error());
  return *row ? statement->text(0) : std::string();
}

}  // namespace nexus
