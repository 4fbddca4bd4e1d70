// One model at one commit, as a tree of files: the origin's own, and the views made from its
// tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/base/error.h"
#include "backend/cache/cache.h"
#include "backend/model/layer_access.h"

namespace nexus {

// A file or directory of a model. Value; cheap to copy.
struct ModelNode {
  bool directory = false;
  std::string path;  // "" is the model's own directory; "layers/layer_0.safetensors"
  uint64_t size = 0;
  bool listed = true;    // shown by readdir; views resolve by name only unless list_views
  std::string error;     // not empty: opening gives EIO; user.nexus.error
  std::string note;      // user.nexus.error of a file that can be read: why it has no layers, say
  int layer = -1;        // N of layer_N, -1 elsewhere
  uint64_t tensors = 0;  // how many the file holds, when known
  std::shared_ptr<Object> object;  // the bytes; null for a directory and for a literal
  std::string literal;             // the whole content of a tiny synthetic file ("" for .done)
};

enum class FindState { kFound, kAbsent, kPending };
struct FindResult {
  FindState state = FindState::kAbsent;
  ModelNode node;  // when kFound
};

// Thread safety: everything may be called from any thread.
class Model {
 public:
  virtual ~Model() = default;
  virtual const std::string& repo() const = 0;      // "org/name"
  virtual const std::string& revision() const = 0;  // as asked
  virtual const std::string& commit() const = 0;
  virtual bool restricted() const = 0;  // gated or private
  virtual int64_t mtime_s() const = 0;
  virtual std::string source() const = 0;  // the origin, redacted
  // Origin files are found at once. A name that may be a view is kPending until the headers are
  // read: call when_ready() and ask again.
  virtual FindResult find(const std::string& path) = 0;
  // Entries of a directory, by name; empty optional while pending.
  virtual std::optional<std::vector<ModelNode>> list(const std::string& directory) = 0;
  // Called once, soon or later, from any thread, when find() and list() no longer say pending.
  // Errors of single files are on their nodes. Returns a ticket for cancel_wait() (the callback
  // then gets no call).
  virtual uint64_t when_ready(std::function<void()> ready) = 0;
  virtual void cancel_wait(uint64_t ticket) = 0;
  // Trouble with the model as a whole (refused names, absent files in the index), one a line; or
  // "".
  virtual std::string error() const = 0;

  // For read-ahead by layers. None of them waits.
  // 0 where no layers are known.
  virtual int layer_count() const { return 0; }
  // Nothing where the node's bytes belong to no layer.
  virtual std::optional<LayerAccess> layer_access(const ModelNode&) const { return std::nullopt; }
  // The layers in the order in which the origin's files hold them; empty where none are known.
  virtual std::vector<int> file_order() const { return {}; }
  // The bytes of `layer` in that view; empty where there are none, or they cannot be had.
  virtual std::vector<LayerPiece> layer_pieces(LayerView, int /*layer*/) { return {}; }
};

}  // namespace nexus
