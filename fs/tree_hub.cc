// The part of the tree below .hub: what huggingface_hub expects of HF_HUB_CACHE.
#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "backend/origin/origin.h"
#include "fs/tree.h"

namespace nexus::fs {

namespace {

constexpr char kRepoPrefix[] = "models--";

// "models--org--name" -> "org/name"; "" when it is no such name. Repo names hold no "--".
std::string repo_of(const std::string& name) {
  if (name.rfind(kRepoPrefix, 0) != 0) return "";
  std::string repo = name.substr(sizeof kRepoPrefix - 1);
  const size_t separator = repo.find("--");
  if (separator != std::string::npos) repo.replace(separator, 2, "/");
  return valid_repo_name(repo) ? repo : "";
}

std::string directory_of(const std::string& repo) {
  std::string name = repo;
  const size_t slash = name.find('/');
  if (slash != std::string::npos) name.replace(slash, 1, "--");
  return kRepoPrefix + name;
}

bool is_commit(const std::string& name) {
  return name.size() == 40 && std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

// The hub's own nested refs; other branches with a '/' have a directory once they are known.
bool is_hub_refs_directory(const std::string& ref) {
  return ref == "refs" || ref == "refs/pr" || ref == "refs/convert";
}

NodePtr hub_node(NodeKind kind, std::string path, std::string repo, std::string ref = "") {
  auto node = std::make_shared<Node>();
  node->kind = kind;
  node->path = std::move(path);
  node->name = std::move(repo);
  node->ref = std::move(ref);
  return node;
}

NodePtr ref_node(std::string path, std::shared_ptr<Model> model) {
  auto node = std::make_shared<Node>();
  node->kind = NodeKind::kHubRef;
  node->path = std::move(path);
  node->entry.literal = model->commit();
  node->entry.size = node->entry.literal.size();
  node->model = std::move(model);
  return node;
}

}  // namespace

void Tree::lookup_in_hub(const NodePtr& parent, const std::string& name, Done done) {
  const std::string path = parent->path + "/" + name;
  if (parent->kind == NodeKind::kHub) {
    const std::string repo = repo_of(name);
    if (repo.empty()) return done(fail(Code::kNotFound, path));
    return done(hub_node(NodeKind::kHubRepo, path, repo));
  }
  // A repo. ".no_exist" is absent: what does not exist is asked of the snapshot's directory.
  if (name == "refs") return done(hub_node(NodeKind::kHubRefs, path, parent->name));
  if (name == "snapshots") return done(hub_node(NodeKind::kHubSnapshots, path, parent->name));
  if (name == "blobs") return done(hub_node(NodeKind::kHubBlobs, path, parent->name));
  done(fail(Code::kNotFound, path));
}

void Tree::lookup_in_refs(const NodePtr& parent, const std::string& name, const Asker& asker,
                          Done done) {
  const std::string path = parent->path + "/" + name;
  const std::string ref = parent->ref.empty() ? name : parent->ref + "/" + name;
  if (!valid_model_path(ref) || ref.size() > 255) return done(fail(Code::kNotFound, path));
  if (is_hub_refs_directory(ref)) {
    return done(hub_node(NodeKind::kHubRefs, path, parent->name, ref));
  }
  for (const auto& known : models_->known()) {
    if (known.repo == parent->name && known.revision.rfind(ref + "/", 0) == 0) {
      return done(hub_node(NodeKind::kHubRefs, path, parent->name, ref));
    }
  }
  get_model(parent->name, ref, asker, [path, done = std::move(done)](auto model) {
    if (!model) return done(fail(model.error(), path));
    done(ref_node(path, std::move(*model)));
  });
}

void Tree::lookup_in_snapshots(const NodePtr& parent, const std::string& name, const Asker& asker,
                               Done done) {
  const std::string path = parent->path + "/" + name;
  if (!is_commit(name)) return done(fail(Code::kNotFound, path));
  // Usually the commit of a revision that was just read from refs/.
  if (auto model = mounted_at(parent->name, name)) return done(model_root_node(path, model));
  get_model(parent->name, name, asker, [path, done = std::move(done)](auto model) {
    if (!model) return done(fail(model.error(), path));
    done(model_root_node(path, std::move(*model)));
  });
}

std::shared_ptr<Model> Tree::mounted_at(const std::string& repo, const std::string& commit) const {
  if (auto model = models_->mounted(repo, commit)) return model;
  auto at_commit = [&](const std::string& revision) -> std::shared_ptr<Model> {
    auto model = models_->mounted(repo, revision);
    return model && model->commit() == commit ? model : nullptr;
  };
  if (auto model = at_commit(kMain)) return model;
  for (const auto& known : models_->known()) {
    if (known.repo != repo || known.commit != commit) continue;
    if (auto model = at_commit(known.revision)) return model;
  }
  return nullptr;
}

void Tree::list_hub(ListDone done) {
  std::set<std::string> repos;
  for (const auto& known : models_->known()) repos.insert(known.repo);
  std::vector<TreeEntry> entries;
  for (const auto& repo : repos) {
    const std::string name = directory_of(repo);
    if (repo_of(name) != repo) continue;
    auto node = hub_node(NodeKind::kHubRepo, ".hub/" + name, repo);
    entries.push_back({name, true, node->inode(), node});
  }
  done(std::move(entries));
}

void Tree::list_refs(const NodePtr& directory, ListDone done) {
  const std::string prefix = directory->ref.empty() ? "" : directory->ref + "/";
  std::map<std::string, TreeEntry> entries;
  for (const auto& known : models_->known()) {
    if (known.repo != directory->name || known.revision.rfind(prefix, 0) != 0) continue;
    const std::string rest = known.revision.substr(prefix.size());
    if (rest.empty() || is_commit(known.revision)) continue;  // a commit is its own ref
    const size_t slash = rest.find('/');
    const std::string name = rest.substr(0, slash);
    const std::string path = directory->path + "/" + name;
    NodePtr node;
    if (slash != std::string::npos) {
      node = hub_node(NodeKind::kHubRefs, path, directory->name, prefix + name);
    } else if (auto model = models_->mounted(known.repo, known.revision)) {
      node = ref_node(path, std::move(model));
    }
    entries[name] = TreeEntry{name, slash != std::string::npos, inode_of_path(path), node};
  }
  std::vector<TreeEntry> result;
  for (auto& [name, entry] : entries) result.push_back(std::move(entry));
  done(std::move(result));
}

void Tree::list_snapshots(const NodePtr& directory, ListDone done) {
  std::set<std::string> commits;
  for (auto& commit : models_->commits(directory->name)) {
    if (is_commit(commit)) commits.insert(commit);
  }
  std::vector<TreeEntry> entries;
  for (const auto& commit : commits) {
    const std::string path = directory->path + "/" + commit;
    auto model = mounted_at(directory->name, commit);
    entries.push_back({commit, true, inode_of_path(path),
                       model ? model_root_node(path, std::move(model)) : nullptr});
  }
  done(std::move(entries));
}

}  // namespace nexus::fs
