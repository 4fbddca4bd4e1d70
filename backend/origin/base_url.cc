#include "backend/origin/base_url.h"

#include <curl/curl.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "backend/net/redact.h"
#include "backend/net/url.h"
#include "backend/origin/answer_check.h"
#include "backend/origin/digest.h"
#include "backend/origin/range_reader.h"

namespace nexus {

namespace {

constexpr size_t kListingBytesMax = 8 << 20;
constexpr uint64_t kLayersMax = 65536;  // where probing stops believing the server
constexpr size_t kAtATime = 8;          // HEAD requests

using LoadDone = std::function<void(Result<Snapshot>)>;

std::string layer_name(uint64_t index) {
  return "layer_" + std::to_string(index) + ".pt";
}

bool name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '_' || c == '-';
}

// Where `text` names `name`, and not a longer name that holds it.
bool mentions(std::string_view text, std::string_view name) {
  for (size_t at = text.find(name); at != text.npos; at = text.find(name, at + 1)) {
    const size_t end = at + name.size();
    if (at > 0 && name_character(text[at - 1])) continue;
    if (end < text.size() && name_character(text[end])) continue;
    return true;
  }
  return false;
}

// The N of every layer_N.pt in an index page, whatever its format.
std::vector<uint64_t> listed_layers(std::string_view text) {
  static constexpr std::string_view kPrefix = "layer_";
  std::vector<uint64_t> found;
  for (size_t at = text.find(kPrefix); at != text.npos; at = text.find(kPrefix, at + 1)) {
    uint64_t index = 0;
    const char* digits = text.data() + at + kPrefix.size();
    const auto [end, error] = std::from_chars(digits, text.data() + text.size(), index);
    if (error != std::errc{} || index >= kLayersMax) continue;
    const std::string name = layer_name(index);
    if (text.substr(at, name.size()) != name) continue;  // layer_07.pt, layer_7.bin
    if (at > 0 && name_character(text[at - 1])) continue;
    const size_t after = at + name.size();
    if (after < text.size() && name_character(text[after])) continue;
    found.push_back(index);
  }
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

// One load(): the listing or probing, then sizes and ETags. Its steps come one after the other, but
// for the HEADs of the last one; mutex_ orders those.
class Load : public std::enable_shared_from_this<Load> {
 public:
  Load(std::shared_ptr<NetContext> net, std::string base, LoadDone done)
      : net_(std::move(net)), base_(std::move(base)), done_(std::move(done)) {}

  Snapshot snapshot;

  void begin() {
    auto self = shared_from_this();
    MetadataRequest request;
    request.url = base_ + "/";
    request.body_bytes_max = kListingBytesMax;
    request.tries = net_->policy.metadata_tries;
    request.done = [self](Result<MetadataAnswer> answer) { self->on_listing(std::move(answer)); };
    std::make_shared<MetadataFetch>(net_, std::move(request))->begin();
  }

 private:
  // What a HEAD found; no file: the server has none of that name.
  using Found = std::function<void(Result<std::optional<OriginFile>>)>;

  tl::unexpected<Error> failure(const Error& error) const {
    return fail(error, "list " + redact_url(base_));
  }

  void on_listing(Result<MetadataAnswer> answer) {
    // Not every server lists, and some answer with an error; only silence is final.
    if (!answer && answer.error().code != Code::kOrigin) return end(failure(answer.error()));
    std::vector<uint64_t> layers;
    if (answer && answer->response.status < 300) layers = listed_layers(answer->body);
    if (layers.empty()) {
      probe(0);
      return;
    }
    for (const uint64_t index : layers) names_.push_back(layer_name(index));
    if (layers.back() + 1 != layers.size()) {
      snapshot.complaints.push_back("the listing ends with " + layer_name(layers.back()) +
                                    " but has only " + std::to_string(layers.size()) + " layers");
    }
    for (const char* name : {"non_layer.pt", "config.json"}) {
      if (mentions(answer->body, name)) names_.push_back(name);
    }
    look_at_all();
  }

  // Doubling until a layer is missing, then bisecting: present_ is there, absent_ is not.
  void probe(uint64_t index) {
    auto self = shared_from_this();
    look(layer_name(index), [self, index](Result<std::optional<OriginFile>> found) {
      if (!found) return self->end(self->failure(found.error()));
      self->probed(index, found->has_value());
    });
  }

  void probed(uint64_t index, bool there) {
    if (index == 0 && !there) {
      return end(failure({Code::kNotFound, "no layer_0.pt"}));
    }
    if (there) {
      present_ = index;
    } else {
      absent_ = index;
    }
    if (absent_ == 0 && present_ >= kLayersMax) {
      return end(failure({Code::kOrigin, "there is no end to its layers"}));
    }
    if (absent_ == 0) return probe(present_ == 0 ? 1 : present_ * 2);
    if (absent_ - present_ > 1) return probe(present_ + (absent_ - present_) / 2);
    for (uint64_t i = 0; i <= present_; ++i) names_.push_back(layer_name(i));
    names_.push_back("non_layer.pt");
    names_.push_back("config.json");
    look_at_all();
  }

  void look_at_all() {
    for (size_t i = 0; i < kAtATime; ++i) look_at_next();
  }

  void look_at_next() {
    std::string name;
    bool last = false;
    {
      std::lock_guard lock(mutex_);
      if (next_ < names_.size()) {
        name = names_[next_++];
        ++looking_;
      } else {
        last = looking_ == 0 && !over_;
        over_ = over_ || last;
      }
    }
    if (last) return complete();
    if (name.empty()) return;
    auto self = shared_from_this();
    look(name, [self, name](Result<std::optional<OriginFile>> found) {
      bool failed = false;
      {
        std::lock_guard lock(self->mutex_);
        --self->looking_;
        if (!found) {
          failed = !self->over_;
          self->over_ = true;
          self->next_ = self->names_.size();
        } else if (*found) {
          self->snapshot.files.push_back(std::move(**found));
        } else if (name.starts_with("layer_")) {
          self->snapshot.complaints.push_back("'" + name + "': listed, but not there");
        }
      }
      if (failed) return self->end(self->failure(found.error()));
      self->look_at_next();
    });
  }

  void look(const std::string& name, Found found) {
    std::optional<OriginFile> known;
    {
      std::lock_guard lock(mutex_);
      if (auto seen = seen_.find(name); seen != seen_.end()) known = seen->second;
    }
    if (known) return found(std::move(known));
    head(name, "HEAD", std::move(found));
  }

  // Some servers refuse HEAD, or give it no length: a range of one byte tells as much.
  void head(const std::string& name, const std::string& method, Found found) {
    auto self = shared_from_this();
    MetadataRequest request;
    request.method = method;
    request.url = base_ + "/" + name;
    request.headers_only = true;
    if (method == "GET") request.range = ByteRange{0, 1};
    request.tries = net_->policy.metadata_tries;
    request.done = [self, name, method, found = std::move(found)](Result<MetadataAnswer> answer) {
      if (!answer) return found(tl::unexpected(answer.error()));
      const HttpResponse& response = answer->response;
      const std::string host = url_host(answer->url);
      const int status = response.status;
      auto length = content_length(response);
      if (status == 206) {
        const auto range = parse_content_range(response.header("content-range").value_or(""));
        length = range ? std::optional(range->total) : std::nullopt;
      }
      if (method == "HEAD" && (status == 405 || status == 501 || (status == 200 && !length))) {
        return self->head(name, "GET", found);
      }
      const bool first = name == layer_name(0);
      if (first && (status == 401 || status == 403)) {
        return found(fail(Code::kAccess, host + ": HTTP " + std::to_string(status)));
      }
      // A store without permission to list says 403 for what is not there; some servers answer
      // every name with a page.
      const bool page = response.header("content-type").value_or("").starts_with("text/html");
      if (status == 401 || status == 403 || status == 404 || status == 410 || page) {
        return found(std::optional<OriginFile>());
      }
      if ((status != 200 && status != 206) || !length) {
        return found(fail(Code::kOrigin, host + ": " + name + ": HTTP " + std::to_string(status) +
                                             (length ? "" : " without a length")));
      }
      OriginFile file;
      file.path = name;
      file.size = *length;
      file.etag = normal_etag(response.header("etag").value_or(""));
      const time_t changed =
          curl_getdate(response.header("last-modified").value_or("").c_str(), nullptr);
      {
        std::lock_guard lock(self->mutex_);
        self->seen_[name] = file;
        self->snapshot.mtime_s = std::max<int64_t>(self->snapshot.mtime_s, changed);
      }
      found(std::optional<OriginFile>(std::move(file)));
    };
    std::make_shared<MetadataFetch>(net_, std::move(request))->begin();
  }

  void complete() {
    sanitize_files(snapshot);
    snapshot.commit = listing_digest(snapshot.files);
    snapshot.pre_split = true;
    end(std::move(snapshot));
  }

  void end(Result<Snapshot> result) {
    auto done = std::exchange(done_, nullptr);
    if (done) done(std::move(result));
  }

  const std::shared_ptr<NetContext> net_;
  const std::string base_;
  LoadDone done_;
  uint64_t present_ = 0;
  uint64_t absent_ = 0;  // 0: none found yet

  std::mutex mutex_;  // guards all below, and snapshot
  std::map<std::string, OriginFile> seen_;
  std::vector<std::string> names_;
  size_t next_ = 0;
  size_t looking_ = 0;
  bool over_ = false;
};

class BaseUrlOrigin final : public Origin {
 public:
  BaseUrlOrigin(std::string base, bool offline, std::shared_ptr<NetContext> net)
      : base_(std::move(base)), offline_(offline), net_(std::move(net)) {}

  std::string describe() const override { return redact_url(base_); }

  void load(const std::string& repo, const std::string& revision, LoadDone done) override {
    const bool out = net_->reach.out(url_origin(base_));
    if (offline_ || out) {
      const std::string what = "list " + describe() + ": " +
                               (offline_ ? "offline mode" : "was out of reach a moment ago");
      net_->timers.post([done = std::move(done), what] { done(fail(Code::kOffline, what)); });
      return;
    }
    auto load = std::make_shared<Load>(net_, base_, std::move(done));
    load->snapshot.repo = repo;
    load->snapshot.revision = revision;
    load->begin();
  }

  std::shared_ptr<Transfer> read(const Snapshot&, ReadRequest request) override {
    if (offline_) {
      Error error{Code::kOffline,
                  "fetch " + describe() + "/" + request.file.path + ": offline mode"};
      return failed_read(std::move(request), std::move(error), net_->timers);
    }
    auto source = source_of(request.file);
    return read_hedged(std::move(source), std::move(request));
  }

  bool reachable() const override { return !offline_ && !net_->reach.out(url_origin(base_)); }

  OriginActivity activity() const override { return {net_->retries, net_->hedges}; }

 private:
  std::shared_ptr<FileSource> source_of(const OriginFile& file) {
    FileSourceOptions options;
    options.url = base_ + "/" + percent_encode(file.path, true);
    options.label = "fetch " + describe() + "/" + file.path;
    options.size = file.size;
    options.may_change = true;
    options.check_etag = [etag = file.etag](const std::string& now) -> Result<void> {
      if (etag.empty() || now.empty() || etag == now) return {};
      return fail(Code::kStale, "its ETag was " + etag + " and is " + now + " now");
    };
    options.error_of = [](const HttpResponse& response) -> Error {
      const std::string what = "HTTP " + std::to_string(response.status);
      if (response.status == 401 || response.status == 403) return {Code::kAccess, what};
      if (response.status == 404 || response.status == 410) return {Code::kNotFound, what};
      return {Code::kOrigin, what};
    };
    return std::make_shared<FileSource>(net_, std::move(options));
  }

  const std::string base_;
  const bool offline_;
  const std::shared_ptr<NetContext> net_;
};

}  // namespace

std::shared_ptr<Origin> make_base_url_origin(std::string base_url, bool offline, int retry_max,
                                             HttpClient& http, Executor& timers,
                                             std::chrono::milliseconds retry_base,
                                             int max_connections) {
  while (base_url.ends_with('/')) base_url.pop_back();
  RetryPolicy policy;
  policy.max_tries = std::max(1, retry_max);
  policy.base = retry_base;
  auto net = std::shared_ptr<NetContext>(
      new NetContext{http, timers, policy, Credentials{}, Reachability{}});
  net->max_connections = max_connections;
  return std::make_shared<BaseUrlOrigin>(std::move(base_url), offline, std::move(net));
}

}  // namespace nexus
