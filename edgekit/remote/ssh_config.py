"""What ``~/.ssh/config`` says of a device."""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, require
from edgekit.remote.address import Device, parse_address

EXTRA = "remote"
SSH_PORT = 22
_FILES = ("~/.ssh/config", "/etc/ssh/ssh_config")
_KNOWN_HOSTS = ("~/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts")
_CONNECT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a connection goes and how.

    Attributes:
        host, port, user: of the machine, with everything that the configuration adds.
        key_name: name under which its host key is known.
        identity_files: private keys to try.
        identities_only: no other keys than these.
        known_hosts: files with host keys; those that do not exist are left out.
        jumps: machines to go through, in this order.
        proxy_command: program whose input and output are the connection.
        connect_timeout_s: seconds for the connection.
    """

    host: str
    port: int
    user: str
    key_name: str
    identity_files: tuple[str, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]
    jumps: tuple[Device, ...]
    proxy_command: tuple[str, ...] | None
    connect_timeout_s: float

    @property
    def label(self) -> str:
        """The endpoint in messages."""
        return f"{self.user}@{self.host}:{self.port}"


def read_ssh_config(device: Device, files: Iterable[str] = _FILES) -> Any:
    """Return paramiko's reading of the ssh configuration.

    Args:
        device: its port and user have precedence, as on the command line of ssh.
        files: the configuration; the first file has precedence.

    Raises:
        ConfigError: a file cannot be read.
        MissingDependencyError: paramiko is not installed.
    """
    paramiko = require("paramiko", extra=EXTRA)
    config = paramiko.SSHConfig()
    config.parse(_stated(device))
    for file in files:
        path = Path(file).expanduser()
        try:
            with path.open(encoding="utf-8") as stream:
                config.parse(stream)
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, paramiko.ConfigParseError) as error:
            raise ConfigError(f"'{path}' cannot be read: {error}") from error
    return config


def _stated(device: Device) -> Iterator[str]:
    yield f"Host {device.host}"
    if device.port is not None:
        yield f"Port {device.port}"
    if device.user is not None:
        yield f"User {device.user}"


def resolve_endpoint(device: Device, config: Any) -> Endpoint:
    """Combine a device with the ssh configuration.

    Args:
        device: what the user named.
        config: from :func:`read_ssh_config`.

    Raises:
        ConfigError: the configuration holds a value of another form.
    """
    paramiko = require("paramiko", extra=EXTRA)
    try:
        found: Mapping[str, Any] = config.lookup(device.host)
    except (paramiko.SSHException, ValueError, KeyError) as error:
        raise ConfigError(f"~/.ssh/config, host '{device.host}': {error}") from error
    host = str(found["hostname"])
    port = _number(found, "port", SSH_PORT)
    alias = found.get("hostkeyalias")
    plain = host if port == SSH_PORT else f"[{host}]:{port}"
    files = tuple(str(Path(name).expanduser()) for name in found.get("identityfile", ()))
    only = str(found.get("identitiesonly", "no")).lower() == "yes"
    return Endpoint(
        host=host,
        port=port,
        user=str(found.get("user") or getpass.getuser()),
        key_name=plain if alias is None else str(alias),
        identity_files=tuple(file for file in files if Path(file).is_file()),
        identities_only=only and bool(files),
        known_hosts=_known_hosts(found),
        jumps=_jumps(str(found.get("proxyjump") or "none")),
        proxy_command=_proxy_command(found.get("proxycommand")),
        connect_timeout_s=float(_number(found, "connecttimeout", int(_CONNECT_TIMEOUT_S))),
    )


def _number(found: Mapping[str, Any], key: str, default: int) -> int:
    text = str(found.get(key, default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"~/.ssh/config: {key} '{text}' is not a number")
    return int(text)


def _known_hosts(found: Mapping[str, Any]) -> tuple[Path, ...]:
    named = str(found.get("userknownhostsfile", _KNOWN_HOSTS[0])).split()
    system = str(found.get("globalknownhostsfile", _KNOWN_HOSTS[1])).split()
    paths = [Path(name).expanduser() for name in (*named, *system)]
    return tuple(path for path in paths if path.is_file())


def _jumps(text: str) -> tuple[Device, ...]:
    if text.strip().lower() == "none":
        return ()
    return tuple(
        parse_address(part if part.startswith("ssh://") else f"ssh://{part}")
        for part in (item.strip() for item in text.split(","))
    )


def _proxy_command(text: object) -> tuple[str, ...] | None:
    if text is None or str(text).strip().lower() in ("", "none"):
        return None
    try:
        words = shlex.split(str(text))
    except ValueError as error:
        raise ConfigError(f"~/.ssh/config: ProxyCommand '{text}': {error}") from error
    # ssh would have a shell replace itself by the program; here there is no shell at all.
    return tuple(words[1:] if words[0] == "exec" else words)
