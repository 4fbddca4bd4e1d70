// Which names exist below which directory, and which of them ask the hub.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "fs/tree.h"

namespace nexus::fs {
namespace {

const std::string kCommit(40, 'a');

class FakeModel final : public Model {
 public:
  FakeModel(std::string repo, std::string revision, std::vector<std::string> files)
      : repo_(std::move(repo)), revision_(std::move(revision)), files_(std::move(files)) {}
  const std::string& repo() const override { return repo_; }
  const std::string& revision() const override { return revision_; }
  const std::string& commit() const override { return kCommit; }
  bool restricted() const override { return false; }
  int64_t mtime_s() const override { return 1; }
  std::string source() const override { return "fake"; }
  std::string error() const override { return ""; }
  FindResult find(const std::string& path) override {
    FindResult result;
    result.node.path = path;
    if (std::count(files_.begin(), files_.end(), path)) {
      result.state = FindState::kFound;
      result.node.size = 10;
    } else if (std::any_of(files_.begin(), files_.end(),
                           [&](const auto& f) { return f.rfind(path + "/", 0) == 0; })) {
      result.state = FindState::kFound;
      result.node.directory = true;
    } else {
      result.state = pending ? FindState::kPending : FindState::kAbsent;
    }
    return result;
  }
  std::optional<std::vector<ModelNode>> list(const std::string& directory) override {
    if (pending) return std::nullopt;
    std::vector<ModelNode> nodes;
    for (const auto& file : files_) {
      const size_t slash = file.rfind('/');
      if ((slash == std::string::npos ? "" : file.substr(0, slash)) != directory) continue;
      nodes.emplace_back().path = file;
    }
    nodes.emplace_back().path = "hidden";
    nodes.back().listed = false;
    return nodes;
  }
  uint64_t when_ready(std::function<void()> ready) override {
    waiter = std::move(ready);
    return 1;
  }
  void cancel_wait(uint64_t) override { waiter = nullptr; }

  bool pending = false;
  std::function<void()> waiter;
  void add(const std::string& file) { files_.push_back(file); }

 private:
  const std::string repo_, revision_;
  std::vector<std::string> files_;
};

// Answers from a table, or holds answers back; counts what would go to the hub.
class FakeModels final : public Models {
 public:
  uint64_t get(const std::string& repo, const std::string& revision, Done done) override {
    asked.push_back(repo + "@" + revision);
    if (hold) {
      held = std::move(done);
      return 7;
    }
    const auto it = models.find(repo + "@" + revision);
    if (it == models.end()) {
      done(fail(errors.count(repo) ? errors[repo] : Code::kNotFound, repo));
    } else {
      done(std::shared_ptr<Model>(it->second));
    }
    return 7;
  }
  uint64_t get_alias(const std::string& alias, Done done) override {
    done(std::shared_ptr<Model>(models.at(alias)));
    return 8;
  }
  void cancel(uint64_t ticket) override { cancelled.push_back(ticket); }
  std::shared_ptr<Model> mounted(const std::string& repo,
                                 const std::string& revision) const override {
    if (!are_mounted) return nullptr;
    const auto it = models.find(repo + "@" + revision);
    return it == models.end() ? nullptr : it->second;
  }
  bool is_alias(const std::string& name) const override { return name == "mine"; }
  std::vector<std::string> alias_names() const override { return {"mine"}; }
  std::vector<Known> known() const override {
    std::vector<Known> result;
    for (const auto& [name, model] : models) {
      if (name != "mine") result.push_back({model->repo(), model->revision(), model->commit()});
    }
    return result;
  }
  std::vector<std::string> commits(const std::string&) const override { return {kCommit}; }
  void renew(const std::shared_ptr<Model>&, std::function<void()> done) override { done(); }

  std::shared_ptr<FakeModel> add(const std::string& repo, const std::string& revision,
                                 std::vector<std::string> files) {
    auto model = std::make_shared<FakeModel>(repo, revision, std::move(files));
    models[repo + "@" + revision] = model;
    return model;
  }

  std::map<std::string, std::shared_ptr<FakeModel>> models;
  std::map<std::string, Code> errors;
  std::vector<std::string> asked;
  std::vector<uint64_t> cancelled;
  bool are_mounted = false;
  bool hold = false;
  Done held;
};

class FsTree : public testing::Test {
 protected:
  FsTree() {
    auto models = std::make_unique<FakeModels>();
    models_ = models.get();
    tree_ = std::make_unique<Tree>(std::move(models));
    models_->add("org/llama", "main", {"config.json", "onnx/model.onnx"});
    models_->add("gpt2", "main", {"config.json"});
    models_->models["mine"] =
        std::make_shared<FakeModel>("mine", "main", std::vector<std::string>{"w"});
  }

