"""pytest fixtures shared by tests/integration and tests/clients."""
from __future__ import annotations

import contextlib

import pytest

from hub_client import HubClient
from nexus import Mount


@contextlib.contextmanager
def running_hub(*arguments: str):
    hub = HubClient(*arguments)
    try:
        yield hub
    finally:
        hub.close()


class MountFactory:
    """Makes mounts under one directory; each is cleaned up whatever the test did."""

    def __init__(self, work, hub: HubClient) -> None:
        self._work, self._hub = work, hub
        self._mounts: list[Mount] = []

    def __call__(self, *flags: str, **options) -> Mount:
        """Not yet started: use it in a `with`, or call start() and leave the end to the fixture."""
        options.setdefault("endpoint", self._hub.endpoint)
        made = Mount(self._work / f"m{len(self._mounts)}", *flags, **options)
        self._mounts.append(made)
        return made

    def clean_up(self) -> None:
        # The hub's stalls must end first: they would keep an unmount's readers waiting.
        self._hub.clear_faults()
        for made in self._mounts:
            made.clean_up()


@pytest.fixture
def hub():
    with running_hub() as running:
        yield running


@pytest.fixture
def mount(tmp_path, hub):
    factory = MountFactory(tmp_path, hub)
    yield factory
    factory.clean_up()


@pytest.fixture(scope="module")
def module_hub():
    with running_hub() as running:
        yield running


@pytest.fixture(scope="module")
def module_mount(tmp_path_factory, module_hub):
    """A factory whose mounts live as long as the test file."""
    factory = MountFactory(tmp_path_factory.mktemp("mounts"), module_hub)
    yield factory
    factory.clean_up()
