"""Keys, configuration and ways to a device, against a real sshd."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError
from edgekit.remote.connection import Connection
from edgekit.remote.errors import (
    ChangedHostKeyError,
    DeviceError,
    LoginError,
    UnknownHostKeyError,
)

# Connects its standard input and output to a port: what `nc` would do as a ProxyCommand.
RELAY = """
import os, selectors, socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
choice = selectors.DefaultSelector()
choice.register(0, selectors.EVENT_READ)
choice.register(peer, selectors.EVENT_READ)
while True:
    for key, _ in choice.select():
        data = os.read(0, 65536) if key.fd == 0 else peer.recv(65536)
        if not data:
            sys.exit()
        peer.sendall(data) if key.fd == 0 else os.write(1, data)
"""


def fingerprint(key: Path) -> str:
    """The fingerprint as OpenSSH itself computes it."""
    command = ["ssh-keygen", "-lf", str(key.with_suffix(".pub"))]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[1]


def test_words_of_a_command_are_never_shell_syntax(server: Any) -> None:
    words = ["a b", "$HOME", "`id`", "; touch x", "'", '"', "*", "~", "\\", "", "-n", "ü"]
    with Connection(server.device()) as connection:
        answer = connection.run([sys.executable, "-c", "import sys; print(sys.argv[1:])", *words])
        assert answer.stdout == f"{words}\n"
        assert connection.run(["sh", "-c", "echo no >&2; exit 7"]).status == 7
        assert connection.host_key == fingerprint(server.host_key)


def test_command_that_takes_too_long(server: Any) -> None:
    with Connection(server.device()) as connection:
        with pytest.raises(DeviceError, match=r"'sleep' gave no answer within 0\.2 s"):
            connection.run(["sleep", "2"], timeout_s=0.2)
        assert connection.run(["echo", "still there"]).status == 0


def test_unknown_host_key_is_refused(server: Any) -> None:
    server.known_hosts.write_text("", encoding="utf-8")
    with pytest.raises(UnknownHostKeyError) as caught, Connection(server.device()):
        pass
    assert fingerprint(server.host_key) in caught.value.message
    assert f"ssh-keyscan -t ed25519 -p {server.port} 127.0.0.1 >> " in caught.value.hint


def test_command_of_the_hint_makes_the_key_known(server: Any) -> None:
    server.known_hosts.write_text("", encoding="utf-8")
    with pytest.raises(UnknownHostKeyError) as caught, Connection(server.device()):
        pass
    command = caught.value.hint.rpartition("add the key: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, timeout=30)
    with Connection(server.device()) as connection:
        assert connection.alive


def test_changed_host_key_is_refused_loudly(server: Any, tmp_path: Path) -> None:
    other = server.make_key(tmp_path / "other")
    server.trust(other)
    with (
        pytest.raises(ChangedHostKeyError, match="HAS CHANGED") as caught,
        Connection(server.device()),
    ):
        pass
    assert fingerprint(server.host_key) in caught.value.message
    assert fingerprint(other) in caught.value.message
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in caught.value.hint


def test_key_that_the_device_does_not_know(server: Any, tmp_path: Path) -> None:
    stranger = server.make_key(tmp_path / "stranger")
    config = f"Host *\n  IdentityFile {stranger}\n  IdentitiesOnly yes\n"
    (server.home / ".ssh/config").write_text(config, encoding="utf-8")
    with pytest.raises(LoginError) as caught, Connection(server.device()):
        pass
    assert str(stranger) in caught.value.message
    assert f"ssh-copy-id -p {server.port}" in caught.value.hint


def test_no_key_at_all(server: Any) -> None:
    (server.home / ".ssh/config").write_text("", encoding="utf-8")
    with pytest.raises(LoginError, match=r"the keys in ~/\.ssh"), Connection(server.device()):
        pass


def test_nobody_listens() -> None:
    pytest.importorskip("paramiko", reason="the extra 'remote' is not installed")
    from edgekit.remote.address import Device

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but it accepts nothing
        device = Device("none", "127.0.0.1", "nobody", taken.getsockname()[1])
        with pytest.raises(DeviceError, match="no ssh connection"), Connection(device):
            pass


def test_somebody_else_listens() -> None:
    pytest.importorskip("paramiko", reason="the extra 'remote' is not installed")
    from edgekit.remote.address import Device

    with socket.create_server(("127.0.0.1", 0)) as other:
        device = Device("web", "127.0.0.1", "nobody", other.getsockname()[1])
        answering = threading.Thread(target=_answer_http, args=(other,))
        answering.start()
        with pytest.raises(DeviceError, match="no ssh connection"), Connection(device):
            pass
        answering.join()


def _answer_http(other: socket.socket) -> None:
    peer, _ = other.accept()
    with peer:
        peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def with_config(server: Any, text: str) -> None:
    base = f"IdentityFile {server.client_key}\n  IdentitiesOnly yes\n"
    (server.home / ".ssh/config").write_text(f"{text}\nHost *\n  {base}", encoding="utf-8")


def test_alias_of_the_ssh_configuration(server: Any) -> None:
    user = server.device().user
    with_config(server, f"Host bench\n  HostName 127.0.0.1\n  Port {server.port}\n  User {user}\n")
    with Connection(server.device(host="bench", user=None, port=None)) as connection:
        assert connection.endpoint.label == f"{user}@127.0.0.1:{server.port}"


def test_through_another_machine(server: Any) -> None:
    user = server.device().user
    with_config(
        server,
        f"Host jump\n  HostName 127.0.0.1\n  Port {server.port}\n  User {user}\n"
        f"Host behind\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump jump\n",
    )
    with Connection(server.device(host="behind", port=None)) as connection:
        assert len(server.sessions()) >= 2
        assert connection.run(["echo", "there"]).stdout == "there\n"


def test_jumps_in_circles(server: Any) -> None:
    user = server.device().user
    with_config(server, f"Host loop\n  User {user}\n  ProxyJump loop\n")
    with pytest.raises(ConfigError, match="in circles"), Connection(server.device(host="loop")):
        pass


def test_through_a_program(server: Any, tmp_path: Path) -> None:
    relay = tmp_path / "relay.py"
    relay.write_text(RELAY, encoding="utf-8")
    with_config(server, f"Host *\n  ProxyCommand exec {sys.executable} {relay} %h %p\n")
    with Connection(server.device()) as connection:
        assert connection.run(["echo", "there"]).stdout == "there\n"


def test_program_that_fails(server: Any) -> None:
    with_config(server, "Host *\n  ProxyCommand surely-absent-program %h\n")
    with pytest.raises(ConfigError, match="surely-absent-program"), Connection(server.device()):
        pass
    with_config(server, "Host *\n  ProxyCommand true\n")
    with pytest.raises(DeviceError, match="no ssh connection"), Connection(server.device()):
        pass


def test_damaged_known_hosts(server: Any) -> None:
    server.known_hosts.write_text("[127.0.0.1]:22 ssh-ed25519 AAAA=B\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="known_hosts"), Connection(server.device()):
        pass