  // Walks a path; the node, or what went wrong.
  Result<NodePtr> walk(const std::string& path) {
    NodePtr node = tree_->root();
    size_t begin = 0;
    while (begin <= path.size()) {
      const size_t end = std::min(path.find('/', begin), path.size());
      Result<NodePtr> next = fail(Code::kInvalid, "no answer");
      tree_->lookup(node, path.substr(begin, end - begin), asker_,
                    [&](Result<NodePtr> found) { next = std::move(found); });
      if (!next) return next;
      node = *next;
      begin = end + 1;
    }
    return node;
  }
  NodeKind kind(const std::string& path) {
    const auto node = walk(path);
    EXPECT_TRUE(node) << path << ": " << (node ? "" : node.error().what);
    return node ? (*node)->kind : NodeKind::kRoot;
  }
  Code error(const std::string& path) {
    const auto node = walk(path);
    EXPECT_FALSE(node) << path;
    return node ? Code::kInvalid : node.error().code;
  }
  std::vector<std::string> list(const std::string& path) {
    const NodePtr node = path.empty() ? tree_->root() : walk(path).value();
    std::vector<std::string> names;
    tree_->list(node, asker_, [&](Result<std::vector<TreeEntry>> entries) {
      if (!entries) return names.push_back(code_name(entries.error().code));
      for (const auto& entry : *entries) {
        names.push_back(entry.name);
        const std::string child = path.empty() ? entry.name : path + "/" + entry.name;
        EXPECT_EQ(entry.inode, inode_of_path(child)) << child;
      }
    });
    return names;
  }

