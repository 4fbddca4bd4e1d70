// Listing directories. The entries are taken when the directory is opened, so an offset keeps its
// meaning for as long as the handle lives.
#include <cerrno>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "fs/edge.h"
#include "fs/errno_of.h"

namespace nexus::fs {

void Edge::opendir(fuse_req_t request, fuse_ino_t ino, const fuse_file_info& info) {
  const auto inode = inodes_.get(ino);
  if (!inode) return (void)fuse_reply_err(request, ESTALE);
  const NodePtr node = inode->node();
  if (!may_see(*node, fuse_req_ctx(request)->uid)) return (void)fuse_reply_err(request, EACCES);
  const auto parked = parking_.park(request);
  if (!parked) return;
  tree_.list(node, asker_of(parked),
             [self = shared_from_this(), parked, inode, node,
              info](Result<std::vector<TreeEntry>> entries) {
               const auto right = self->parking_.finish(parked);
               if (!right) return;
               if (!entries) return self->reply_error(parked->request, node->path, entries.error());
               // A one-component model is met here for the first time.
               for (const auto& entry : *entries) {
                 if (entry.node && !entry.node->entry.path.empty() &&
                     !self->may_see(*entry.node, parked->uid)) {
                   return (void)fuse_reply_err(parked->request, EACCES);
                 }
               }
               auto handle = std::make_unique<DirectoryHandle>();
               handle->inode = inode;
               handle->entries = std::move(*entries);
               DirectoryHandle* raw = handle.get();
               fuse_file_info answer = info;
               answer.fh = reinterpret_cast<uint64_t>(raw);
               {
                 std::lock_guard lock(self->handles_mutex_);
                 self->directories_.emplace(raw, std::move(handle));
               }
               if (fuse_reply_open(parked->request, &answer) == 0) return;
               std::lock_guard lock(self->handles_mutex_);
               self->directories_.erase(raw);
             });
}

void Edge::readdir(fuse_req_t request, size_t size, off_t offset, const fuse_file_info& info,
                   bool plus) {
  const auto* handle = reinterpret_cast<const DirectoryHandle*>(info.fh);
  const uint64_t parent = handle->inode->nodeid;
  std::vector<char> buffer(size);
  size_t used = 0;
  std::vector<uint64_t> counted;  // lookups to take back when the reply does not arrive
  // Offset n means: continue at place n. Places 0 and 1 are "." and "..".
  const size_t end = handle->entries.size() + 2;
  for (size_t place = offset < 0 ? 0 : static_cast<size_t>(offset); place < end; ++place) {
    const auto next = static_cast<off_t>(place + 1);
    const TreeEntry* entry = place >= 2 ? &handle->entries[place - 2] : nullptr;
    const char* name = entry ? entry->name.c_str() : place == 0 ? "." : "..";
    fuse_entry_param param{};  // ino 0: an entry that the kernel has to look up
    param.attr.st_mode = !entry || entry->directory ? S_IFDIR : S_IFREG;
    const NodePtr own = handle->inode->node();
    if (entry) {
      param.attr.st_ino = entry->inode;
    } else {
      const size_t slash = own->path.rfind('/');
      const std::string above = slash == std::string::npos ? "" : own->path.substr(0, slash);
      param.attr.st_ino = place == 0 ? own->inode() : inode_of_path(above);
    }
    const size_t room = size - used;
    char* at = buffer.data() + used;
    size_t needed;
    if (!plus) {
      needed = fuse_add_direntry(request, at, room, name, &param.attr, next);
    } else {
      needed = fuse_add_direntry_plus(request, nullptr, 0, name, nullptr, 0);
      if (needed <= room) {
        if (entry && entry->node) {
          const auto inode = count_lookup(parent, entry->name, entry->node);
          param = entry_of(*inode, *entry->node);
          counted.push_back(inode->nodeid);
        }
        fuse_add_direntry_plus(request, at, room, name, &param, next);
      }
    }
    if (needed > room) break;
    used += needed;
  }
  if (fuse_reply_buf(request, used ? buffer.data() : nullptr, used) != 0) {
    for (const uint64_t nodeid : counted) inodes_.forget(nodeid, 1);
  }
}

void Edge::releasedir(fuse_req_t request, const fuse_file_info& info) {
  std::unique_ptr<DirectoryHandle> handle;
  {
    std::lock_guard lock(handles_mutex_);
    const auto it = directories_.find(reinterpret_cast<DirectoryHandle*>(info.fh));
    if (it != directories_.end()) {
      handle = std::move(it->second);
      directories_.erase(it);
    }
  }
  fuse_reply_err(request, 0);
}

}  // namespace nexus::fs
