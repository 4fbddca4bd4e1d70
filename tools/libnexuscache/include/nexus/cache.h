// libnexuscache: the layers of models, from the cache that NexusFS keeps, without going through a
// mount.
//
//   auto cache = nexus::cache::get_layer_cache();
//   auto layer = (*cache)->get_layer("org/name", 3);
//   for (const nexus::cache::Tensor& tensor : (*layer)->tensors()) use(tensor.data, tensor.bytes);
//
// Where a process owns cache_dir already (a mount, or another program with this library), the calls
// go to it over its control socket, and a layer comes as a descriptor of the cached file, which is
// mapped here: no bytes are copied. Where none does, this process opens cache_dir, fetches by
// itself, and serves other programs that use the library. Only the owner's user and root get
// anything.
//
// Units: *_gb are 10^9 bytes, everything else is in bytes unless its name says otherwise.
// Errors are values; nothing here throws but std::bad_alloc.
// Threads: every function and method may be called from any thread. Calls that may fetch block
// their caller alone. Logs: of a process that owns cache_dir, through spdlog's default logger;
// warnings and errors on standard error where the program has not set one. A process that used the
// library must not go on using it in a child after fork().
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#if defined(__GNUC__)
#define NEXUS_CACHE_API __attribute__((visibility("default")))
#else
#define NEXUS_CACHE_API
#endif

namespace nexus::cache {

enum class ErrorCode {
  not_found,  // no such model, layer or file; or nothing of it is cached
  access,  // gated or private, and the token does not open it; or cache_dir belongs to another user
  offline,      // the origin is out of reach and the bytes are not here
  origin,       // the origin answered, but not with what was asked for
  corrupt,      // bytes or a header are not what they must be
  invalid,      // an argument makes no sense
  unsupported,  // a format, device or quantization that this version does not have
  cancelled,    // the owner of cache_dir is ending; try again
  no_space,     // the cache disk is full
  disk,         // the cache disk failed
  limit,        // a limit was reached, or no answer came in time
};

struct Error {
  ErrorCode code = ErrorCode::invalid;
  std::string message;  // for people; never holds a token
};

// A value or an error. Reading the one that is not there is undefined, as with std::optional.
template <typename T>
class Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  explicit operator bool() const { return state_.index() == 0; }
  bool ok() const { return state_.index() == 0; }
  T& operator*() { return *std::get_if<0>(&state_); }
  const T& operator*() const { return *std::get_if<0>(&state_); }
  T* operator->() { return std::get_if<0>(&state_); }
  const T* operator->() const { return std::get_if<0>(&state_); }
  const Error& error() const { return *std::get_if<1>(&state_); }

 private:
  std::variant<T, Error> state_;
};

// A tensor in host memory. A view: whoever made it says how long `data` lives.
struct Tensor {
  std::string name;   // in full: "model.layers.3.mlp.up_proj.weight"
  std::string dtype;  // as safetensors spells it: "BF16", "F32", "F8_E4M3", "I64"; torch's
                      // complex128 is "C128"
  std::vector<std::uint64_t> shape;    // {}: a scalar
  std::vector<std::uint64_t> strides;  // in elements; empty: row-major without gaps
  const void* data = nullptr;          // the first element
  std::size_t bytes = 0;               // that the tensor spans, from `data` on
};

// A layer's file, mapped. Its memory may not be written to. The cache does not evict it while this
// lives, which it may do beyond the LayerCache.
class NEXUS_CACHE_API Layer {
 public:
  virtual ~Layer();
  virtual const std::vector<Tensor>& tensors() const = 0;
  // Null: there is none of that name.
  virtual const Tensor* find(const std::string& name) const = 0;
  // The whole .pt file, as at MOUNT/<model_id>/layer_N.pt. Its pages are read from disk when they
  // are touched first, unless it is in the memory tier; a disk that fails then ends the process
  // with SIGBUS, as with any mapped file.
  virtual const void* data() const = 0;
  virtual std::size_t size() const = 0;
};
using LayerPtr = std::shared_ptr<const Layer>;

struct Options {
  // Empty: the config file's, else ~/.cache/nexus/layers.
  std::string cache_dir;
  // "": ~/.config/nexus/config.toml, else /etc/nexus/config.toml, else defaults. Its endpoint,
  // token_file, aliases and so on hold here as for a mount.
  std::string config_file;
  std::string endpoint;  // of the hub; "": as configured
  bool offline = false;  // true: never use the network