  FakeModels* models_ = nullptr;
  std::unique_ptr<Tree> tree_;
  Asker asker_;
};

using Names = std::vector<std::string>;

TEST_F(FsTree, ALegalNameIsADirectoryWithoutAskingTheHub) {
  EXPECT_EQ(kind("anything"), NodeKind::kName);
  EXPECT_EQ(models_->asked, Names{});
}

TEST_F(FsTree, NamesThatNoRepoCanHaveAreAbsentWithoutAskingTheHub) {
  for (const auto* name :
       {".Trash", ".git", "a b", "a--b", "-a", "a..b", "a@", "a@../b", "a@b c"}) {
    EXPECT_EQ(error(name), Code::kNotFound) << name;
  }
  EXPECT_EQ(models_->asked, Names{});
}

TEST_F(FsTree, AModelIsAskedForAtTheSecondComponent) {
  EXPECT_EQ(kind("org/llama"), NodeKind::kModelDir);
  EXPECT_EQ(models_->asked, Names{"org/llama@main"});
  EXPECT_EQ(kind("org/llama/config.json"), NodeKind::kModelFile);
  EXPECT_EQ(kind("org/llama/onnx"), NodeKind::kModelDir);
  EXPECT_EQ(kind("org/llama/onnx/model.onnx"), NodeKind::kModelFile);
  EXPECT_EQ(error("org/llama/nothing"), Code::kNotFound);
}

TEST_F(FsTree, AFileOfAOneComponentModelIsFoundWhenNoModelHasThatName) {
  EXPECT_EQ(kind("gpt2/config.json"), NodeKind::kModelFile);
  EXPECT_EQ(models_->asked, (Names{"gpt2/config.json@main", "gpt2@main"}));
  EXPECT_EQ(error("gpt2/absent"), Code::kNotFound);
}

TEST_F(FsTree, AMountedOneComponentModelAnswersForItsChildren) {
  models_->are_mounted = true;
  EXPECT_EQ(kind("gpt2/config.json"), NodeKind::kModelFile);
  EXPECT_EQ(error("gpt2/added_tokens.json"), Code::kNotFound);
  EXPECT_EQ(models_->asked, Names{});
}

TEST_F(FsTree, AHubOutOfReachDoesNotHideAKnownOneComponentModel) {
  models_->errors["gpt2/config.json"] = Code::kOffline;
  EXPECT_EQ(kind("gpt2/config.json"), NodeKind::kModelFile);
}

TEST_F(FsTree, AHubOutOfReachIsNotTheSameAsAbsent) {
  models_->errors["far/away"] = Code::kOffline;
  EXPECT_EQ(error("far/away"), Code::kOffline);
  models_->errors["far"] = Code::kOffline;
  EXPECT_EQ(error("far/other"), Code::kOffline);
}

TEST_F(FsTree, RevisionsAreSpelledWithAnAtSign) {
  models_->add("org/llama", "refs/pr/1", {"config.json"});
  models_->add("gpt2", "v1", {"config.json"});
  EXPECT_EQ(kind("org/llama@refs%2Fpr%2F1/config.json"), NodeKind::kModelFile);
  EXPECT_EQ(kind("gpt2@v1"), NodeKind::kModelDir);
  EXPECT_EQ(error("org/llama@gone"), Code::kNotFound);
}

TEST_F(FsTree, AnAliasIsAModel) {
  EXPECT_EQ(kind("mine/w"), NodeKind::kModelFile);
}

TEST_F(FsTree, RootListsAliasesHubOrganisationsAndOneComponentModels) {
  models_->add("gpt2", "a/b", {});
  EXPECT_EQ(list(""), (Names{".hub", "mine", "gpt2", "org", "gpt2@a%2Fb"}));
  EXPECT_EQ(models_->asked, Names{});
}

TEST_F(FsTree, ListingAnOrganisationShowsItsKnownModels) {
  models_->add("org/llama", "v2", {});
  EXPECT_EQ(list("org"), (Names{"llama", "llama@v2"}));
  EXPECT_EQ(list("gpt2"), Names{"config.json"});
  EXPECT_EQ(list("empty-org"), Names{});
}

TEST_F(FsTree, UnlistedViewsAreNotListed) {
  EXPECT_EQ(list("org/llama"), Names{"config.json"});
}

TEST_F(FsTree, APendingNameIsAskedAgainWhenTheModelIsReady) {
  auto model = models_->add("org/slow", "main", {});
  model->pending = true;
  const NodePtr directory = walk("org/slow").value();
  std::optional<Result<NodePtr>> answer;
  tree_->lookup(directory, "layer_0.pt", asker_, [&](Result<NodePtr> found) { answer = found; });
  ASSERT_FALSE(answer);
  model->pending = false;
  model->add("layer_0.pt");
  std::exchange(model->waiter, nullptr)();  // a model forgets whom it has told
  ASSERT_TRUE(answer && *answer);
  EXPECT_EQ((**answer)->path, "org/slow/layer_0.pt");
}

TEST_F(FsTree, CancellingEndsTheStepThatIsWaitedFor) {
  models_->hold = true;
  tree_->lookup(walk("org").value(), "llama", asker_, [](Result<NodePtr>) {});
  asker_.cancellation->cancel();
  EXPECT_EQ(models_->cancelled, std::vector<uint64_t>{7});
}

TEST_F(FsTree, WhoIsOverTheLimitIsNotPassedOnToTheHub) {
  asker_.admit = []() -> Result<std::shared_ptr<void>> { return fail(Code::kLimit, "too many"); };
  EXPECT_EQ(error("org/llama"), Code::kLimit);
  EXPECT_EQ(models_->asked, Names{});
  models_->are_mounted = true;
  EXPECT_EQ(kind("org/llama"), NodeKind::kModelDir);
}

TEST_F(FsTree, HubLayoutHoldsRefsAndSnapshots) {
  const std::string repo = ".hub/models--org--llama";
  models_->add("org/llama", "refs/pr/1", {"config.json"});
  models_->add("org/llama", kCommit, {"config.json"});
  EXPECT_EQ(kind(".hub"), NodeKind::kHub);
  EXPECT_EQ(kind(repo), NodeKind::kHubRepo);
  EXPECT_EQ(models_->asked, Names{});
  const auto ref = walk(repo + "/refs/main");
  ASSERT_TRUE(ref);
  EXPECT_EQ((*ref)->entry.literal, kCommit);
  EXPECT_EQ((*ref)->size(), 40u);
  EXPECT_EQ(kind(repo + "/refs/refs/pr/1"), NodeKind::kHubRef);
  EXPECT_EQ(error(repo + "/refs/gone"), Code::kNotFound);
  EXPECT_EQ(kind(repo + "/snapshots/" + kCommit + "/config.json"), NodeKind::kModelFile);
  EXPECT_EQ(list(repo), (Names{"blobs", "refs", "snapshots"}));
  EXPECT_EQ(list(repo + "/refs"), (Names{"main", "refs"}));
  EXPECT_EQ(list(repo + "/snapshots"), Names{kCommit});
  EXPECT_EQ(list(repo + "/blobs"), Names{});
  EXPECT_EQ(list(".hub"), (Names{"models--gpt2", "models--org--llama"}));
}

TEST_F(FsTree, HubLayoutKnowsWhatItDoesNotHaveWithoutAsking) {
  const std::string repo = ".hub/models--org--llama";
  for (const auto& path : {std::string(".hub/datasets--a--b"), std::string(".hub/.locks"),
                           std::string(".hub/version.txt"), std::string(".hub/models--a--b--c"),
                           repo + "/.no_exist", repo + "/snapshots/main", repo + "/blobs/x"}) {
    EXPECT_EQ(error(path), Code::kNotFound) << path;
  }
  EXPECT_EQ(models_->asked, Names{});
  EXPECT_EQ(kind(".hub/models--gpt2/refs/main"), NodeKind::kHubRef);
}

TEST_F(FsTree, ASnapshotOfAMountedRevisionNeedsNoRequest) {
  models_->are_mounted = true;
  EXPECT_EQ(kind(".hub/models--org--llama/snapshots/" + kCommit), NodeKind::kModelDir);
  EXPECT_EQ(models_->asked, Names{});
}

TEST_F(FsTree, InodeNumbersFollowFromThePath) {
  EXPECT_EQ(tree_->root()->inode(), 1u);
  EXPECT_EQ(walk("org/llama/config.json").value()->inode(), inode_of_path("org/llama/config.json"));
  EXPECT_NE(inode_of_path("gpt2"), inode_of_path("gpt3"));
}

}  // namespace
}  // namespace nexus::fs
