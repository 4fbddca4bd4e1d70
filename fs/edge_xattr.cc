// Extended attributes: sizes and errors of the protocol; what they say is in fs/xattrs.h.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "fs/edge.h"
#include "fs/errno_of.h"
#include "fs/xattrs.h"

namespace nexus::fs {

namespace {

// Size 0 asks how long the answer is.
void reply_sized(fuse_req_t request, const std::string& answer, size_t size) {
  if (size == 0) {
    fuse_reply_xattr(request, answer.size());
  } else if (size < answer.size()) {
    fuse_reply_err(request, ERANGE);
  } else {
    fuse_reply_buf(request, answer.data(), answer.size());
  }
}

}  // namespace

void Edge::getxattr(fuse_req_t request, fuse_ino_t ino, const char* name, size_t size) {
  // The kernel and ls ask for security.* and system.posix_acl_* all the time.
  if (std::strncmp(name, kXattrPrefix, sizeof kXattrPrefix - 1) != 0) {
    return (void)fuse_reply_err(request, ENODATA);
  }
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  if (!may_see(*node, fuse_req_ctx(request)->uid)) return (void)fuse_reply_err(request, EACCES);
  if (std::strcmp(name, kXattrHash) != 0) {
    const auto value = xattr_value(*node, name, options_.stats_json);
    if (!value) return (void)fuse_reply_err(request, ENODATA);
    return reply_sized(request, *value, size);
  }
  const auto object = node->entry.object;
  if (!object || !object->resident()) return (void)fuse_reply_err(request, ENODATA);
  constexpr size_t kHexDigits = 16;
  if (size == 0) return (void)fuse_reply_xattr(request, kHexDigits);
  const auto parked = parking_.park(request);
  if (!parked) return;
  cache_.content_hash(
      object, [self = shared_from_this(), parked, size, path = node->path](Result<uint64_t> hash) {
        const auto right = self->parking_.finish(parked);
        if (!right) return;
        if (!hash) {
          // Evicted since it was listed: then there is no hash.
          if (hash.error().code == Code::kNotFound)
            return (void)fuse_reply_err(parked->request, ENODATA);
          return self->reply_error(parked->request, path, hash.error());
        }
        char text[kHexDigits + 1];
        std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(*hash));
        reply_sized(parked->request, text, size);
      });
}

void Edge::listxattr(fuse_req_t request, fuse_ino_t ino, size_t size) {
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  if (!may_see(*node, fuse_req_ctx(request)->uid)) return (void)fuse_reply_err(request, EACCES);
  std::string list;
  for (const auto& name : xattr_names(*node)) {
    list += name;
    list += '\0';
  }
  reply_sized(request, list, size);
}

// Two names may be set, by the mount's owner and root: pinned (1 or 0) and prefetch (any value). On
// a model's directory pinned is for all of its files.
void Edge::setxattr(fuse_req_t request, fuse_ino_t ino, const std::string& name,
                    std::string_view value) {
  const bool pinned = name == kXattrPinned, prefetch = name == kXattrPrefetch;
  if (!pinned && !prefetch) return (void)fuse_reply_err(request, EROFS);
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  const uid_t uid = fuse_req_ctx(request)->uid;
  if (uid != 0 && uid != uid_) return (void)fuse_reply_err(request, EPERM);
  const auto object = node->entry.object;
  const bool whole_model = node->kind == NodeKind::kModelDir && node->entry.path.empty();
  if (!object && !(pinned && whole_model)) return (void)fuse_reply_err(request, EOPNOTSUPP);
  if (prefetch) {
    // Nobody waits for it, but it is wanted: its waiter keeps it from being cancelled.
    cache_.fetch(object, {0, object->size()}, kReadAhead, [](const Result<void>&) {});
    return (void)fuse_reply_err(request, 0);
  }
  const bool on = value == "1";
  if (!on && value != "0") return (void)fuse_reply_err(request, EINVAL);
  const auto parked = parking_.park(request);
  if (!parked) return;
  auto done = [self = shared_from_this(), parked, path = node->path, on](Result<void> changed) {
    const auto right = self->parking_.finish(parked);
    if (!right) return;
    // What is not pinned need not be unpinned.
    const bool was_off = !changed && !on && changed.error().code == Code::kNotFound;
    if (changed || was_off) return (void)fuse_reply_err(parked->request, 0);
    self->reply_error(parked->request, path, changed.error());
  };
  // The object's own name: splitted_model/ and .hub/ show objects that other names have made.
  const Pin pin = whole_model ? Pin{node->model->repo(), ""} : pin_of(object->spec());
  if (on) {
    cache_.pin(pin, std::move(done));
  } else {
    cache_.unpin(pin, std::move(done));
  }
}

}  // namespace nexus::fs
