import functools
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from fixtures import hub, module_hub, module_mount, mount  # noqa: E402, F401

@pytest.fixture
def repos(tmp_path) -> Path:
    """Where a test makes its repositories: repos/org/name/<files>."""
    return tmp_path / "repos"


# Two runs of pytest at once share the files of tests here: a directory in which each leaves the name of what it takes.
CLAIMS = os.environ.get("NEXUS_TEST_CLAIMS")


@functools.cache
def claimed(file: Path) -> bool:
    try:
        (Path(CLAIMS) / file.name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    if CLAIMS and not claimed(item.path):
        return True  # the other one's
    return None