  // These count where this process comes to own cache_dir; a process that owns it already has its
  // own.
  std::optional<double> max_cache_size_gb;         // 50
  std::optional<double> max_memory_cache_size_gb;  // 2
  std::optional<bool> persist_metadata;            // true; false: the cache starts empty
  bool enable_compression = false;                 // true: unsupported in this version
  int compression_level = 6;                       // 1-9

  int timeout_s =
      3600;  // of one call, fetching included; cut short by nothing but the end of the owner
};

struct Removed {
  std::uint64_t objects = 0, bytes = 0;
};

class NEXUS_CACHE_API LayerCache {
 public:
  virtual ~LayerCache();

  // Layer `layer_index` of a model: "org/name", "org/name@revision", or an alias of the
  // configuration. It is fetched when it is not here, and checked before it is given out.
  // `quantization_mode`: "none", or the word that a layer was put in with. `device`: "cpu"; device
  // tensors are libnexusgpu's.
  virtual Result<LayerPtr> get_layer(const std::string& model_id, int layer_index,
                                     const std::string& quantization_mode = "none",
                                     const std::string& device = "cpu") = 0;

  // Keeps tensors as layer `layer_index` of `model_id` ("org/name" or an alias; no revision): it
  // appears as MOUNT/<model_id>/layer_N.pt (layer_N.<mode>.pt with a quantization mode), before
  // whatever the origin has there, and outlives restarts: it is on disk when this returns. Nothing
  // can fetch it again, so it is evicted only when all else that may go is gone. Tensors must be
  // contiguous. A copy of the layer is made in memory on the way.
  virtual Result<std::uint64_t> cache_layer(const std::string& model_id, int layer_index,
                                            const std::vector<Tensor>& tensors,
                                            const std::string& quantization_mode = "none") = 0;
  // The same with a layer that get_layer() gave.
  Result<std::uint64_t> cache_layer(const std::string& model_id, int layer_index,
                                    const Layer& layer,
                                    const std::string& quantization_mode = "none") {
    return cache_layer(model_id, layer_index, layer.tensors(), quantization_mode);
  }

  // Fetches `filename` (a .pt of tensors by name, or a .safetensors) of a model `repo_id` and keeps
  // it as cache_layer() does. Returns the size of the layer's file.
  virtual Result<std::uint64_t> download_and_cache(
      const std::string& model_id, int layer_index, const std::string& repo_id,
      const std::string& filename, const std::string& quantization_mode = "none") = 0;

  // Drops what is cached: of one layer, of a model, or of all. Layers that are held stay readable
  // for their holders. not_found when there was nothing, unless everything was meant.
  virtual Result<Removed> invalidate_cache(
      const std::optional<std::string>& model_id = std::nullopt,
      std::optional<int> layer_index = std::nullopt) = 0;
  // The cache as new: pins, listings and what was put in go too.
  virtual Result<Removed> clear_cache() = 0;
  // Hashes everything again, at idle priority. Returns the corrupt, each "name: what is wrong";
  // they are dropped, and fetched again at their next use.
  virtual Result<std::vector<std::string>> verify_cache_integrity() = 0;
  // The same, then files that belong to nothing are removed and the catalog is compacted.
  virtual Result<std::vector<std::string>> optimize_cache() = 0;

  // JSON: disk_cache_entries, memory_cache_entries, disk_cache_size_gb, memory_cache_size_gb,
  // max_disk_cache_size_gb, max_memory_cache_size_gb, performance {total_hits, total_misses,
  // total_evictions, cache_hit_ratio, ...}, ...
  virtual Result<std::string> get_stats() = 0;
  // The same for people, with the data downloaded and the data served from the cache.
  virtual Result<std::string> stats_text() = 0;
  Result<bool> print_stats(std::ostream& out);
  Result<bool> print_stats();  // on standard output

  // Whether this process owns cache_dir itself, as far as the last call found.
  virtual bool in_process() const = 0;
};
using LayerCachePtr = std::shared_ptr<LayerCache>;

// The cache of this process for options.cache_dir, made at the first call; later calls for the same
// directory give the same one, whatever their other options. Fails where the options or the
// configuration are wrong, and where cache_dir is owned by a process that does not answer. It is
// let go of at exit().
NEXUS_CACHE_API Result<LayerCachePtr> get_layer_cache(const Options& options = {});

}  // namespace nexus::cache
