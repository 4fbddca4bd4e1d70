"""File systems of a test's own, and zones on them. Mounting needs root."""
from __future__ import annotations

import contextlib
import json
import subprocess

import pytest

from nexus import HANG_S


def run(*command) -> str:
    return subprocess.run([str(one) for one in command], check=True, capture_output=True,
                          timeout=HANG_S).stdout.decode().strip()


@contextlib.contextmanager
def mounted(path, *arguments):
    path.mkdir(parents=True)
    try:
        run("mount", *arguments, path)
    except subprocess.CalledProcessError as failure:
        pytest.fail(f"mount {arguments}: {failure.stderr.decode()}")
    try:
        yield path
    finally:
        run("umount", "-l", path)


@contextlib.contextmanager
def small_disk(tmp_path, size):
    """An ext4 of its own, which can be frozen."""
    image = tmp_path / "disk.img"
    with open(image, "wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", image)
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        yield disk


def configured(zones: list, **keys) -> str:
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in keys.items()]
    for zone in zones:
        lines += ["[[zone]]\n"] + [f"{key} = {json.dumps(value)}\n" for key, value in zone.items()]
    return "".join(lines)
