#include "fs/tree.h"

#include <map>
#include <set>
#include <utility>

#include "backend/origin/origin.h"

namespace nexus::fs {

namespace {

constexpr char kHubName[] = ".hub";
// A model that says "ready" and then "pending" again this often is broken.
constexpr int kReadyTriesMax = 8;

std::string join(const std::string& directory, const std::string& name) {
  return directory.empty() ? name : directory + "/" + name;
}

std::string last_component(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

NodePtr model_node(std::string tree_path, std::shared_ptr<Model> model, ModelNode entry) {
  auto node = std::make_shared<Node>();
  node->kind = entry.directory ? NodeKind::kModelDir : NodeKind::kModelFile;
  node->path = std::move(tree_path);
  node->model = std::move(model);
  node->entry = std::move(entry);
  return node;
}

NodePtr plain_node(NodeKind kind, std::string path, std::string name = "") {
  auto node = std::make_shared<Node>();
  node->kind = kind;
  node->path = std::move(path);
  node->name = std::move(name);
  return node;
}

// "name@rev" -> (name, rev); without '@' the revision is empty. False: not a legal way to name a
// model.
bool split_revision(const std::string& text, std::string* name, std::string* revision) {
  const size_t at = text.find('@');
  *name = text.substr(0, at);
  revision->clear();
  if (at == std::string::npos) return true;
  *revision = decode_revision(std::string_view(text).substr(at + 1));
  if (revision->empty() || revision->size() > 255) return false;
  for (const char c : *revision) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= ' ' || byte == 0x7f || byte == '?' || byte == '#' || byte == '\\') return false;
  }
  // A ref cannot hold these, and a URL made from them would leave the repo.
  return valid_model_path(*revision);
}

}  // namespace

NodePtr model_root_node(std::string path, std::shared_ptr<Model> model) {
  ModelNode entry;
  entry.directory = true;
  return model_node(std::move(path), std::move(model), std::move(entry));
}

Tree::Tree(std::unique_ptr<Models> models)
    : models_(std::move(models)), root_(plain_node(NodeKind::kRoot, "")) {}

void Tree::lookup(const NodePtr& parent, const std::string& name, const Asker& asker, Done done) {
  // The kernel never sends these; they must not reach a path or a URL.
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos) {
    return done(fail(Code::kNotFound, name));
  }
  switch (parent->kind) {
    case NodeKind::kRoot:
      return lookup_in_root(name, asker, std::move(done));
    case NodeKind::kName:
      return lookup_in_name(parent, name, asker, std::move(done));
    case NodeKind::kModelDir:
      return lookup_in_model(parent->model, parent->entry.path, parent->path, name, asker,
                             std::move(done));
    case NodeKind::kHub:
    case NodeKind::kHubRepo:
      return lookup_in_hub(parent, name, std::move(done));
    case NodeKind::kHubRefs:
      return lookup_in_refs(parent, name, asker, std::move(done));
    case NodeKind::kHubSnapshots:
      return lookup_in_snapshots(parent, name, asker, std::move(done));
    case NodeKind::kModelFile:
    case NodeKind::kHubRef:
    case NodeKind::kHubBlobs:
      return done(fail(Code::kNotFound, join(parent->path, name)));
  }
}

void Tree::list(const NodePtr& directory, const Asker& asker, ListDone done) {
  switch (directory->kind) {
    case NodeKind::kRoot:
      return list_root(std::move(done));
    case NodeKind::kName:
      return list_name(directory, asker, std::move(done));
    case NodeKind::kModelDir:
      return list_model(directory->model, directory->entry.path, directory->path, asker,
                        std::move(done));
    case NodeKind::kHub:
      return list_hub(std::move(done));
    case NodeKind::kHubRepo: {
      std::vector<TreeEntry> entries;
      for (const auto& [name, kind] :
           {std::pair{"blobs", NodeKind::kHubBlobs}, std::pair{"refs", NodeKind::kHubRefs},
            std::pair{"snapshots", NodeKind::kHubSnapshots}}) {
        auto node = plain_node(kind, join(directory->path, name), directory->name);
        entries.push_back({name, true, node->inode(), node});
      }
      return done(std::move(entries));
    }
    case NodeKind::kHubRefs:
      return list_refs(directory, std::move(done));
    case NodeKind::kHubSnapshots:
      return list_snapshots(directory, std::move(done));
    case NodeKind::kHubBlobs:
      return done(std::vector<TreeEntry>{});
    case NodeKind::kModelFile:
    case NodeKind::kHubRef:
      return done(fail(Code::kInvalid, directory->path + ": not a directory"));
  }
}

