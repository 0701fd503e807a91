"""A real sshd on the loopback device, with keys, a home folder and a device of the test's own."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.remote.address import Device
from edgekit.types import Cpu, InputSpec, OutputSpec, Task

SSHD = "/usr/sbin/sshd"
CODES = "quantized.safetensors"
MARK = b"edgekit-folder:"
_START_S = 10.0


@dataclass
class Server:
    """A running sshd.

    Attributes:
        folder: its files; ``home`` is that of the client.
        port: on 127.0.0.1.
        workdir: folder for devices to work in.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    workdir: Path
    home: Path
    known_hosts: Path
    host_key: Path
    client_key: Path

    def device(self, **changes: Any) -> Device:
        values = {
            "name": "loopback",
            "host": "127.0.0.1",
            "user": getpass.getuser(),
            "port": self.port,
            "python": sys.executable,
            "workdir": str(self.workdir),
        }
        return Device(**{**values, **changes})

    def runners(self) -> list[int]:
        """The watching processes of device parts that run now."""
        return [pid for pid in descendants(self.process.pid) if b"--tied" in _words(pid)]

    def guards(self) -> list[int]:
        """The processes that guard a folder: shells that were given the guard's script."""
        found = [
            pid for pid in descendants(self.process.pid) if any(MARK in w for w in _words(pid))
        ]
        shells = [pid for pid in found if _name(pid) == "sh"]
        # A shell forks itself to substitute a command, and looks like itself for a moment.
        return [pid for pid in shells if _parent(pid) not in shells]

    @property
    def left(self) -> list[Path]:
        """What is in the work folder."""
        return list(self.workdir.iterdir())

    @staticmethod
    def make_key(path: Path) -> Path:
        """Make a pair of keys."""
        return make_key(path)

    @staticmethod
    def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
        """Whether a condition comes true in time."""
        return wait_until(condition, seconds)

    def sessions(self) -> list[int]:
        """The processes of sshd that serve connections: its children and theirs, by name."""
        return [pid for pid in descendants(self.process.pid) if _name(pid).startswith("sshd")]

    def trust(self, key: Path | None = None) -> None:
        """Make a key the one that the client knows."""
        public = (key or self.host_key).with_suffix(".pub").read_text(encoding="utf-8").split()
        line = f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n"
        self.known_hosts.write_text(line, encoding="utf-8")


def descendants(pid: int) -> list[int]:
    """Process ids below one, in the order of discovery."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(words[1]), []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(0), [])
        found += children
        queue += children
    return found


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None  # it is gone
    return int(stat.rpartition(")")[2].split()[1])


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def make_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = _free_port()
    # The environment of the session is that of sshd's child: no limits, nothing of the user's.
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host_key'}",
        f"AuthorizedKeysFile {folder / 'authorized_keys'}",
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin yes",
        "AllowTcpForwarding yes",
        "PidFile none",
        "Subsystem sftp internal-sftp",
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    if not wait_until(lambda: process.poll() is not None or listens(), _START_S):
        process.kill()
    if process.poll() is not None:
        pytest.skip("sshd does not start: " + (folder / "sshd.log").read_text(encoding="utf-8"))
    return process, port


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An sshd for all tests of the session."""
    pytest.importorskip("paramiko", reason="the extra 'remote' is not installed")
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip(f"no {SSHD} (package openssh-server)")
    if os.geteuid() == 0:  # where sshd separates its privileges
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    folder = tmp_path_factory.mktemp("sshd")
    host_key, client_key = make_key(folder / "host_key"), make_key(folder / "client_key")
    shutil.copy(folder / "client_key.pub", folder / "authorized_keys")
    process, port = _start(folder)
    home = folder / "home"
    server = Server(
        folder,
        port,
        process,
        folder / "work",
        home,
        home / ".ssh" / "known_hosts",
        host_key,
        client_key,
    )
    yield server
    for pid in (*descendants(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def server(sshd: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The sshd, a client that knows it, and an empty work folder that is empty at the end, too."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    work = tmp_path / "work"
    work.mkdir()
    sshd.home, sshd.known_hosts, sshd.workdir = home, home / ".ssh" / "known_hosts", work
    config = f"Host *\n  IdentityFile {sshd.client_key}\n  IdentitiesOnly yes\n"
    (home / ".ssh" / "config").write_text(config, encoding="utf-8")
    sshd.trust()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield sshd
    cleared = wait_until(lambda: not sshd.left)
    assert cleared, f"left behind on the device: {list(work.rglob('*'))[:5]}"


def _network(path: Path, *, quantized: bool) -> None:
    """``y = Conv(x)``, the smallest thing that a runtime runs in either precision."""
    onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
    node, array = onnx.helper.make_node, onnx.numpy_helper.from_array
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    weight = np.random.default_rng(0).integers(-63, 64, (16, 3, 3, 3)).astype(np.int8)
    nodes, tensors = [], {"w": weight.astype(np.float32) * np.float32(2**-6)}
    source, kernel = "x", "w"
    if quantized:
        nodes = [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
            node("DequantizeLinear", ["codes", "s"], ["dw"]),
        ]
        tensors = {"codes": weight, "s": np.float32(2**-6), "z": np.uint8(128)}
        source, kernel = "dq", "dw"
    graph = onnx.helper.make_graph(
        [*nodes, node("Conv", [source, kernel], ["y"], pads=[1] * 4)],
        "network",
        [value("x", kind, [1, 3, 8, 8])],
        [value("y", kind, [1, 16, 8, 8])],
        [array(np.asarray(data), name) for name, data in tensors.items()],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


@pytest.fixture(scope="session")
def result_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result for ONNX Runtime, in a folder whose name a careless shell would split."""
    folder = tmp_path_factory.mktemp("remote") / "my result; $(touch x)"
    _network(folder / "float/model.onnx", quantized=False)
    _network(folder / "onnxruntime/model.onnx", quantized=True)
    (folder / CODES).write_bytes(b"codes that no device needs")
    entry = FileEntry.of(folder, "onnxruntime/model.onnx")
    manifest = Manifest(
        edgekit_version="0",
        task=Task.OTHER,
        inputs=(InputSpec("x", (1, 3, 8, 8)),),
        outputs=(OutputSpec("y", (1, 16, 8, 8)),),
        preprocessing=None,
        num_classes=None,
        scheme="w8a8",
        cpu=Cpu.AVX2,
        targets=(TargetEntry("onnxruntime", entry.path, (entry,), True, None, ()),),
        files=tuple(FileEntry.of(folder, name) for name in ("float/model.onnx", CODES)),
    )
    write_manifest(manifest, folder)
    return folder
