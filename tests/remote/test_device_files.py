"""Addresses and devices.toml: what is taken, and that each error names file and key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.remote.address import Device, parse_address
from edgekit.remote.devices import device_files, find_device


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("ssh://nano", "nano", None, None),
        ("ssh://jetson@192.168.55.1", "192.168.55.1", "jetson", None),
        ("ssh://j.d-1@orin.local:2222/", "orin.local", "j.d-1", 2222),
        ("ssh://root@[fe80::1%eth0]:22", "fe80::1%eth0", "root", 22),
    ],
)
def test_addresses(text: str, host: str, user: str | None, port: int | None) -> None:
    device = parse_address(text)
    assert (device.host, device.user, device.port) == (host, user, port)
    assert parse_address(device.address) == device


@pytest.mark.parametrize(
    "text",
    [
        "ssh://",
        "ssh://user@",
        "ssh://@host",
        "ssh://-oProxyCommand=id",
        "ssh://-lroot@host",
        "ssh://user:password@host",
        "ssh://us er@host",
        "ssh://host;id",
        "ssh://$(id)@host",
        "ssh://host/path",
        "ssh://host:",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host:22x",
        "ssh://host:\uff12\uff12",
        "ssh://[not-an-address]:22",
        "ssh://host\n",
        "http://host",
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


ALL = """
[devices.nano]
host = "192.168.55.1"
user = "jetson"
port = 2222
python = "~/venv/bin/python"
workdir = "/var/tmp"
targets = ["onnxruntime", "tensorrt"]
env = { OMP_NUM_THREADS = "4" }

[devices."orin.1"]
host = "orin"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli", reason="the extra 'remote' is not installed")
    path = tmp_path / "devices.toml"
    path.write_text(ALL, encoding="utf-8")
    return path


def test_all_keys(file: Path) -> None:
    assert find_device("nano", [file]) == Device(
        "nano",
        "192.168.55.1",
        "jetson",
        2222,
        "~/venv/bin/python",
        "/var/tmp",
        ("onnxruntime", "tensorrt"),
        {"OMP_NUM_THREADS": "4"},
    )
    assert find_device("orin.1", [file]) == Device("orin.1", "orin")


def test_nearer_file_has_precedence(file: Path, tmp_path: Path) -> None:
    farther = tmp_path / "farther.toml"
    farther.write_text('[devices.nano]\nhost = "other"\n[devices.lab]\nhost = "lab"\n')
    assert find_device("nano", [file, farther]).host == "192.168.55.1"
    assert find_device("lab", [file, farther]).host == "lab"
    assert find_device("lab", [tmp_path / "absent.toml", farther]).host == "lab"


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    here, home = device_files()
    assert (here, home) == (Path("devices.toml"), tmp_path / ".config/edgekit/devices.toml")


def test_unknown_device_names_the_known_ones(file: Path) -> None:
    with pytest.raises(ConfigError, match="--device 'thor'") as caught:
        find_device("thor", [file])
    assert "nano, orin.1" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[devices.d", "not valid TOML"),
        ("[device.d]\nhost = 'h'", "unknown key 'device'"),
        ("devices = 3", "expected tables"),
        ("[devices.'a b']\nhost = 'h'", "a name is"),
        ("devices.d = 3", "devices.d: expected a table, got int"),
        ("[devices.d]\nuser = 'u'", "devices.d.host: missing"),
        ("[devices.d]\nhost = 'h'\npassword = 'p'", "devices.d.password: unknown key"),
        ("[devices.d]\nhost = 3", "devices.d.host: expected a text, got int"),
        ("[devices.d]\nhost = '-oX'", "devices.d.host: '-oX'"),
        ("[devices.d]\nhost = 'h'\nuser = 'a;b'", "devices.d.user: 'a;b'"),
        ("[devices.d]\nhost = 'h'\nport = '22'", "devices.d.port: expected a number, got str"),
        ("[devices.d]\nhost = 'h'\nport = true", "devices.d.port: expected a number, got bool"),
        ("[devices.d]\nhost = 'h'\nport = 70000", "devices.d.port: 70000"),
        ("[devices.d]\nhost = 'h'\npython = 'bin/python'", "devices.d.python: 'bin/python'"),
        ("[devices.d]\nhost = 'h'\npython = '-c'", "devices.d.python: '-c'"),
        ("[devices.d]\nhost = 'h'\nworkdir = 'tmp'", "devices.d.workdir: 'tmp'"),
        ("[devices.d]\nhost = 'h'\ntargets = 'tensorrt'", "devices.d.targets: expected a list"),
        ("[devices.d]\nhost = 'h'\ntargets = ['tflite']", "devices.d.targets: 'tflite'"),
        ("[devices.d]\nhost = 'h'\nenv = { A = 1 }", "devices.d.env: expected a table of texts"),
        ("[devices.d]\nhost = 'h'\nenv = { 'A B' = '1' }", "devices.d.env: the variable 'A B'"),
        ("[devices.d]\nhost = 'h'\nenv = { PYTHONPATH = '1' }", "the variable 'PYTHONPATH'"),
    ],
)
def test_errors_name_file_and_key(file: Path, text: str, names: str) -> None:
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        find_device("d", [file])
    assert str(file) in caught.value.message
    assert names in caught.value.message


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        find_device("d", [tmp_path])
