"""No usage report leaves the machine on edgekit's account."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino", reason="openvino is not installed")
pytest.importorskip("openvino_telemetry", reason="without it OpenVINO reports nothing anyway")

EXPORT = """
import json, os, sys
from pathlib import Path

import torch
from torch import nn

{first}
import edgekit
from edgekit.options import InputOption

torch.save(nn.Linear(4, 3), "model.pt")
report = edgekit.quantize(
    "model.pt", out="result", inputs=[InputOption(None, (1, 4))], targets=["openvino"],
    trust_pickle=True,
)
loaded = sorted(name for name in sys.modules if name.startswith("openvino_telemetry"))
print(json.dumps([report.failures, loaded, os.environ.get("CI")]))
"""


def quantize(folder: Path, first: str = "") -> tuple[list[object], list[str]]:
    """Quantize in a fresh process and home, as an ordinary user; return what it found and left."""
    home = folder / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD")}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXPORT.format(first=first)],
        cwd=folder,
        env={**environment, "HOME": str(home), "USERPROFILE": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    found: list[object] = json.loads(result.stdout.splitlines()[-1])
    left = [
        path.name for path in home.rglob("*") if "openvino" in path.name or path.name == "intel"
    ]
    return found, left


def test_quantizing_loads_no_reporter_and_leaves_no_identity(tmp_path: Path) -> None:
    found, left = quantize(tmp_path)
    assert found == [{}, [], None]
    assert left == [], "the reporter stores an id of the user before it sends anything"


def test_conversion_is_silent_beside_the_users_own_reporter(tmp_path: Path) -> None:
    """A user who imports OpenVINO has its reporter; a conversion of ours sends nothing with it."""
    first = (
        "import openvino_telemetry\n"
        "sent = []\n"
        "send = lambda self, backend, message: sent.append(message)\n"
        "openvino_telemetry.main.TelemetrySender.send = send\n"
        "import openvino\n"
        "assert sent, 'the import of the user reports'\n"
        "sent.clear()\n"
        "import atexit\n"
        "atexit.register(lambda: print(json.dumps([str(m.attrs) for m in sent])))\n"
    )
    sent, _ = quantize(tmp_path, first)
    assert sent == []
