"""``devices.toml``: names for devices, and what is particular about each.

::

    [devices.nano]
    host = "192.168.55.1"
    user = "jetson"
    python = "~/venv/bin/python"
    workdir = "/var/tmp"
    targets = ["tensorrt"]
    env = { OMP_NUM_THREADS = "4" }
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, require
from edgekit.remote.address import (
    DEFAULT_PYTHON,
    DEFAULT_WORKDIR,
    PREFIX,
    Device,
    is_name,
    parse_address,
)

FILE_NAME = "devices.toml"
_KEYS = ("host", "user", "port", "python", "workdir", "targets", "env")


def device_files() -> tuple[Path, ...]:
    """Return where devices are looked up, in this order."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(FILE_NAME), Path(base).expanduser() / "edgekit" / FILE_NAME


def find_device(text: str, files: Sequence[Path] | None = None) -> Device:
    """Return the device that ``--device`` names.

    Args:
        text: an address, ``ssh://user@host[:port]``, or a name in one of the files.
        files: where names are looked up; :func:`device_files` if ``None``.

    Raises:
        ConfigError: there is no such device, or a file or its entry is wrong.
    """
    if text.startswith(PREFIX):
        return parse_address(text)
    known: list[str] = []
    places = device_files() if files is None else files
    for file in places:
        devices = _read(file)
        if text in devices:
            return _device(file, text, devices[text])
        known += devices
    looked = " and ".join(f"'{file}'" for file in places)
    raise ConfigError(
        f"--device '{text}' is neither an address nor a device in {looked}",
        f"known devices: {', '.join(sorted(set(known))) or 'none'}; an address is "
        "ssh://user@host[:port]",
    )


def _read(file: Path) -> Mapping[str, Any]:
    """Return the table of each device in a file; a file that does not exist holds none."""
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    toml = require(name, extra="remote")
    try:
        with file.open("rb") as stream:
            data = toml.load(stream)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"'{file}' cannot be read: {error.strerror}") from error
    except (toml.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{file}' is not valid TOML: {error}") from error
    for key in data:
        if key != "devices":
            raise ConfigError(f"'{file}': unknown key '{key}'", "devices are [devices.NAME] tables")
    devices = data.get("devices", {})
    if not isinstance(devices, dict):
        raise ConfigError(f"'{file}': devices: expected tables [devices.NAME]")
    for device in devices:
        if not is_name(device):
            raise ConfigError(
                f"'{file}': devices.{device!r}: a name is letters, digits, '_', '-' and '.'"
            )
    return devices


def _device(file: Path, name: str, table: object) -> Device:
    where = f"'{file}': devices.{name}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table, got {type(table).__name__}")
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where}.{key}: unknown key", f"known: {', '.join(_KEYS)}")
    if "host" not in table:
        raise ConfigError(f"{where}.host: missing")
    text = _Table(where, table)
    try:
        return Device(
            name=name,
            host=text.text("host") or "",
            user=text.text("user"),
            port=text.number("port"),
            python=text.text("python") or DEFAULT_PYTHON,
            workdir=text.text("workdir") or DEFAULT_WORKDIR,
            targets=text.texts("targets"),
            env=text.mapping("env"),
        )
    except ConfigError as error:
        message = error.message
        raise ConfigError(
            message if message.startswith(where) else f"{where}.{message}", error.hint
        ) from error


class _Table:
    """Typed access to the values of one device."""

    def __init__(self, where: str, table: Mapping[str, Any]) -> None:
        self._where = where
        self._table = table

    def _wrong(self, key: str, expected: str) -> ConfigError:
        got = type(self._table[key]).__name__
        return ConfigError(f"{self._where}.{key}: expected {expected}, got {got}")

    def text(self, key: str) -> str | None:
        value = self._table.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "a text")

    def number(self, key: str) -> int | None:
        value = self._table.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, "a number")

    def texts(self, key: str) -> tuple[str, ...] | None:
        value = self._table.get(key)
        if value is None:
            return None
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise self._wrong(key, "a list of texts")

    def mapping(self, key: str) -> dict[str, str]:
        value = self._table.get(key, {})
        if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
            return dict(value)
        raise self._wrong(key, "a table of texts")
