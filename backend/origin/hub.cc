#include "backend/origin/hub.h"

#include <mutex>
#include <unordered_map>
#include <utility>

#include "backend/net/redact.h"
#include "backend/net/url.h"
#include "backend/origin/answer_check.h"
#include "backend/origin/file_reader.h"
#include "backend/origin/hub_cache.h"
#include "backend/origin/range_reader.h"

namespace nexus {

namespace {

constexpr size_t kListingBytesMax = 64ull << 20;
constexpr int kPagesMax = 1000;       // of a tree; a page holds 1,000 entries
constexpr size_t kSourcesMax = 4096;  // files whose location is remembered
// A file that is not in LFS is answered by the hub itself, mostly; asking where it is would be a
// trip for nothing. A large one is worth it: its location then serves every range.
constexpr uint64_t kDirectBytesMax = 16ull << 20;

using LoadDone = std::function<void(Result<Snapshot>)>;

bool same_kind(const std::string& a, const std::string& b) {
  return a.size() == b.size() && (a.size() == 40 || a.size() == 64) &&
         (a + b).find_first_not_of("0123456789abcdef") == std::string::npos;
}

// What the hub's own headers say of a file, against the listing.
Result<void> check_entry(const HttpResponse& response, const OriginFile& file,
                         const std::string& commit) {
  if (response.status >= 400) return {};
  const auto their_commit = response.header("x-repo-commit");
  if (their_commit && their_commit->size() == commit.size() && *their_commit != commit) {
    return fail(Code::kOrigin, "answered from commit " + *their_commit + " instead of " + commit);
  }
  if (const auto linked = response.header("x-linked-size")) {
    if (*linked != std::to_string(file.size)) {
      return fail(Code::kOrigin, "the file has " + *linked +
                                     " bytes there (X-Linked-Size), but the "
                                     "listing says " +
                                     std::to_string(file.size));
    }
  }
  const auto linked = response.header("x-linked-etag");
  const std::string etag = normal_etag(linked ? *linked : response.header("etag").value_or(""));
  if (etag.empty() || file.etag.empty() || etag == file.etag) return {};
  // A plain ETag may be of any make (an MD5, a counter); only like is compared with like.
  if (!linked && !same_kind(etag, file.etag)) return {};
  return fail(Code::kOrigin, "its ETag is " + etag + ", but the listing says " + file.etag);
}

// One load(): model info, then the tree if need be, then the cache directory.
class Load : public std::enable_shared_from_this<Load> {
 public:
  Load(std::shared_ptr<NetContext> net, std::shared_ptr<const HubOptions> options, std::string repo,
       std::string revision, LoadDone done)
      : net_(std::move(net)),
        options_(std::move(options)),
        repo_(std::move(repo)),
        revision_(std::move(revision)),
        done_(std::move(done)) {}

  void begin() {
    const std::string rev = revision_.empty() ? "main" : revision_;
    if (!valid_repo_name(repo_)) {
      net_->timers.post([self = shared_from_this()] {
        self->end(self->failure(Code::kNotFound, "not a model's name"));
      });
    } else if (options_->offline) {
      from_cache(failure(Code::kOffline, "offline mode"));
    } else if (net_->reach.out(url_origin(options_->endpoint))) {
      from_cache(failure(Code::kOffline,
                         url_host(options_->endpoint) + ": was out of reach a moment ago"));
    } else {
      auto self = shared_from_this();
      get(options_->endpoint + "/api/models/" + repo_ + "/revision/" + percent_encode(rev, false) +
              "?blobs=true",
          [self](MetadataAnswer answer) { self->on_info(answer); });
    }
  }

 private:
  tl::unexpected<Error> failure(Code code, const std::string& why) const {
    return fail(code, "list " + repo_ + (revision_.empty() ? "" : "@" + revision_) + ": " + why);
  }

  void get(std::string url, std::function<void(MetadataAnswer)> then) {
    MetadataRequest request;
    request.url = std::move(url);
    request.body_bytes_max = kListingBytesMax;
    request.tries = net_->policy.metadata_tries;
    auto self = shared_from_this();
    request.done = [self, then = std::move(then)](Result<MetadataAnswer> answer) {
      if (!answer) {
        auto error = self->failure(answer.error().code, answer.error().what);
        if (answer.error().code == Code::kOffline) return self->from_cache(error);
        return self->end(error);
      }
      if (answer->response.status >= 300) {
        const Error error = hub_error(answer->response, !self->options_->token.empty(),
                                      redact_url(self->options_->endpoint) + "/" + self->repo_);
        return self->end(self->failure(error.code, url_host(answer->url) + ": " + error.what));
      }
      then(std::move(*answer));
    };
    std::make_shared<MetadataFetch>(net_, std::move(request))->begin();
  }

  void on_info(const MetadataAnswer& answer) {
    auto info = parse_model(answer.body, repo_, revision_);
    if (!info)
      return end(failure(info.error().code, url_host(answer.url) + ": " + info.error().what));
    snapshot_ = std::move(info->snapshot);
    if (info->complete) return complete();
    snapshot_.files.clear();
    snapshot_.complaints.clear();
    get_page(options_->endpoint + "/api/models/" + snapshot_.repo + "/tree/" + snapshot_.commit +
             "?recursive=true");
  }

  void get_page(std::string url) {
    auto self = shared_from_this();
    get(std::move(url), [self](MetadataAnswer answer) { self->on_page(answer); });
  }

