"""The preflight: a device's own report over ssh."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from edgekit.cli import main
from edgekit.doctor import doctor
from edgekit.remote.run import doctor_on_device


def test_report_is_that_of_the_machine(server: Any) -> None:
    there, here = doctor_on_device(server.device()), doctor().to_dict()
    device = there.pop("device")
    assert there.keys() == here.keys()
    assert there["python"] == here["python"]
    assert there["runtimes"] == here["runtimes"]
    assert there["packages"] == here["packages"]
    assert device["workdir"] == str(server.workdir)
    assert device["free_bytes"] > 0
    assert server.left == []


def test_command_names_a_device_that_cannot_be_used(server: Any) -> None:
    server.known_hosts.write_text("", encoding="utf-8")
    words = ["doctor", "--device", f"ssh://somebody@127.0.0.1:{server.port}", "--json"]
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()):
        assert main(words) == 2
    error = json.loads(out.getvalue())["error"]
    assert error["code"] == "unknown_host_key"
    assert "ssh-keyscan" in error["hint"]
