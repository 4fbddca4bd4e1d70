import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

from fixtures import hub, module_hub, module_mount, mount  # noqa: E402, F401

@pytest.fixture
def repos(tmp_path) -> Path:
    """Where a test makes its repositories: repos/org/name/<files>."""
    return tmp_path / "repos"
