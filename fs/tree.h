// The namespace of the mount, without FUSE in it: which names exist below which directory.
//
//   /                      aliases, .hub, one-component models, organisations
//   /alias                 a model of the configuration
//   /X                     organisation or one-component model: a directory at once, the hub is
//   asked
//                          when a child is looked up or the directory is listed
//   /X@rev, /X/Y, /X/Y@rev a model ("/" in rev is written %2F)
//   /.hub/models--X--Y/{refs,snapshots,blobs}   huggingface_hub's cache layout
//
// Thread safety: every method may be called from any thread; callbacks come inline when the answer
// is known, else from the registry's or the model's threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/base/error.h"
#include "backend/model/model.h"
#include "fs/cancellation.h"

namespace nexus {
class Registry;
}

namespace nexus::fs {

inline constexpr char kMain[] = "main";  // the revision of a name without one

// Where the tree gets models from: the registry, or a test's own.
class Models {
 public:
  using Done = std::function<void(Result<std::shared_ptr<Model>>)>;
  struct Known {
    std::string repo, revision, commit;
  };
  virtual ~Models() = default;
  virtual uint64_t get(const std::string& repo, const std::string& revision, Done done) = 0;
  virtual uint64_t get_alias(const std::string& alias, Done done) = 0;
  virtual void cancel(uint64_t ticket) = 0;
  virtual std::shared_ptr<Model> mounted(const std::string& repo,
                                         const std::string& revision) const = 0;
  virtual bool is_alias(const std::string& name) const = 0;
  virtual std::vector<std::string> alias_names() const = 0;
  virtual std::vector<Known> known() const = 0;
  virtual std::vector<std::string> commits(const std::string& repo) const = 0;
  // As Registry::renew().
  virtual void renew(const std::shared_ptr<Model>& model, std::function<void()> done) = 0;
};

std::unique_ptr<Models> models_of(Registry& registry);

enum class NodeKind {
  kRoot,
  kName,      // /X: organisation or one-component model
  kModelDir,  // a model's own directory, or one inside it
  kModelFile,
  kHub,      // /.hub
  kHubRepo,  // /.hub/models--X--Y
  kHubRefs,  // refs, and directories below it
  kHubRef,   // a file whose text is the commit
  kHubSnapshots,
  kHubBlobs,  // always empty: snapshots hold files, not links
};

// One place in the tree. Immutable once published; shared by the tree, the inode table and handles.
struct Node {
  NodeKind kind = NodeKind::kRoot;
  std::string path;              // in the mount, without a leading '/': "org/name/config.json"
  std::string name;              // kName: X; hub directories: the repo; kHubRefs: see ref
  std::string ref;               // kHubRefs: path below refs, "" or "refs/pr"
  std::shared_ptr<Model> model;  // of model nodes and kHubRef
  ModelNode entry;               // of model nodes; entry.literal of kHubRef

  bool directory() const { return kind != NodeKind::kModelFile && kind != NodeKind::kHubRef; }
  bool restricted() const { return model && model->restricted(); }
  uint64_t size() const;   // bytes; 0 for directories
  uint64_t inode() const;  // st_ino: follows from the path alone, so it is the same after a restart
  // Whether the kernel may go on using what it knows of `other` for this node: same place, same
  // model at the same commit, same bytes.
  bool same(const Node& other) const;
};
using NodePtr = std::shared_ptr<const Node>;

struct TreeEntry {
  std::string name;
  bool directory = false;
  uint64_t inode = 0;
  NodePtr node;  // null where finding out would mean asking the hub
};

// Who asks. admit is called before each request to the hub for a model that is not mounted; what it
// returns is kept until the model is resolved, an error ends the operation.
struct Asker {
  std::function<Result<std::shared_ptr<void>>()> admit;
  std::shared_ptr<Cancellation> cancellation = std::make_shared<Cancellation>();
};

class Tree {
 public:
  explicit Tree(std::unique_ptr<Models> models);

  NodePtr root() const { return root_; }
  // As Registry::renew().
  void renew(const std::shared_ptr<Model>& model, std::function<void()> done) {
    models_->renew(model, std::move(done));
  }

  // kNotFound, and what the registry says. After cancellation->cancel() `done` may never be called.
  using Done = std::function<void(Result<NodePtr>)>;
  void lookup(const NodePtr& parent, const std::string& name, const Asker& asker, Done done);

  using ListDone = std::function<void(Result<std::vector<TreeEntry>>)>;
  void list(const NodePtr& directory, const Asker& asker, ListDone done);

 private:
  using ModelDone = Models::Done;

  void get_model(const std::string& repo, const std::string& revision, const Asker& asker,
                 ModelDone done);
  void lookup_in_root(const std::string& name, const Asker& asker, Done done);
  void lookup_in_name(const NodePtr& parent, const std::string& name, const Asker& asker,
                      Done done);
  void lookup_in_model(const std::shared_ptr<Model>& model, const std::string& directory,
                       const std::string& tree_path, const std::string& name, const Asker& asker,
                       Done done);
  void lookup_in_hub(const NodePtr& parent, const std::string& name, Done done);
  void lookup_in_refs(const NodePtr& parent, const std::string& name, const Asker& asker,
                      Done done);
  void lookup_in_snapshots(const NodePtr& parent, const std::string& name, const Asker& asker,
                           Done done);

  void list_root(ListDone done);
  void list_name(const NodePtr& directory, const Asker& asker, ListDone done);
  void list_model(const std::shared_ptr<Model>& model, const std::string& directory,
                  const std::string& tree_path, const Asker& asker, ListDone done);
  void list_hub(ListDone done);
  void list_refs(const NodePtr& directory, ListDone done);
  void list_snapshots(const NodePtr& directory, ListDone done);
  std::shared_ptr<Model> mounted_at(const std::string& repo, const std::string& commit) const;

  const std::unique_ptr<Models> models_;
  const NodePtr root_;
};

// "a%2Fb" -> "a/b" and back. Other percent signs stay as they are: no ref name may hold one of
// these.
std::string decode_revision(std::string_view text);
std::string encode_revision(std::string_view revision);
uint64_t inode_of_path(std::string_view path);
// The node of a model's own directory at `path`.
NodePtr model_root_node(std::string path, std::shared_ptr<Model> model);

}  // namespace nexus::fs
