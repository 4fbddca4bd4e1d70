// One request of the HTTP client: what was asked for, and its transfer while it is on the wire. For
// http_client.cc, on the client's thread alone.
#pragma once

#include <curl/curl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "backend/base/error.h"
#include "backend/net/host_traffic.h"
#include "backend/net/http_client.h"

namespace nexus {

// One request from start() to on_done; owned by the client's thread once it has left the inbox.
struct HttpJob {
  uint64_t id = 0;
  int priority = 0;
  HttpRequest request;
  std::string host;   // for messages
  std::string place;  // which limit it counts against
  CURL* easy = nullptr;
  curl_slist* headers = nullptr;
  HttpResponse response;
  size_t header_bytes = 0;
  bool answered = false;       // the final headers are here
  std::optional<Error> error;  // what a callback said; the rest of the body is dropped
  uint64_t drained = 0;
  uint64_t received = 0;             // of the body that was asked for
  std::shared_ptr<HostMeter> meter;  // once it is on the wire
};

// Sets job.easy up for its request: what it asks for and how, and that its answer goes to the job's
// callbacks. The job stays where it is until curl has let go of the handle; `headers` is freed
// after that.
void set_up(HttpJob& job, const HttpOptions& options);

// What is told of a failed transfer. Never curl's error buffer: that may quote what must not be
// shown.
std::string describe_failure(CURL* easy, CURLcode code);
bool no_connection(CURLcode code);

// Of the TCP handshake; 0 where an open connection was used.
double connect_ms(CURL* easy);
// From the request sent to the answer's first byte; 0 where there was none.
double first_byte_ms(CURL* easy);

}  // namespace nexus
