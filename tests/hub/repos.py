"""What the test hub knows: repositories, their commits, refs and files.

A repository directory on disk is one commit; more come by `commit()`. Nothing here speaks HTTP.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".gguf", ".h5", ".onnx", ".msgpack", ".model"}
LFS_SIZE = 10_000_000
_DATE = "2024-06-01T12:00:00.000Z"


@dataclasses.dataclass
class File:
    """Identity as the hub tells it; `info_size` and `head_size` are the places where it may lie."""
    path: Path
    size: int
    oid: str
    sha256: str | None  # None: a plain git file
    info_size: int
    head_size: int

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    def entry(self) -> dict:
        entry = {"size": self.info_size, "blobId": self.oid}
        if self.sha256:
            entry["lfs"] = {"sha256": self.sha256, "size": self.info_size, "pointerSize": 135}
        return entry

    def tree_entry(self, name: str) -> dict:
        entry = {"type": "file", "oid": self.oid, "size": self.info_size, "path": name}
        if self.sha256:
            entry["lfs"] = {"oid": self.sha256, "size": self.info_size, "pointerSize": 135}
        return entry


@dataclasses.dataclass
class Commit:
    sha: str
    files: dict[str, File]
    # Siblings that no honest hub would list; appended to the answers as they are.
    extra_siblings: list[dict] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Repo:
    id: str
    commits: dict[str, Commit] = dataclasses.field(default_factory=dict)
    refs: dict[str, str] = dataclasses.field(default_factory=dict)  # "main", "v1", "refs/pr/1"
    gated: str | None = None  # "resolve": as the real hub, info is public; "all": info too
    private: bool = False

    def resolve(self, revision: str) -> Commit | None:
        if revision in self.refs:
            return self.commits[self.refs[revision]]
        if len(revision) >= 7:
            for sha, commit in self.commits.items():
                if sha.startswith(revision):
                    return commit
        return None

    def info(self, commit: Commit, blobs: bool) -> dict:
        siblings = [{"rfilename": name} | (file.entry() if blobs else {})
                    for name, file in sorted(commit.files.items())]
        gated = "manual" if self.gated else False
        return {"_id": "0" * 24, "id": self.id, "modelId": self.id, "sha": commit.sha,
                "lastModified": _DATE, "createdAt": _DATE, "private": self.private, "gated": gated,
                "disabled": False, "downloads": 0, "likes": 0, "tags": [],
                "siblings": siblings + commit.extra_siblings}

    @staticmethod
    def tree(commit: Commit) -> list[dict]:
        folders = {str(parent) for name in commit.files for parent in Path(name).parents}
        entries = [{"type": "directory", "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0, "path": f}
                   for f in folders - {"."}]
        entries += [file.tree_entry(name) for name, file in commit.files.items()]
        extra = [{"type": "file", "oid": "0" * 40, "size": e.get("size", 0), "path": e["rfilename"]}
                 for e in commit.extra_siblings]
        return sorted(entries, key=lambda e: e["path"]) + extra


_hashes: dict[tuple, tuple[str, str]] = {}


def _hash(path: Path, size: int, lfs: bool) -> tuple[str, str | None]:
    """(git oid, sha256). Kept by size and mtime: gigabyte files are read once a process."""
    key = (path, size, path.stat().st_mtime_ns)
    if key not in _hashes:
        git, sha = hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                sha.update(chunk)
                if not lfs:
                    git.update(chunk)
        if lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha.hexdigest()}\nsize {size}\n"
            git = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode())
        _hashes[key] = (git.hexdigest(), sha.hexdigest())
    oid, sha256 = _hashes[key]
    return oid, sha256 if lfs else None


def read_commit(directory: Path) -> Commit:
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            size = path.stat().st_size
            oid, sha256 = _hash(path, size, path.suffix in LFS_SUFFIXES or size > LFS_SIZE)
            files[str(path.relative_to(directory))] = File(path, size, oid, sha256, size, size)
    listing = json.dumps({name: file.etag for name, file in files.items()}, sort_keys=True)
    return Commit(hashlib.sha1(listing.encode()).hexdigest(), files)


class Store:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.plain: dict[str, tuple[Path, bool]] = {}  # base_url trees: directory, autoindex

    def add_root(self, root: Path) -> None:
        """root/name/<files> is a one-component repo; root/org/name/<files> any other."""
        for top in sorted(p for p in root.iterdir() if p.is_dir()):
            if any(p.is_file() for p in top.iterdir()):
                self.commit(top.name, str(top))
            else:
                for directory in sorted(p for p in top.iterdir() if p.is_dir()):
                    self.commit(f"{top.name}/{directory.name}", str(directory))

    def commit(self, repo: str, directory: str, refs: tuple | list = ("main",)) -> str:
        """Adds a commit made of `directory` and points `refs` at it."""
        commit = read_commit(Path(directory))
        entry = self.repos.setdefault(repo, Repo(repo))
        entry.commits[commit.sha] = commit
        for ref in refs:
            entry.refs[ref] = commit.sha
        return commit.sha

    def protect(self, repo: str, gated: str | None = None, private: bool = False) -> None:
        self.repos[repo].gated, self.repos[repo].private = gated, private

    def rename(self, old: str, new: str) -> None:
        """`old` answers with redirects from now on."""
        repo = self.repos[new] = self.repos.pop(old)
        repo.id = new
        self.renamed[old] = new

    def add_plain(self, name: str, directory: str, autoindex: bool = False) -> None:
        self.plain[name] = (Path(directory), autoindex)

    def lie(self, repo: str, file: str, info_size: int | None = None, head_size: int | None = None,
            sha256: str | None = None, revision: str = "main") -> None:
        entry = self.repos[repo].resolve(revision).files[file]
        entry.info_size = entry.info_size if info_size is None else info_size
        entry.head_size = entry.head_size if head_size is None else head_size
        entry.sha256 = sha256 or entry.sha256

    def extra_siblings(self, repo: str, siblings: list[dict], revision: str = "main") -> None:
        self.repos[repo].resolve(revision).extra_siblings = siblings
