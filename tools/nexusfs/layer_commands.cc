#include "tools/nexusfs/layer_commands.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "backend/format/layout_image.h"
#include "backend/format/safetensors.h"
#include "backend/format/torch_file.h"
#include "prefetch/read_ahead.h"

namespace nexus::tools {
namespace {

using Reply = ControlServer::Reply;
using ModelDone = std::function<void(Result<std::shared_ptr<Model>>)>;

constexpr int kLayersMax = 100'000;
constexpr size_t kQuantizationMax = 32;

std::optional<std::string> text_member(const Json& request, const char* name) {
  if (!request.contains(name) || !request[name].is_string()) return std::nullopt;
  return request[name].get<std::string>();
}

// What a request is about: a layer of a model, in the words of the mount.
struct NamedLayer {
  std::string model;  // as the user named it
  int layer = 0;
  std::string quantization;  // "" for none
  std::string file() const {
    const std::string mode = quantization.empty() ? "" : "." + quantization;
    return "layer_" + std::to_string(layer) + mode + ".pt";
  }
  std::string name() const { return model + "/" + file(); }
};

Result<NamedLayer> named_layer(const Json& request) {
  NamedLayer named;
  const auto model = text_member(request, "model");
  if (!model || model->empty()) return fail(Code::kInvalid, "which model?");
  named.model = *model;
  if (!request.contains("layer") || !request["layer"].is_number_integer()) {
    return fail(Code::kInvalid, "which layer? (a number)");
  }
  named.layer = request["layer"].get<int>();
  if (named.layer < 0 || named.layer >= kLayersMax) {
    return fail(Code::kInvalid, "layer " + std::to_string(named.layer) + ": out of range");
  }
  named.quantization = text_member(request, "quantization").value_or("");
  if (named.quantization == "none") named.quantization.clear();
  const bool legal = std::all_of(named.quantization.begin(), named.quantization.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  if (!legal || named.quantization.size() > kQuantizationMax) {
    return fail(Code::kInvalid, "a quantization mode is a word of a-z, 0-9, '_' and '-'");
  }
  return named;
}

// The model with its views known. `name` is an alias, ORG/NAME or ORG/NAME@REV.
void get_model(const Services& services, const std::string& name, ModelDone done) {
  auto ready = [done = std::move(done)](Result<std::shared_ptr<Model>> model) {
    if (!model) return done(std::move(model));
    const std::shared_ptr<Model> mounted = *model;
    mounted->when_ready([mounted, done] { done(mounted); });
  };
  if (services.registry.is_alias(name)) return (void)services.registry.get_alias(name, ready);
  const size_t at = name.find('@');
  const std::string repo = name.substr(0, at);
  const std::string revision = at == std::string::npos ? "main" : name.substr(at + 1);
  if (!valid_repo_name(repo) || !valid_model_path(revision)) {
    return ready(fail(Code::kInvalid, "'" + name + "': expected ORG/NAME[@REV] or an alias"));
  }
  services.registry.get(repo, revision, ready);
}

// Under which name the cache knows what is put into `model`: the registry's own for it.
Result<std::string> model_of_puts(const Services& services, const std::string& model) {
  if (const auto alias = services.config.models.find(model);
      alias != services.config.models.end()) {
    if (alias->second.revision == "main") return alias->second.repo;
    return fail(Code::kUnsupported, model + ": stands for a revision, which nothing is put into");
  }
  if (services.registry.is_alias(model) || valid_repo_name(model)) return model;
  return fail(Code::kInvalid, "'" + model + "': expected ORG/NAME (no revision) or an alias");
}

Result<ModelNode> find_file(Model& model, const std::string& name, const std::string& path) {
  FindResult found = model.find(path);
  if (found.state != FindState::kFound || found.node.directory || !found.node.object) {
    return fail(Code::kNotFound, name + " has no " + path);
  }
  if (!found.node.error.empty()) {
    return fail(Code::kInvalid, name + "/" + path + ": " + found.node.error);
  }
  return found.node;
}

// Keeps the object from being evicted, as an open file does.
class Use {
 public:
  Use(Cache& cache, std::shared_ptr<Object> object) : cache_(cache), object_(std::move(object)) {
    object_->add_open();
  }
  ~Use() {
    object_->drop_open();
    cache_.abandon(object_);
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

 private:
  Cache& cache_;
  const std::shared_ptr<Object> object_;
};

// --- layer ---

Result<std::shared_ptr<const Descriptor>> read_only(const ObjectFile& file) {
  auto own = file.descriptor();
  if (!own) return tl::unexpected(own.error());
  const std::string path = "/proc/self/fd/" + std::to_string((*own)->get());
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(Code::kDisk, file.path() + ": " + std::strerror(errno));
  return std::make_shared<const Descriptor>(fd);
}

void lend_layer(Cache& cache, prefetch::LayerReadAhead* read_ahead, const NamedLayer& named,
                const std::shared_ptr<Model>& model, const Reply& reply) {
  auto node = find_file(*model, named.model, named.file());
  if (!node && !named.quantization.empty()) {
    return reply(fail(Code::kNotFound,
                      node.error().what + ": quantised layers are those that were put in as such"));
  }
  if (!node) return reply(tl::unexpected(node.error()));
  const auto object = node->object;
  auto use = std::make_shared<Use>(cache, object);
  const auto lend = [reply, use, object](const ObjectFile& file) {
    auto fd = read_only(file);
    if (!fd) return reply(tl::unexpected(fd.error()));
    reply.lend(Json{{"name", object->spec().name}, {"size", object->size()}}, *fd, use);
  };
  const auto ready = cache.ready_file(*object);
  if (ready) {
    cache.count_passthrough_open(*object);
    lend(*ready);
    cache.promote(object);  // the next one gets it from memory
  } else {
    const uint64_t ticket =
        cache.prepare(object, [reply, lend](Result<std::shared_ptr<ObjectFile>> file) {
          if (!file) return reply(tl::unexpected(file.error()));
          lend(**file);
        });
    if (ticket != 0) reply.on_gone([&cache, ticket] { cache.cancel(ticket); });
  }
  if (read_ahead && node->layer >= 0) {
    read_ahead->on_layer(model, LayerView::kTorch, node->layer, ready != nullptr);
  }
}

void layer(const Services& services, const Json& request, const Reply& reply) {
  auto named = named_layer(request);
  if (!named) return reply(tl::unexpected(named.error()));
  get_model(services, named->model,
            [&cache = services.cache, read_ahead = services.read_ahead, named = *named,
             reply](Result<std::shared_ptr<Model>> model) {
              if (!model) return reply(tl::unexpected(model.error()));
              lend_layer(cache, read_ahead, named, *model, reply);
            });
}

// --- put, download ---

// A memfd that nobody can change any more. The layer is copied from it, so there is no harm in the
// client's keeping it.
Result<uint64_t> sealed_size(const std::shared_ptr<const Descriptor>& fd) {
  if (!fd) return fail(Code::kInvalid, "no file came along");
  const int seals = ::fcntl(fd->get(), F_GET_SEALS);
  constexpr int kWanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (seals < 0 || (seals & kWanted) != kWanted) {
    return fail(Code::kInvalid, "the file is no sealed memfd");
  }
  struct stat status {};
  if (::fstat(fd->get(), &status) != 0 || status.st_size <= 0) {
    return fail(Code::kInvalid, "the file is empty");
  }
  return static_cast<uint64_t>(status.st_size);
}

Result<void> read_fully(int fd, uint64_t offset, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return fail(Code::kInvalid, got < 0 ? std::strerror(errno) : "it ends early");
    offset += static_cast<uint64_t>(got);
    into = into.subspan(static_cast<size_t>(got));
  }
  return {};
}

// For the parsers, from whatever PutRead reads.
RangeOfFile ranges_of(PutRead read) {
  return [read = std::move(read)](ByteRange range) -> Result<std::string> {
    std::string bytes(range.length, '\0');
    auto got = read(range.offset, std::as_writable_bytes(std::span(bytes)));
    if (!got) return tl::unexpected(got.error());
    return bytes;
  };
}

// Everything that outlives the request.
struct PutJob {
  Cache& cache;
  Registry& registry;
  NamedLayer named;
  std::string model;  // see model_of_puts()
  Reply reply;

  void put(uint64_t size, PutRead read) const {
    PutFile file{model, named.file(), size, ""};
    cache.put(std::move(file), std::move(read), [job = *this, size](Result<void> done) {
      if (!done) return job.reply(tl::unexpected(done.error()));
      job.registry.put_changed(job.model, job.named.file());
      job.cache.flush([job, size] { job.reply(Json{{"name", job.named.name()}, {"size", size}}); });
    });
  }
};

void put(const Services& services, const NamedLayer& named, const std::string& model,
         const Reply& reply) {
  PutJob job{services.cache, services.registry, named, model, reply};
  services.pool.post([job = std::move(job), fd = reply.descriptor()] {
    const std::string what = "put " + job.named.name();
    auto size = sealed_size(fd);
    if (!size) return job.reply(fail(size.error(), what));
    const PutRead read = [fd](uint64_t offset, std::span<std::byte> into) {
      return read_fully(fd->get(), offset, into);
    };
    auto tensors = tensors_of_torch_file(*size, ranges_of(read));
    if (!tensors) return job.reply(fail(tensors.error(), what + ": not a layer"));
    job.put(*size, read);
  });
}

// A .safetensors file becomes a .pt of the same tensors; a .pt stays as it is.
void put_downloaded(const PutJob& job, const std::string& path,
                    const std::shared_ptr<ObjectFile>& file, const std::shared_ptr<Use>& use) {
  const std::string what = "download " + path;
  const PutRead read = [file, use](uint64_t offset, std::span<std::byte> into) {
    return file->read(offset, into);
  };
  const bool safetensors = path.ends_with(".safetensors");
  auto tensors = safetensors ? tensors_of_safetensors_file(file->size(), ranges_of(read))
                             : tensors_of_torch_file(file->size(), ranges_of(read));
  if (!tensors) return job.reply(fail(tensors.error(), what + ": not a layer"));
  if (!safetensors) return job.put(file->size(), read);
  auto layout = torch_layer_layout("layer_" + std::to_string(job.named.layer), *tensors);
  if (!layout) return job.reply(fail(layout.error(), what));
  auto image = LayoutImage::make(
      std::move(*layout),
      [read](uint32_t, uint64_t offset, std::span<std::byte> into) { return read(offset, into); });
  if (!image) return job.reply(fail(image.error(), what));
  const uint64_t size = image->size();
  job.put(size, [image = std::move(*image)](uint64_t offset, std::span<std::byte> into) {
    return image.read(offset, into);
  });
}

void download(const Services& services, const Json& request, const NamedLayer& named,
              const std::string& model, const Reply& reply) {
  const auto repo = text_member(request, "repo");
  const auto path = text_member(request, "file");
  if (!repo || !path) return reply(fail(Code::kInvalid, "which repo and file?"));
  PutJob job{services.cache, services.registry, named, model, reply};
  get_model(
      services, *repo,
      [&pool = services.pool, job = std::move(job), repo = *repo,
       path = *path](Result<std::shared_ptr<Model>> from) {
        if (!from) return job.reply(tl::unexpected(from.error()));
        auto node = find_file(**from, repo, path);
        if (!node) return job.reply(tl::unexpected(node.error()));
        const auto use = std::make_shared<Use>(job.cache, node->object);
        const uint64_t ticket = job.cache.prepare(
            node->object, [&pool, job, path, use](Result<std::shared_ptr<ObjectFile>> file) {
              if (!file) return job.reply(tl::unexpected(file.error()));
              pool.post([job, path, use, file = *file] { put_downloaded(job, path, file, use); });
            });
        if (ticket != 0) {
          job.reply.on_gone([&cache = job.cache, ticket] { cache.cancel(ticket); });
        }
      });
}

}  // namespace

bool handle_layer_command(const Services& services, const Json& request, const Reply& reply) {
  const std::string command = request["command"].get<std::string>();
  if (command == "layer") {
    layer(services, request, reply);
    return true;
  }
  if (command != "put" && command != "download") return false;
  auto named = named_layer(request);
  if (!named) {
    reply(tl::unexpected(named.error()));
    return true;
  }
  auto model = model_of_puts(services, named->model);
  if (!model) {
    reply(tl::unexpected(model.error()));
  } else if (command == "put") {
    put(services, *named, *model, reply);
  } else {
    download(services, request, *named, *model, reply);
  }
  return true;
}

}  // namespace nexus::tools