void Tree::get_model(const std::string& repo, const std::string& revision, const Asker& asker,
                     ModelDone done) {
  if (auto model = models_->mounted(repo, revision)) return done(std::move(model));
  std::shared_ptr<void> admitted;
  if (asker.admit) {
    auto result = asker.admit();
    if (!result) return done(fail(result.error(), "look up " + repo));
    admitted = std::move(*result);
  }
  const uint64_t step = asker.cancellation->begin_step();
  const uint64_t ticket =
      models_->get(repo, revision, [admitted, done = std::move(done)](auto model) mutable {
        admitted.reset();
        done(std::move(model));
      });
  asker.cancellation->set(step, [models = models_.get(), ticket] { models->cancel(ticket); });
}

void Tree::lookup_in_root(const std::string& name, const Asker& asker, Done done) {
  if (models_->is_alias(name)) {
    const uint64_t step = asker.cancellation->begin_step();
    const uint64_t ticket = models_->get_alias(name, [name, done = std::move(done)](auto model) {
      if (!model) return done(fail(model.error(), name));
      done(model_root_node(name, std::move(*model)));
    });
    asker.cancellation->set(step, [models = models_.get(), ticket] { models->cancel(ticket); });
    return;
  }
  if (name == kHubName) return done(plain_node(NodeKind::kHub, name));
  std::string repo, revision;
  if (!split_revision(name, &repo, &revision) || !valid_repo_name(repo)) {
    return done(fail(Code::kNotFound, name));
  }
  if (revision.empty()) return done(plain_node(NodeKind::kName, name, name));
  get_model(repo, revision, asker, [name, done = std::move(done)](auto model) {
    if (!model) return done(fail(model.error(), name));
    done(model_root_node(name, std::move(*model)));
  });
}

void Tree::lookup_in_name(const NodePtr& parent, const std::string& name, const Asker& asker,
                          Done done) {
  const std::string path = join(parent->path, name);
  std::string component, revision;
  const bool with_revision = name.find('@') != std::string::npos;
  const bool legal = split_revision(name, &component, &revision) &&
                     valid_repo_name(parent->name + "/" + component);
  auto found_repo = [path, done](const std::shared_ptr<Model>& model) {
    done(model_root_node(path, model));
  };
  // What is mounted already answers without the hub. A one-component model that is mounted answers
  // for all its children: else each file it lacks would cost a request for a model of that name.
  if (legal) {
    if (auto model =
            models_->mounted(parent->name + "/" + component, with_revision ? revision : kMain)) {
      return found_repo(model);
    }
  }
  if (auto model = models_->mounted(parent->name, kMain)) {
    return lookup_in_model(model, "", parent->path, name, asker, std::move(done));
  }
  // The file `name` of the one-component model, after the hub had no model parent/name.
  auto as_file = [this, parent, path, name, asker, done](Error first) {
    get_model(parent->name, kMain, asker, [=, this](auto model) {
      if (model) return lookup_in_model(*model, "", parent->path, name, asker, done);
      const bool first_is_final =
          first.code != Code::kNotFound || model.error().code == Code::kNotFound;
      done(fail(first_is_final ? first : model.error(), path));
    });
  };
  if (!legal) return as_file(Error{Code::kNotFound, "no such file"});
  get_model(parent->name + "/" + component, with_revision ? revision : kMain, asker,
            [found_repo, as_file, done, path, with_revision](auto model) {
              if (model) return found_repo(*model);
              const Code code = model.error().code;
              // Out of reach is no reason to give up: the one-component model may be known here.
              if (with_revision || code == Code::kCancelled || code == Code::kLimit) {
                return done(fail(model.error(), path));
              }
              as_file(model.error());
            });
}

void Tree::lookup_in_model(const std::shared_ptr<Model>& model, const std::string& directory,
                           const std::string& tree_path, const std::string& name,
                           const Asker& asker, Done done) {
  struct Attempt : std::enable_shared_from_this<Attempt> {
    std::shared_ptr<Model> model;
    std::string path, tree_path;
    std::shared_ptr<Cancellation> cancellation;
    Done done;
    int tries = 0;
    void run() {
      cancellation->begin_step();  // the wait that ended holds the model no longer
      FindResult found = model->find(path);
      if (found.state == FindState::kFound) {
        return done(model_node(tree_path, model, std::move(found.node)));
      }
      if (found.state == FindState::kAbsent) return done(fail(Code::kNotFound, tree_path));
      if (++tries > kReadyTriesMax) {
        return done(fail(Code::kOrigin, tree_path + ": the model's headers cannot be read"));
      }
      const uint64_t step = cancellation->begin_step();
      const uint64_t ticket = model->when_ready([self = shared_from_this()] { self->run(); });
      cancellation->set(step, [model = model, ticket] { model->cancel_wait(ticket); });
    }
  };
  auto attempt = std::make_shared<Attempt>();
  attempt->model = model;
  attempt->path = join(directory, name);
  attempt->tree_path = join(tree_path, name);
  attempt->cancellation = asker.cancellation;
  attempt->done = std::move(done);
  attempt->run();
}

