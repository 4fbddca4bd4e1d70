"""Real clients over a real mount. Runs in the environment that install_env makes."""
import os
import sys
from pathlib import Path

# A client of the test process itself must never reach for the real hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hub"))

import pytest  # noqa: E402

from fixtures import MountFactory, hub, mount, running_hub  # noqa: E402, F401
from made_models import NAMES, make_all  # noqa: E402


@pytest.fixture(scope="session")
def local(tmp_path_factory) -> Path:
    """The origin: local/org/<name> for every name of made_models.NAMES."""
    root = tmp_path_factory.mktemp("origin")
    make_all(root / "org")
    return root


@pytest.fixture(scope="session")
def served(local, tmp_path_factory):
    """One mount for the whole run: every client after the first reads what others left cached."""
    with running_hub("--root", str(local)) as hub:
        factory = MountFactory(tmp_path_factory.mktemp("mounts"), hub)
        with factory() as nexus:
            yield nexus
        factory.clean_up()


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param
