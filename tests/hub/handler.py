"""HTTP of the test hub: routes, headers, ranges, and the faults at their two places."""
from __future__ import annotations

import hashlib
import html
import http.server
import json
import os
import re
import time
import urllib.parse
from pathlib import Path

from faults import BODY_KINDS, REQUEST_KINDS, Fault
from repos import Commit, File, Repo

_PIECE = 1 << 18


class Refused(Exception):
    """Ends a request with a status; the hub's own way to say why is X-Error-Code."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.headers = status, dict(headers)
        if code:
            self.headers["X-Error-Code"] = code
        self.headers["X-Error-Message"] = message or code


class BaseHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format, *args):
        """The hub keeps its own log."""

    def reply(self, status: int, body: bytes, content_type: str, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": len(body),
                            **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_json(self, value, headers: dict | None = None) -> None:
        self.reply(200, json.dumps(value).encode(), "application/json; charset=utf-8", headers)

    def do_control(self) -> None:
        from hub import control
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.reply_json(control(self.server.hub, body))


class ControlHandler(BaseHandler):
    def do_POST(self):
        self.do_control()


class HubHandler(BaseHandler):
    def do_POST(self):
        if self.path == "/_ctl":
            self.do_control()
        else:
            self.reply(404, b"", "text/plain")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        split = urllib.parse.urlsplit(self.path)
        self.raw_path, self.query = split.path, urllib.parse.parse_qs(split.query)
        self.clean_path = urllib.parse.unquote(split.path)
        self.entry = {"server": self.server.name, "method": self.command, "path": self.clean_path,
                      "range": self.headers.get("Range"), "status": 0, "sent": 0, "query": split.query,
                      "authorization": "Authorization" in self.headers, "start_s": time.time()}
        self.server.hub.begin(self.entry)
        try:
            if not self.request_fault():
                self.route()
        except Refused as refused:
            self.reply(refused.status, b"", "text/plain", refused.headers)
        finally:
            self.server.hub.end(self.entry)

    def send_response(self, code, message=None):
        if hasattr(self, "entry"):
            self.entry["status"] = code
        super().send_response(code, message)

    # --- faults before the answer ---

    def request_fault(self) -> bool:
        """True when a fault has answered instead of the hub."""
        hub = self.server.hub
        for fault in hub.faults.take(REQUEST_KINDS, self.server.name, self.command, self.clean_path):
            params = fault.params
            if fault.kind == "stall_request":
                hub.faults.park(fault)
            elif fault.kind == "latency":
                fault.released.wait(params["ms"] / 1000)
            elif fault.kind == "drop":
                self.close_connection = True
                return True
            elif fault.kind == "status":
                self.reply(params["status"], params.get("text", "").encode(),
                           params.get("content_type", "text/plain"), params.get("headers"))
                return True
            elif fault.kind == "html":
                self.reply(200, b"<html><body>Please log in to this network.</body></html>", "text/html")
                return True
            elif fault.kind == "redirect":
                self.reply(params.get("status", 302), b"", "text/plain", {"Location": params["location"]})
                return True
            elif fault.kind == "loop":
                self.reply(302, b"", "text/plain", {"Location": f"{self.raw_path}?again={fault.hits}"})
                return True
        return False

    # --- routes ---

    def route(self) -> None:
        parts = [urllib.parse.unquote(part) for part in self.raw_path.split("/")[1:]]
        if self.server.name == "cdn":
            self.route_cdn(parts)
        elif parts[0] == "plain" and len(parts) >= 3:
            self.route_plain(parts[1], "/".join(parts[2:]))
        elif parts[:2] == ["api", "models"]:
            self.route_api(parts[2:])
        elif "resolve" in parts[1:3]:
            at = parts.index("resolve", 1)
            repo = self.authorised("/".join(parts[:at]), "resolve")
            commit = self.commit_at(repo, parts[at + 1])
            self.route_resolve(repo, commit, "/".join(parts[at + 2 :]))
        else:
            raise Refused(404)

    def authorised(self, repo_id: str, door: str) -> Repo:
        store, given = self.server.hub.store, self.headers.get("Authorization")
        token = given.removeprefix("Bearer ") if given else None
        if token is not None and token not in self.server.hub.tokens:
            raise Refused(401, message="Invalid credentials in Authorization header")
        if repo_id in store.renamed:
            raise Refused(307, Location=self.path.replace(repo_id, store.renamed[repo_id], 1))
        repo = store.repos.get(repo_id)
        if repo is None or (repo.private and token is None):
            # The real hub does not tell strangers whether a repository exists.
            raise Refused(404 if token else 401, "RepoNotFound")
        if token is None and (repo.gated == "all" or (repo.gated == "resolve" and door == "resolve")):
            raise Refused(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        return repo

    @staticmethod
    def commit_at(repo: Repo, revision: str) -> Commit:
        commit = repo.resolve(revision)
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def route_api(self, parts: list[str]) -> None:
        for width in (2, 1):
            rest = parts[width:]
            if not rest or rest[0] in ("revision", "tree", "refs"):
                break
        repo_id = "/".join(parts[:width])
        repo = self.authorised(repo_id, "api")
        if rest[:1] == ["refs"]:
            branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha}
                        for ref, sha in repo.refs.items() if not ref.startswith("refs/")]
            self.reply_json({"branches": branches, "tags": [], "converts": []})
            return
        commit = self.commit_at(repo, rest[1] if len(rest) > 1 else "main")
        if rest[:1] == ["tree"]:
            self.reply_tree(repo, commit)
        else:
            blobs = self.server.hub.info_has_sizes and self.query.get("blobs", [""])[0] in ("true", "True", "1")
            self.reply_json(repo.info(commit, blobs), {"X-Repo-Commit": commit.sha})

    def reply_tree(self, repo: Repo, commit: Commit) -> None:
        entries = repo.tree(commit)
        if self.query.get("recursive", [""])[0] not in ("true", "True", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"]]
        page = min(self.server.hub.page_size, int(self.query.get("limit", ["1000"])[0]))
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {"X-Repo-Commit": commit.sha}
        if start + page < len(entries):
            query = urllib.parse.urlencode({k: v[0] for k, v in self.query.items()} | {"cursor": start + page})
            headers["Link"] = f'<http://{self.headers["Host"]}{self.raw_path}?{query}>; rel="next"'
        self.reply_json(entries[start : start + page], headers)

    def route_resolve(self, repo: Repo, commit: Commit, name: str) -> None:
        file = commit.files.get(name)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit.sha})
        headers = {"X-Repo-Commit": commit.sha}
        if file.sha256 is None:
            self.send_file(file.path, f"{repo.id}/{name}", file.etag, headers)
            return
        faults = self.server.hub.faults.take({"etag"}, self.server.name, self.command, self.clean_path)
        etag = faults[0].params["etag"] if faults else file.etag
        location = self.server.hub.cdn_url(f"/cdn/{urllib.parse.quote(repo.id)}/{commit.sha}/{urllib.parse.quote(name)}")
        self.reply(302, b"", "text/plain", headers | {
            "Location": location, "Accept-Ranges": "bytes", "X-Linked-Size": file.head_size,
            "X-Linked-ETag": f'"{etag}"', "ETag": f'"{file.oid}"'})

    def route_cdn(self, parts: list[str]) -> None:
        if not self.server.hub.signature_valid(self.raw_path, self.query):
            raise Refused(403, message="Request has expired")
        at = next(i for i, part in enumerate(parts) if re.fullmatch("[0-9a-f]{40}", part))
        repo_id, name = "/".join(parts[1:at]), "/".join(parts[at + 1 :])
        file: File = self.server.hub.store.repos[repo_id].commits[parts[at]].files[name]
        # As behind the real hub, the store's own ETag has nothing to do with the hub's.
        self.send_file(file.path, f"{repo_id}/{name}", file.oid[:32], {})

    def route_plain(self, name: str, rest: str) -> None:
        if name not in self.server.hub.store.plain:
            raise Refused(404)
        directory, autoindex = self.server.hub.store.plain[name]
        path = directory / rest
        if rest and path.is_file():
            stat = path.stat()
            etag = hashlib.sha1(f"{stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
            self.send_file(path, f"{name}/{rest}", etag, {})
        elif not rest and autoindex:
            links = "".join(f'<a href="{html.escape(p.name)}">{html.escape(p.name)}</a>\r\n'
                            for p in sorted(directory.iterdir()))
            self.reply(200, f"<html><body><h1>Index of /</h1><pre><a href=\"../\">../</a>\r\n{links}</pre></body></html>"
                       .encode(), "text/html")
        else:
            raise Refused(403 if not rest else 404)

    # --- file bodies ---

    def send_file(self, path: Path, name: str, etag: str, headers: dict) -> None:
        size = path.stat().st_size
        taken = self.server.hub.faults.take(BODY_KINDS, self.server.name, self.command, self.clean_path)
        faults = {fault.kind: fault for fault in taken}
        first, last = self.wanted_range(size)
        if "ignore_range" in faults:
            first, last = 0, size - 1
            partial = False
        else:
            partial = "Range" in self.headers
        length = announced = last - first + 1
        if "truncated" in faults:
            length = announced = length // 2
        if "long" in faults:
            announced = length + faults["long"].params.get("extra", 1000)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes", **headers,
                   "ETag": f'"{faults["etag"].params["etag"] if "etag" in faults else etag}"',
                   "Content-Length": str(announced)}
        if partial:
            shift, more = int("wrong_range" in faults), int("wrong_total" in faults)
            if "no_range" not in faults:
                headers["Content-Range"] = f"bytes {first + shift}-{last + shift}/{size + more}"
        if "chunked" in faults:
            del headers["Content-Length"]
            headers["Transfer-Encoding"] = "chunked"
        self.send_response(206 if partial else 200)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.flush()
            with open(path, "rb") as file:
                if "chunked" in faults:
                    self.send_chunked(file, name, first, length, faults["chunked"].params)
                else:
                    self.send_body(file, name, first, length, announced, faults)

    def send_chunked(self, file, name: str, first: int, length: int, params: dict) -> None:
        data = os.pread(file.fileno(), max(0, length - params.get("less", 0)), first) + b"\xee" * params.get("more", 0)
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            self.connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.connection.sendall(b"0\r\n\r\n")
        self.server.hub.count_sent(name, self.entry, len(data))

    def wanted_range(self, size: int) -> tuple[int, int]:
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "bytes=0-"))
        if match is None or match.group(1) == match.group(2) == "":
            raise Refused(416, **{"Content-Range": f"bytes */{size}"})
        first, last = match.groups()
        if first == "":
            return max(0, size - int(last)), size - 1
        if "Range" in self.headers and int(first) >= size:
            raise Refused(416, **{"Content-Range": f"bytes */{size}"})
        return int(first), min(int(last), size - 1) if last else size - 1

    def send_body(self, file, name: str, first: int, length: int, announced: int,
                  faults: dict[str, Fault]) -> None:
        end = first + (length // 2 if "short" in faults else length)
        stall = faults.get("stall")
        stall_at = first + stall.params.get("after", 0) if stall else None
        flip_at = faults["flip"].params.get("at", 0) if "flip" in faults else None
        zero_at = faults["zero"].params.get("at", 0) if "zero" in faults else None
        rate = faults["rate"].params["bytes_s"] if "rate" in faults else None
        offset, start = first, time.monotonic()
        while offset < end or stall_at is not None:
            if stall_at is not None and offset >= min(stall_at, end):
                self.server.hub.faults.park(stall)
                stall_at = None
                continue
            piece = min(end, stall_at or end) - offset
            if rate:
                piece = min(piece, _PIECE)
                ahead_s = (offset - first) / rate - (time.monotonic() - start)
                if ahead_s > 0:
                    faults["rate"].released.wait(ahead_s)
            if flip_at is not None and offset <= flip_at < offset + piece:
                piece = min(piece, _PIECE)
                data = bytearray(os.pread(file.fileno(), piece, offset))
                if flip_at < offset + piece:
                    data[flip_at - offset] ^= 0xFF
                self.connection.sendall(data)
                sent = len(data)
            elif zero_at is not None and offset + piece > zero_at:
                piece = min(piece, _PIECE)
                data = os.pread(file.fileno(), piece, offset)
                true = min(len(data), max(0, zero_at - offset))
                self.connection.sendall(data[:true] + bytes(len(data) - true))
                sent = len(data)
            else:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), offset, min(piece, 1 << 24))
            offset += sent
            self.server.hub.count_sent(name, self.entry, sent)
        if "short" in faults:
            self.close_connection = True
        elif announced > length:
            self.connection.sendall(b"\xee" * (announced - length))
