// The one door to the network: libcurl's multi interface on one thread. Proxies are taken from the
// environment as curl does: http_proxy, HTTPS_PROXY, ALL_PROXY, NO_PROXY.
//
// Thread safety: every method may be called from any thread. Callbacks run on the client's thread,
// so they must be short and must not wait; they may start and cancel requests.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "backend/base/byte_range.h"
#include "backend/base/error.h"
#include "backend/net/host_traffic.h"

namespace nexus {

// Requests of this priority and beyond are done for nobody yet. They go on the wire only while no
// other request to their host waits or has more than its last bytes to come, and give way when one
// comes (on_preempted).
inline constexpr int kBackgroundPriority = 20;

struct HttpResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case; the last of a name wins
  std::optional<std::string> header(const std::string& lower_case_name) const;
};

struct HttpRequest {
  std::string method = "GET";            // GET or HEAD
  std::string url;                       // http or https, nothing else
  std::vector<std::string> headers;      // "Name: value"
  std::optional<ByteRange> range;        // sent as Range: bytes=a-b
  std::chrono::milliseconds timeout{0};  // for the whole transfer once it is on the wire; 0: none
  // A second request for bytes that another, stalled one was to bring: a few of them go beyond
  // max_connections_per_host, since the stalled ones hold their places.
  bool hedge = false;
  // Whom the bytes are for, any number; 0: nobody in particular. Flows of one priority take turns by bytes.
  uint64_t flow = 0;
  // Transfers with a range to its host at a time; 0: HttpOptions::max_connections_per_host. Where
  // requests to one host differ, the largest holds until none is left.
  int max_connections = 0;
  // Called when it goes on the wire: until then it waits for its turn. May be empty.
  std::function<void()> on_wire = {};
  // Called once, when the status and headers are here and before any body. Returning an error ends
  // the request with that error: the body of a wrong answer is never delivered. (A short one is
  // read and dropped, so that the connection can be used again.)
  std::function<Result<void>(const HttpResponse&)> on_headers;
  // Body bytes in order; an error ends the request with it.
  // Pieces are curl's own buffer, about 16 KiB each.
  std::function<Result<void>(std::span<const std::byte>)> on_body;
  // Called before on_done when the host could not be reached at all: no connection (refused, DNS,
  // TLS, timeout), or a connection but no answer within the stall time.
  std::function<void()> on_unreachable;
  // May be empty: then the request never gives way. Called before on_done(kCancelled) of a
  // background request whose connection went to a more urgent one; the caller asks for the rest.
  std::function<void()> on_preempted;
  // Called exactly once, last. An HTTP status is not an error here: on_headers judges it. kOffline
  // for transport failures (refused, DNS, TLS, stalled), kCancelled after cancel().
  std::function<void(Result<HttpResponse>)> on_done;
};

struct HttpOptions {
  // Transfers with a range (bulk) to one scheme+host+port at a time.
  int max_connections_per_host = 8;
  int max_hedges_per_host = 2;  // beyond those
  // Beyond those too: requests of priority 0 of a flow that has none on the wire, while others hold every place. Else a
  // small read would wait until one of the long requests of another reader ends.
  int max_guests_per_host = 2;
  // Transfers without one (listings, HEAD) have their own places, so that they never wait behind
  // bulk transfers that are long or stalled.
  int max_metadata_per_host = 8;
  std::chrono::seconds connect_timeout{10};
  // A transfer slower than stall_bytes_per_s for stall_time is ended as stalled (kOffline).
  long stall_bytes_per_s = 1024;
  std::chrono::seconds stall_time{30};
  std::string user_agent;
  // PEM file of the certificate authorities to trust instead of the system's, or "".
  std::string ca_file;
  // A netrc(5) file with names and passwords for hosts, or "".
  std::string netrc_file;
};

// Requests that wait for a connection, by what they are for.
struct HttpQueue {
  uint64_t demand = 0;      // priority 0: a reader waits
  uint64_t read_ahead = 0;  // below kBackgroundPriority
  uint64_t prefetch = 0;
};

class HttpClient {
 public:
  explicit HttpClient(HttpOptions options);
  ~HttpClient();  // stop()
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // Requests beyond the limit wait by priority, a lower number goes first; within it flows take turns, and a flow's own
  // go in the order of arrival.
  // When a host turns out unreachable and no transfer to it is alive, those that wait for it fail
  // with it. Never follows a redirect: the caller sees the 3xx and decides. Returns an id for
  // cancel(). After stop() on_done(kCancelled) is called from inside start().
  uint64_t start(HttpRequest request, int priority = 0);
  // on_done(kCancelled) follows soon unless the request is done already. Unknown ids are ignored.
  void cancel(uint64_t id);
  // Moves a request that still waits for a connection; one that runs goes on, and no longer gives
  // way once it is not in the background.
  void set_priority(uint64_t id, int priority);
  // Cancels everything, calls every on_done, joins. Idempotent. Not from a callback.
  void stop();

  int active() const;  // transfers on the wire now
  std::vector<HostTraffic> hosts() const;
  HttpQueue queue() const;
  // A request to scheme://host:port failed and is sent again, by whoever decides that; for hosts().
  void note_retry(const std::string& origin);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nexus
