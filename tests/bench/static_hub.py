"""nginx as a hub and its CDN: model info as a static file, weights by sendfile from a second port."""
from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from repos import Repo, read_commit  # noqa: E402

CONFIG = """
daemon off;
worker_processes 2;
user root;
pid {work}/nginx.pid;
error_log {work}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format ranges '$server_port $request_method $status $body_bytes_sent $uri "$http_range"';
    access_log {work}/access.log ranges;
    client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/fastcgi;
    uwsgi_temp_path {work}/uwsgi; scgi_temp_path {work}/scgi;
    sendfile on; sendfile_max_chunk 1m; tcp_nopush on; tcp_nodelay on;
    keepalive_requests 100000;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{hub_port} reuseport;
        location ~ ^/api/models/{repo}(/revision/[^/]+)?$ {{
            default_type application/json;
            add_header X-Repo-Commit {commit};
            try_files /info.json =404;
            root {work};
        }}
{files}
    }}
    server {{
        listen 127.0.0.1:{cdn_port} reuseport;
        location / {{ root {model}; {limit} }}
    }}
}}
"""
WEIGHT = """        location ~ ^/{repo}/resolve/[^/]+/{name}$ {{
            add_header X-Repo-Commit {commit}; add_header X-Linked-Size {size};
            add_header X-Linked-ETag '"{etag}"'; add_header Accept-Ranges bytes;
            return 302 http://localhost:{door_port}/{name}?sig=static&exp=9999999999;
        }}"""
SMALL = """        location ~ ^/{repo}/resolve/[^/]+/{name}$ {{
            add_header X-Repo-Commit {commit}; add_header X-Linked-ETag '"{etag}"';
            alias {model}/{name};
        }}"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Traffic:
    requests: int
    body_bytes: int


class StaticHub:
    def __init__(self, work: Path, repo: str, model: Path, rate: str = "", delay_ms: float = 0) -> None:
        """`rate`: of each connection to the CDN, as nginx writes it ("40m"); `delay_ms`: its round trip."""
        work.mkdir(parents=True, exist_ok=True)
        commit = read_commit(model)
        entry = Repo(repo, {commit.sha: commit}, {"main": commit.sha})
        (work / "info.json").write_text(json.dumps(entry.info(commit, blobs=True)))
        hub_port, self.cdn_port = free_port(), free_port()
        self._line, self.door_port = None, self.cdn_port
        if delay_ms:
            proxy = work / "delay_proxy"
            source = Path(__file__).with_name("delay_proxy.cc")
            subprocess.run(["c++", "-std=c++20", "-O2", "-o", str(proxy), str(source)], check=True)
            self._line = subprocess.Popen([str(proxy), str(self.cdn_port), str(delay_ms)], stdout=subprocess.PIPE, text=True)
            self.door_port = int(self._line.stdout.readline())
        files = [(WEIGHT if file.sha256 else SMALL).format(
            repo=repo, name=name, commit=commit.sha, size=file.size, etag=file.etag, door_port=self.door_port, model=model)
            for name, file in commit.files.items()]
        (work / "nginx.conf").write_text(CONFIG.format(
            work=work, hub_port=hub_port, cdn_port=self.cdn_port, repo=repo, commit=commit.sha, model=model,
            limit=f"limit_rate {rate};" if rate else "", files="\n".join(files)))
        self.endpoint, self._log, self._seen = f"http://127.0.0.1:{hub_port}", work / "access.log", 0
        self._nginx = subprocess.Popen(["nginx", "-p", str(work), "-c", str(work / "nginx.conf")],
                                       stdin=subprocess.DEVNULL)
        self._wait_ready(f"{self.endpoint}/api/models/{repo}")
        self.traffic()

    def _wait_ready(self, url: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(url).close()
                return
            except OSError:
                if self._nginx.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def cdn_url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.door_port}/{name}"

    def traffic(self) -> Traffic:
        """Since the last call: requests, and bytes of bodies that the CDN port sent."""
        with open(self._log) as log:
            log.seek(self._seen)
            lines = log.readlines()
            self._seen = log.tell()
        fields = [line.split(" ") for line in lines]
        return Traffic(len(fields), sum(int(f[3]) for f in fields if f[0] == str(self.cdn_port)))

    def close(self) -> None:
        for process in filter(None, (self._line, self._nginx)):
            process.terminate()
            process.wait()