  void on_page(const MetadataAnswer& answer) {
    const std::string host = url_host(answer.url);
    if (auto parsed = parse_tree_page(answer.body, snapshot_); !parsed) {
      return end(failure(parsed.error().code, host + ": " + parsed.error().what));
    }
    const std::string next = next_page(answer.response.header("link").value_or(""));
    if (next.empty()) return complete();
    auto url = join_url(answer.url, next);
    if (!url || url_origin(*url) != url_origin(answer.url) || *url == answer.url ||
        ++pages_ >= kPagesMax) {
      return end(failure(Code::kOrigin, host + ": the listing's next page makes no sense"));
    }
    get_page(std::move(*url));
  }

  void complete() {
    sanitize_files(snapshot_);
    if (options_->hub_cache.empty()) return end(std::move(snapshot_));
    on_disk([self = shared_from_this()] {
      attach_hub_cache(self->options_->hub_cache, self->snapshot_);
      self->end(std::move(self->snapshot_));
    });
  }

  // The network does not help; `error` is what to say when the cache does not either.
  void from_cache(tl::unexpected<Error> error) {
    on_disk([self = shared_from_this(), error = std::move(error)] {
      if (self->options_->hub_cache.empty()) return self->end(error);
      auto cached = load_hub_cache(self->options_->hub_cache, self->repo_, self->revision_);
      if (cached) return self->end(std::move(cached));
      self->end(error);
    });
  }

  void on_disk(Task task) {
    if (options_->disk != nullptr) {
      options_->disk->post(std::move(task));
    } else {
      net_->timers.post(std::move(task));
    }
  }

  void end(Result<Snapshot> result) {
    auto done = std::exchange(done_, nullptr);
    if (done) done(std::move(result));
  }

  const std::shared_ptr<NetContext> net_;
  const std::shared_ptr<const HubOptions> options_;
  const std::string repo_;
  const std::string revision_;
  LoadDone done_;
  Snapshot snapshot_;
  int pages_ = 0;
};

class HubOrigin final : public Origin {
 public:
  HubOrigin(HubOptions options, HttpClient& http, Executor& timers) {
    while (options.endpoint.ends_with('/')) options.endpoint.pop_back();
    RetryPolicy policy;
    policy.max_tries = std::max(1, options.retry_max);
    policy.base = options.retry_base;
    policy.metadata_timeout = options.metadata_timeout;
    net_ = std::shared_ptr<NetContext>(new NetContext{
        http, timers, policy, Credentials{options.token, url_origin(options.endpoint)},
        Reachability(options.out_of_reach), StallLimit(options.stall)});
    net_->max_connections = options.max_connections;
    options_ = std::make_shared<const HubOptions>(std::move(options));
  }

  std::string describe() const override { return redact_url(options_->endpoint); }

  void load(const std::string& repo, const std::string& revision, LoadDone done) override {
    std::make_shared<Load>(net_, options_, repo, revision, std::move(done))->begin();
  }

  std::shared_ptr<Transfer> read(const Snapshot& snapshot, ReadRequest request) override {
    if (!request.file.error.empty()) {
      Error error{Code::kCorrupt, "fetch " + snapshot.repo + "/" + request.file.error};
      return failed_read(std::move(request), std::move(error), net_->timers);
    }
    if (!request.file.local_path.empty() && options_->disk != nullptr) {
      return read_local_file(std::move(request), *options_->disk);
    }
    if (options_->offline) {
      const std::string what =
          "fetch " + snapshot.repo + "/" + request.file.path + ": offline mode";
      return failed_read(std::move(request), Error{Code::kOffline, what}, net_->timers);
    }
    auto source = source_of(snapshot, request.file);  // before the request is moved from
    return read_hedged(std::move(source), std::move(request));
  }

  bool reachable() const override {
    return !options_->offline && !net_->reach.out(net_->credentials.origin);
  }

  OriginActivity activity() const override { return {net_->retries, net_->hedges}; }

 private:
  std::shared_ptr<FileSource> source_of(const Snapshot& snapshot, const OriginFile& file) {
    const std::string key = snapshot.repo + "@" + snapshot.commit + "/" + file.path + "\n" +
                            std::to_string(file.size) + "\n" + file.etag;
    std::lock_guard lock(mutex_);
    auto found = sources_.find(key);
    if (found != sources_.end()) return found->second;
    if (sources_.size() >= kSourcesMax) {
      std::erase_if(sources_, [](const auto& entry) { return entry.second.use_count() == 1; });
      if (sources_.size() >= kSourcesMax) sources_.clear();  // reads keep what they use
    }
    FileSourceOptions options;
    options.url = options_->endpoint + "/" + snapshot.repo + "/resolve/" +
                  percent_encode(snapshot.commit, false) + "/" + percent_encode(file.path, true);
    options.label = "fetch " + snapshot.repo + "/" + file.path;
    options.size = file.size;
    options.resolve = !file.sha256.empty() || file.size > kDirectBytesMax;
    options.html_expected = file.path.ends_with(".html") || file.path.ends_with(".htm");
    options.check_entry = [file, commit = snapshot.commit](const HttpResponse& response) {
      return check_entry(response, file, commit);
    };
    options.error_of = [with_token = !options_->token.empty(),
                        page = describe() + "/" + snapshot.repo](const HttpResponse& response) {
      return hub_error(response, with_token, page);
    };
    auto source = std::make_shared<FileSource>(net_, std::move(options));
    sources_.emplace(key, source);
    return source;
  }

  std::shared_ptr<NetContext> net_;
  std::shared_ptr<const HubOptions> options_;
  std::mutex mutex_;  // guards sources_
  std::unordered_map<std::string, std::shared_ptr<FileSource>> sources_;
};

}  // namespace

std::shared_ptr<Origin> make_hub_origin(HubOptions options, HttpClient& http, Executor& timers) {
  return std::make_shared<HubOrigin>(std::move(options), http, timers);
}

}  // namespace nexus
