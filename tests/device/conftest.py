"""A small result for a Jetson, and processes of the device part under a watchful eye."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

MARK = "EDGEKIT_TEST_MARK"


class Family:
    """Everything that descends from one process, recognized by a variable in its environment."""

    def __init__(self) -> None:
        self.environment = {**os.environ, MARK: uuid.uuid4().hex}

    def alive(self) -> list[int]:
        """Return the processes that still run."""
        wanted = f"{MARK}={self.environment[MARK]}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                marked = wanted in (folder / "environ").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it has just ended, or is not ours
                continue
            if marked and state != "Z":
                found.append(int(folder.name))
        return found

    def wait_until_gone(self, seconds: float) -> list[int]:
        """Return who is left after a while; returns at once when nobody is."""
        deadline = time.monotonic() + seconds
        while (left := self.alive()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


@pytest.fixture
def family() -> Family:
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not list the environments of processes")
    return Family()


@pytest.fixture(scope="session")
def result(
    write_jetson_result: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A result with TensorRT's form and ONNX Runtime's."""
    return write_jetson_result(tmp_path_factory.mktemp("jetson") / "out")
