"""What the benches share: their arguments, a directory to work in, and the verdict."""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path


def parse_size(text: str) -> int:
    units = {"MB": 10**6, "GB": 10**9}
    return int(float(text[:-2]) * units[text[-2:].upper()])


def argument_parser(size: str | None = None, runs: int | None = None) -> argparse.ArgumentParser:
    """With --size and --runs where a default is given."""
    parser = argparse.ArgumentParser()
    if size:
        parser.add_argument("--size", type=parse_size, default=parse_size(size), help="of the model, as 2GB or 500MB")
    if runs:
        parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--work", type=Path, help="an empty directory on the disk to measure (default: a temporary one)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit 1 where a bound is missed")
    return parser


def work_directory(options: argparse.Namespace) -> Path:
    work = options.work or Path(tempfile.mkdtemp(prefix="nexus-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    return work.resolve()


def at_most(what: str, value: float, bound: float) -> dict:
    return {"what": what, "value": value, "bound": f"<= {bound}", "holds": value <= bound}


def at_least(what: str, value: float, bound: float) -> dict:
    return {"what": what, "value": value, "bound": f">= {bound}", "holds": value >= bound}


def verdict(options: argparse.Namespace, checks: list[dict], result: dict) -> None:
    """Prints the checks, writes the result where --json asks for it; with --strict, exits 1 where one does not hold."""
    width = max(len(check["what"]) for check in checks)
    for check in checks:
        print(f"{'ok  ' if check['holds'] else 'MISS'} {check['what']:{width}} {check['value']:8.3f}  {check['bound']}")
    if options.json:
        options.json.write_text(json.dumps(result | {"checks": checks}, indent=2))
    if options.strict and not all(check["holds"] for check in checks):
        sys.exit(1)
