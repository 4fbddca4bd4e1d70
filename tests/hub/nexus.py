"""A real `nexusfs` daemon on a real mountpoint, for tests and benchmarks.

NEXUS_BIN names the directory of `nexusfs` and `nexusctl` (default: build/bin of this checkout).
A mount that hangs is aborted through the kernel after `LIFETIME_S`, so that one stuck reader
fails its own test and not the run.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("NEXUS_BIN", REPO / "build" / "bin")).resolve()
# Bounds that only a hang reaches, also for a ThreadSanitizer build on a busy 2-core machine.
HANG_S = 120
LIFETIME_S = 1800


def poll(condition, what: str, timeout_s: float = HANG_S):
    """Waits for `condition()` to be true and returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)
    return value


def mount_device(mountpoint: Path) -> str | None:
    """`major:minor` of the topmost mount there, without touching the mount itself."""
    device = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[4] == str(mountpoint):
            device = fields[2]
    return device


def processes_with(argument: str, program: str = "nexusfs") -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue  # ended meanwhile
        if Path(words[0]).name == program and argument in words and state not in "ZX":
            found.append(int(entry.name))
    return found


class Mount:
    """One mountpoint, its cache directory and its log. Restarting keeps the cache."""

    def __init__(self, work: Path, *flags: str, endpoint: str | None = None, cache: Path | None = None,
                 config: dict | None = None, env: dict | None = None) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self.work, self.path = work.resolve(), work.resolve() / "mnt"
        self.cache = cache or self.work / "cache"
        self.log = self.work / "nexusfs.log"
        self.flags, self.endpoint, self.config = list(flags), endpoint, config
        self._watchdog: subprocess.Popen | None = None
        self.env = self._environment(env or {})

    def _environment(self, extra: dict) -> dict:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env["HOME"] = str(self.work)  # no configuration or token of the developer's own
        env.pop("XDG_CONFIG_HOME", None)
        for sanitizer in ("ASAN", "UBSAN", "TSAN", "LSAN"):
            options = env.get(f"{sanitizer}_OPTIONS", "")
            env[f"{sanitizer}_OPTIONS"] = f"{options}:log_path={self.work}/sanitizer"
        return env | extra

    def arguments(self) -> list[str]:
        arguments = [str(BIN / "nexusfs"), "mount", str(self.path), "--cache-dir", str(self.cache),
                     "--log-file", str(self.log)]
        if self.endpoint:
            arguments += ["--endpoint", self.endpoint]
        if self.config is not None:
            file = self.work / "config.toml"
            file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in self.config.items()))
            arguments += ["--config", str(file)]
        return arguments + self.flags

    def start(self) -> "Mount":
        if not mount_device(self.path):
            self.path.mkdir(exist_ok=True)
        if self._watchdog is None:
            self._start_watchdog()
        result = self.try_start()
        if result.returncode != 0:
            self.clean_up()
            raise RuntimeError(f"nexusfs mount: {result.returncode}: {result.stderr}\n{self.log_text()}")
        return self

    def try_start(self) -> subprocess.CompletedProcess:
        # Files, not pipes: a daemon that keeps its standard error must not keep us waiting.
        with open(self.work / "mount.out", "w+") as out:
            code = subprocess.run(self.arguments(), env=self.env, stdin=subprocess.DEVNULL, stdout=out,
                                  stderr=subprocess.STDOUT, timeout=HANG_S).returncode
            out.seek(0)
            return subprocess.CompletedProcess(self.arguments(), code, "", out.read())

    def stop(self) -> None:
        try:
            result = subprocess.run([str(BIN / "nexusfs"), "unmount", str(self.path)], env=self.env,
                                    capture_output=True, text=True, timeout=HANG_S)
            assert result.returncode == 0, f"nexusfs unmount: {result.stdout}{result.stderr}"
            self.wait_ended()
        finally:
            self.clean_up()
        self.check_sanitizers()

    def wait_ended(self) -> None:
        poll(lambda: not processes_with(str(self.path)), "the daemon's end")
        assert mount_device(self.path) is None, "the daemon is gone, its mount is not"

    def restart(self, *flags: str) -> None:
        self.stop()
        self.flags += flags
        self.start()

    def kill(self) -> None:
        """kill -9; the dead mount stays."""
        for pid in processes_with(str(self.path)):
            os.kill(pid, signal.SIGKILL)
        poll(lambda: not processes_with(str(self.path)), "the killed daemon's end")

    def clean_up(self) -> None:
        """Whatever state a failed test left: no mount, no daemon, no watchdog."""
        if self._watchdog:
            os.killpg(self._watchdog.pid, signal.SIGKILL)
            self._watchdog.wait()
            self._watchdog = None
        self.kill()
        while mount_device(self.path):
            # By force first: it ends the connection, which a thread of the killed daemon may keep
            # open while it waits for a reader (docs/architecture.md, "Control").
            subprocess.run(["umount", "-f", str(self.path)], capture_output=True)
            if mount_device(self.path):
                subprocess.run(["umount", "-l", str(self.path)], check=True)

    def _start_watchdog(self) -> None:
        # A process: the thread that waits in a page fault may hold this interpreter's lock.
        script = ('sleep "$2"; n=$(awk -v m="$1" \'$5 == m {split($3, d, ":"); print d[2]}\' '
                  '/proc/self/mountinfo | tail -n 1); echo 1 > /sys/fs/fuse/connections/$n/abort')
        self._watchdog = subprocess.Popen(["sh", "-c", script, "watchdog", str(self.path), str(LIFETIME_S)],
                                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL, start_new_session=True)

    def check_sanitizers(self) -> None:
        reports = [path.read_text(errors="replace") for path in self.work.glob("sanitizer*")]
        assert not reports, "\n".join(reports)

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([str(BIN / "nexusctl"), "--mount", str(self.path), *arguments], env=self.env,
                              capture_output=True, text=True, timeout=HANG_S)

    def stats(self) -> dict:
        result = self.ctl("stats", "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def xattr(self, name: str, path: Path | str) -> str:
        return os.getxattr(self.path / path, f"user.nexus.{name}").decode()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> "Mount":
        return self.start()

    def __exit__(self, kind, *_) -> None:
        if kind is None and mount_device(self.path):
            self.stop()
        else:
            # A failed test keeps its own reason; a test that unmounted by itself has nothing to stop.
            self.clean_up()
            if kind is None:
                self.check_sanitizers()


def pread_exactly(fd: int, count: int, offset: int) -> bytes:
    parts = []
    while count > 0 and (part := os.pread(fd, count, offset)):
        parts.append(part)
        count, offset = count - len(part), offset + len(part)
    return b"".join(parts)


def read_range(path: Path, offset: int, count: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return pread_exactly(fd, count, offset)
    finally:
        os.close(fd)


def same_bytes(left: Path, right: Path, piece: int = 1 << 20) -> bool:
    with open(left, "rb") as a, open(right, "rb") as b:
        while True:
            x, y = a.read(piece), b.read(piece)
            if x != y:
                return False
            if not x:
                return True
