#include "tools/nexusfs/cache_commands.h"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/common/model_words.h"
#include "tools/common/size.h"
#include "tools/nexusfs/model_files.h"
#include "tools/nexusfs/warm_job.h"

namespace nexus::tools {
namespace {

using Reply = ControlServer::Reply;
using ModelDone = std::function<void(Result<std::shared_ptr<Model>>)>;

constexpr auto kProgressEvery = std::chrono::milliseconds(200);

std::optional<std::string> text_member(const Json& request, const char* name) {
  if (!request.contains(name) || !request[name].is_string()) return std::nullopt;
  return request[name].get<std::string>();
}

bool truth_member(const Json& request, const char* name) {
  return request.contains(name) && request[name].is_boolean() && request[name].get<bool>();
}

// What people wrote as MODEL, taken apart. `alias` when it is one.
struct NamedModel {
  std::string repo, revision, alias;
};

Result<NamedModel> named_model(const Services& services, const std::string& text) {
  if (auto alias = services.config.models.find(text); alias != services.config.models.end()) {
    return NamedModel{alias->second.repo, alias->second.revision, text};
  }
  if (services.registry.is_alias(text)) return NamedModel{text, "main", text};
  NamedModel named;
  const auto name = whole_model_name(services, text);
  if (!name) return tl::unexpected(name.error());
  const size_t at = name->find('@');
  named.repo = name->substr(0, at);
  named.revision = at == std::string::npos ? "" : name->substr(at + 1);
  if (!valid_repo_name(named.repo)) {
    return fail(Code::kInvalid, "'" + printable(text) + "': expected ORG/NAME[@REV] or an alias");
  }
  return named;
}

// The model, mounted if need be, with its views known.
void get_ready(const Services& services, const NamedModel& named, ModelDone done) {
  auto ready = [done = std::move(done)](Result<std::shared_ptr<Model>> model) {
    if (!model) return done(std::move(model));
    const std::shared_ptr<Model> mounted = *model;
    mounted->when_ready([mounted, done] { done(mounted); });
  };
  if (!named.alias.empty()) {
    services.registry.get_alias(named.alias, std::move(ready));
  } else {
    services.registry.get(named.repo, named.revision.empty() ? "main" : named.revision,
                          std::move(ready));
  }
}

Result<ModelNode> find_file(Model& model, const std::string& name, const std::string& path) {
  FindResult found = model.find(path);
  if (found.state != FindState::kFound || found.node.directory) {
    return fail(Code::kNotFound, name + " has no " + printable(path));
  }
  if (!found.node.error.empty()) {
    return fail(Code::kInvalid, name + "/" + path + ": " + found.node.error);
  }
  return found.node;
}

// --- pin, unpin ---

void change_pin(const Services& services, const Json& request, bool on, const Reply& reply) {
  const auto text = text_member(request, "model");
  if (!text) return reply(fail(Code::kInvalid, "which model?"));
  auto named = named_model(services, *text);
  if (!named) return reply(tl::unexpected(named.error()));
  const auto layer = text_member(request, "layer");
  const std::string file = layer ? file_of_layer(*layer) : "";
  auto answer = [reply, on](Result<void> done) {
    if (!done) return reply(tl::unexpected(done.error()));
    reply(Json{{"pinned", on}});
  };
  if (!on) return services.cache.unpin({named->repo, file}, std::move(answer));
  get_ready(services, *named,
            [&cache = services.cache, file, reply, answer, name = *text](auto model) {
              if (!model) return reply(tl::unexpected(model.error()));
              if (file.empty()) return cache.pin({(*model)->repo(), ""}, answer);
              auto found = find_file(**model, name, file);
              if (!found) return reply(tl::unexpected(found.error()));
              if (!found->object) return reply(fail(Code::kInvalid, file + ": is always here"));
              cache.pin(pin_of(found->object->spec()), answer);
            });
}

// --- invalidate, clear ---

Json dropped_json(const Dropped& dropped) {
  return Json{{"objects", dropped.objects}, {"bytes", dropped.bytes}};
}

Result<ObjectFilter> filter_of(const Services& services, const Json& request) {
  ObjectFilter filter;
  const auto text = text_member(request, "model");
  if (!text) return filter;
  auto named = named_model(services, *text);
  if (!named) return tl::unexpected(named.error());
  filter.model = named->repo;
  // A commit is meant only where one was named: without, it is every commit of the model.
  if (text->find('@') != std::string::npos) {
    const auto mounted = services.registry.mounted(named->repo, named->revision);
    filter.name_prefix = named->repo + "@" + (mounted ? mounted->commit() : named->revision) + "/";
  }
  if (const auto layer = text_member(request, "layer")) filter.file = file_of_layer(*layer);
  return filter;
}

void invalidate(const Services& services, const Json& request, const Reply& reply) {
  const auto model = text_member(request, "model");
  if (!model && !truth_member(request, "all")) {
    return reply(fail(Code::kInvalid, "which model? (--all for everything)"));
  }
  auto filter = filter_of(services, request);
  if (!filter) return reply(tl::unexpected(filter.error()));
  std::string what = model.value_or("");
  if (!filter->file.empty()) what += "/" + filter->file;
  services.cache.invalidate(*filter, [reply, model, what](Dropped dropped) {
    if (model && dropped.objects == 0) {
      return reply(fail(Code::kNotFound, "nothing of " + printable(what) + " is cached"));
    }
    reply(dropped_json(dropped));
  });
}

// --- verify, optimize ---

// Passes on progress at most every kProgressEvery.
std::function<void(const VerifyProgress&)> progress_to(const Reply& reply) {
  auto next = std::make_shared<std::chrono::steady_clock::time_point>();
  return [reply, next](const VerifyProgress& now) {
    const auto time = std::chrono::steady_clock::now();
    if (time < *next) return;
    *next = time + kProgressEvery;
    reply.progress(Json{{"files_done", now.objects_done},
                        {"files_total", now.objects_total},
                        {"bytes_done", now.bytes_done},
                        {"bytes_total", now.bytes_total}});
  };
}

Json verify_json(const VerifyReport& report) {
  return Json{{"objects", report.objects},
              {"bytes", report.bytes},
              {"matched_origin", report.matched_origin},
              {"corrupt", report.corrupt}};
}

void verify(const Services& services, const Json& request, const Reply& reply) {
  auto filter = filter_of(services, request);
  if (!filter) return reply(tl::unexpected(filter.error()));
  VerifyOptions options{*filter, truth_member(request, "origin")};
  const auto job = services.cache.verify(
      std::move(options), progress_to(reply),
      [reply, model = text_member(request, "model")](Result<VerifyReport> report) {
        if (!report) return reply(tl::unexpected(report.error()));
        if (model && report->objects == 0) {
          return reply(fail(Code::kNotFound, "nothing of " + printable(*model) + " is cached"));
        }
        reply(verify_json(*report));
      });
  reply.on_gone([job] { job->cancel(); });
}

// --- migrate ---

Json migration_json(const MigrationReport& report) {
  Json moved = Json::array();
  uint64_t bytes = 0;
  for (const MigrationReport::Moved& one : report.moved) {
    bytes += one.bytes;
    moved.push_back(Json{{"name", one.name},
                         {"bytes", one.bytes},
                         {"from", one.from},
                         {"to", one.to},
                         {"from_tier", one.from_tier},
                         {"to_tier", one.to_tier}});
  }
  return Json{{"moved", moved}, {"moved_bytes", bytes}, {"stayed", report.failed}};
}

void migrate(const Services& services, const Reply& reply) {
  const auto job =
      services.cache.migrate(progress_to(reply), [reply](Result<MigrationReport> report) {
        if (!report) return reply(tl::unexpected(report.error()));
        reply(migration_json(*report));
      });
  reply.on_gone([job] { job->cancel(); });
}

void optimize(const Services& services, const Reply& reply) {
  const auto job =
      services.cache.optimize(progress_to(reply), [reply](Result<OptimizeReport> report) {
        if (!report) return reply(tl::unexpected(report.error()));
        Json answer = verify_json(report->verified);
        answer.update(migration_json(report->rebalanced));
        answer["orphan_files"] = report->orphans.files;
        answer["orphan_bytes"] = report->orphans.bytes;
        answer["catalog_bytes_before"] = report->catalog.bytes_before;
        answer["catalog_bytes_after"] = report->catalog.bytes_after;
        reply(answer);
      });
  reply.on_gone([job] { job->cancel(); });
}

// --- warm ---

Result<std::vector<ModelNode>> files_to_warm(Model& model, const std::string& name,
                                             const std::optional<std::string>& layers) {
  if (!layers) return origin_files(model);
  std::vector<ModelNode> files;
  std::vector<std::string> paths;
  if (*layers == "all") {
    for (int n = 0; model.find("layer_" + std::to_string(n) + ".pt").state == FindState::kFound;
         ++n) {
      paths.push_back("layer_" + std::to_string(n) + ".pt");
    }
    if (paths.empty()) return fail(Code::kNotFound, name + " has no layers");
    if (model.find("non_layer.pt").state == FindState::kFound) paths.push_back("non_layer.pt");
  } else {
    auto given = files_of_layers(*layers);
    if (!given) return tl::unexpected(given.error());
    paths = std::move(*given);
  }
  for (const std::string& path : paths) {
    auto found = find_file(model, name, path);
    if (!found) return tl::unexpected(found.error());
    if (found->object) files.push_back(std::move(*found));
  }
  return files;
}

Json warm_json(const WarmState& state) {
  return Json{{"files_done", state.files_done},
              {"files_total", state.files_total},
              {"bytes_done", state.bytes_done},
              {"bytes_total", state.bytes_total}};
}

void warm_model(Cache& cache, Executor& timers, const std::vector<ModelNode>& nodes, bool wait,
                const Reply& reply) {
  uint64_t bytes = 0;
  std::vector<WarmFile> files;
  for (const ModelNode& node : nodes) {
    files.push_back({node.path, node.object});
    if (node.object->spec().local_path.empty()) bytes += node.object->size();
  }
  const uint64_t room = cache.stats().max_disk_cache_bytes;
  if (bytes > room) {
    return reply(fail(Code::kLimit, format_size(bytes) + " are more than the cache holds (" +
                                        format_size(room) + "): name some layers"));
  }
  if (WarmJob::count() >= WarmJob::kJobsMax) {
    return reply(fail(Code::kLimit, "too much is being warmed already"));
  }
  const auto job = std::make_shared<WarmJob>(cache, std::move(files));
  const auto answer = [reply](const WarmState& state) {
    reply(
        Json{{"files", state.files_total}, {"bytes", state.bytes_total}, {"failed", state.failed}});
  };
  if (!wait) answer(job->state());
  std::function<void(const WarmState&)> progress;
  if (wait) progress = [reply](const WarmState& state) { reply.progress(warm_json(state)); };
  job->start(timers, std::move(progress), answer);  // without `wait` it is answered already
  if (wait) reply.on_gone([job] { job->cancel(); });
}

void warm(const Services& services, const Json& request, const Reply& reply) {
  const auto text = text_member(request, "model");
  if (!text) return reply(fail(Code::kInvalid, "which model?"));
  auto named = named_model(services, *text);
  if (!named) return reply(tl::unexpected(named.error()));
  get_ready(services, *named,
            [&cache = services.cache, &timers = services.timers, reply, name = *text,
             layers = text_member(request, "layers"),
             wait = truth_member(request, "wait")](Result<std::shared_ptr<Model>> model) {
              if (!model) return reply(tl::unexpected(model.error()));
              auto files = files_to_warm(**model, name, layers);
              if (!files) return reply(tl::unexpected(files.error()));
              warm_model(cache, timers, *files, wait, reply);
            });
}

}  // namespace

bool handle_cache_command(const Services& services, const Json& request, const Reply& reply) {
  const std::string command = request["command"].get<std::string>();
  if (command == "pin" || command == "unpin") {
    change_pin(services, request, command == "pin", reply);
  } else if (command == "invalidate") {
    invalidate(services, request, reply);
  } else if (command == "clear") {
    services.cache.clear([reply](Result<Dropped> dropped) {
      if (!dropped) return reply(tl::unexpected(dropped.error()));
      reply(dropped_json(*dropped));
    });
  } else if (command == "verify") {
    verify(services, request, reply);
  } else if (command == "optimize") {
    optimize(services, reply);
  } else if (command == "migrate") {
    migrate(services, reply);
  } else if (command == "flush") {
    services.cache.flush([reply] { reply(Json::object()); });
  } else if (command == "warm") {
    warm(services, request, reply);
  } else {
    return false;
  }
  return true;
}

}  // namespace nexus::tools