void Tree::list_model(const std::shared_ptr<Model>& model, const std::string& directory,
                      const std::string& tree_path, const Asker& asker, ListDone done) {
  struct Attempt : std::enable_shared_from_this<Attempt> {
    std::shared_ptr<Model> model;
    std::string directory, tree_path;
    std::shared_ptr<Cancellation> cancellation;
    ListDone done;
    int tries = 0;
    void run() {
      cancellation->begin_step();  // the wait that ended holds the model no longer
      if (auto listed = model->list(directory)) {
        std::vector<TreeEntry> entries;
        for (ModelNode& found : *listed) {
          if (!found.listed) continue;
          const std::string name = last_component(found.path);
          auto node = model_node(join(tree_path, name), model, std::move(found));
          entries.push_back({name, node->directory(), node->inode(), node});
        }
        return done(std::move(entries));
      }
      if (++tries > kReadyTriesMax) {
        return done(fail(Code::kOrigin, tree_path + ": the model's headers cannot be read"));
      }
      const uint64_t step = cancellation->begin_step();
      const uint64_t ticket = model->when_ready([self = shared_from_this()] { self->run(); });
      cancellation->set(step, [model = model, ticket] { model->cancel_wait(ticket); });
    }
  };
  auto attempt = std::make_shared<Attempt>();
  attempt->model = model;
  attempt->directory = directory;
  attempt->tree_path = tree_path;
  attempt->cancellation = asker.cancellation;
  attempt->done = std::move(done);
  attempt->run();
}

void Tree::list_root(ListDone done) {
  std::set<std::string> aliases;
  for (auto& alias : models_->alias_names()) aliases.insert(alias);
  std::set<std::string> names;
  std::set<std::string> pinned;  // name@rev
  for (const auto& known : models_->known()) {
    const size_t slash = known.repo.find('/');
    const std::string name = known.repo.substr(0, slash);
    if (slash == std::string::npos && known.revision != kMain) {
      pinned.insert(name + "@" + encode_revision(known.revision));
    } else if (!aliases.count(name)) {
      names.insert(name);
    }
  }
  std::vector<TreeEntry> entries;
  const NodePtr hub = plain_node(NodeKind::kHub, kHubName);
  entries.push_back({kHubName, true, hub->inode(), hub});
  for (const auto& alias : aliases) entries.push_back({alias, true, inode_of_path(alias), nullptr});
  for (const auto& name : names) {
    const NodePtr node = plain_node(NodeKind::kName, name, name);
    entries.push_back({name, true, node->inode(), node});
  }
  for (const auto& name : pinned) entries.push_back({name, true, inode_of_path(name), nullptr});
  done(std::move(entries));
}

void Tree::list_name(const NodePtr& directory, const Asker& asker, ListDone done) {
  get_model(directory->name, kMain, asker, [this, directory, asker, done](auto model) {
    if (model) return list_model(*model, "", directory->path, asker, done);
    if (model.error().code == Code::kCancelled) return done(fail(model.error(), directory->path));
    std::vector<TreeEntry> entries;
    std::set<std::string> names;
    for (const auto& known : models_->known()) {
      const size_t slash = known.repo.find('/');
      if (slash == std::string::npos || known.repo.substr(0, slash) != directory->name) continue;
      std::string name = known.repo.substr(slash + 1);
      if (known.revision != kMain) name += "@" + encode_revision(known.revision);
      if (!names.insert(name).second) continue;
      const std::string path = join(directory->path, name);
      auto mounted = models_->mounted(known.repo, known.revision);
      entries.push_back({name, true, inode_of_path(path),
                         mounted ? model_root_node(path, std::move(mounted)) : nullptr});
    }
    // An organisation that nobody asked for yet is empty; a hub out of reach is an error only when
    // nothing is known.
    if (entries.empty() && model.error().code != Code::kNotFound &&
        model.error().code != Code::kAccess) {
      return done(fail(model.error(), directory->path));
    }
    done(std::move(entries));
  });
}

}  // namespace nexus::fs
