"""Starts hub.py as a process and calls its control door: `hub.fault(...)`, `hub.bytes_sent(...)`."""
from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path


class HubClient:
    def __init__(self, *arguments: str) -> None:
        script = Path(__file__).with_name("hub.py")
        self._process = subprocess.Popen([sys.executable, str(script), "--exit-with-stdin", *arguments],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        port, cdn_port, self._control_port = map(int, self._process.stdout.readline().split())
        self.endpoint = f"http://127.0.0.1:{port}"
        self.cdn = f"http://localhost:{cdn_port}"

    def plain_url(self, name: str) -> str:
        return f"{self.endpoint}/plain/{name}"

    def __getattr__(self, op: str):
        if op.startswith("_"):
            raise AttributeError(op)

        def call(*args, **kwargs):
            body = json.dumps({"op": op, "args": args, "kwargs": kwargs}, default=str).encode()
            url = f"http://127.0.0.1:{self._control_port}/_ctl"
            with urllib.request.urlopen(url, body, timeout=300) as answer:
                reply = json.load(answer)
            if "error" in reply:
                raise RuntimeError(f"hub.{op}: {reply['error']}")
            return reply["result"]
        return call

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
