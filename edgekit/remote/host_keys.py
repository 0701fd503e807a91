"""A device is talked to only if its key is one that the user has confirmed before."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from edgekit.errors import ConfigError, require
from edgekit.remote.errors import ChangedHostKeyError, UnknownHostKeyError
from edgekit.remote.ssh_config import EXTRA, SSH_PORT, Endpoint

_KNOWN_HOSTS = "~/.ssh/known_hosts"


class RefuseUnknownKey:
    """What paramiko asks about a key that stands in no file: the answer is always no."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def missing_host_key(self, _client: object, _name: str, key: Any) -> None:
        """Refuse.

        Raises:
            UnknownHostKeyError: always.
        """
        raise unknown_key(self._endpoint, key)


def load_known_hosts(client: Any, endpoint: Endpoint) -> None:
    """Tell a paramiko client which host keys are known.

    Raises:
        ConfigError: a file with host keys is damaged.
    """
    hostkeys = require("paramiko.hostkeys", extra=EXTRA)
    for path in endpoint.known_hosts:
        _load(client, path, hostkeys.InvalidHostKey)


def _load(client: Any, path: Path, invalid: type[Exception]) -> None:
    try:
        client.load_system_host_keys(str(path))
    except (OSError, UnicodeDecodeError, invalid) as error:
        raise ConfigError(f"'{path}' cannot be read: {error}") from error


def unknown_key(endpoint: Endpoint, key: Any) -> UnknownHostKeyError:
    """Return the error for a device whose key nobody has confirmed."""
    return UnknownHostKeyError(
        f"the host key of {endpoint.key_name} is unknown: it shows {_shown(key)}",
        f"compare this fingerprint with the device's own ({_on_device(key)}), then add the key: "
        f"{_add_command(endpoint, key)}",
    )


def changed_key(endpoint: Endpoint, key: Any, expected: Any) -> ChangedHostKeyError:
    """Return the error for a device that shows another key than before."""
    files = ", ".join(f"'{path}'" for path in endpoint.known_hosts)
    forget = shlex.join(["ssh-keygen", "-R", endpoint.key_name])
    return ChangedHostKeyError(
        f"THE HOST KEY OF {endpoint.key_name} HAS CHANGED: expected {_shown(expected)}, got "
        f"{_shown(key)}. Somebody may be in between, or the device was installed anew. Nothing "
        "was sent",
        f"only if you know why it changed: {forget} (in {files}), compare the fingerprint with "
        f"the device's own ({_on_device(key)}), and then {_add_command(endpoint, key)}",
    )


def fingerprint(key: Any) -> str:
    """Return the fingerprint as ssh shows it, ``SHA256:...``."""
    return str(key.fingerprint)


def _shown(key: Any) -> str:
    return f"{key.get_name()} {fingerprint(key)}"


def _on_device(key: Any) -> str:
    kind = str(key.get_name()).removeprefix("ssh-").partition("-")[0]
    return f"ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub there"


def _add_command(endpoint: Endpoint, key: Any) -> str:
    port = [] if endpoint.port == SSH_PORT else ["-p", str(endpoint.port)]
    if endpoint.jumps or endpoint.proxy_command:  # ssh-keyscan knows no way around
        algorithm = f"HostKeyAlgorithms={key.get_name()}"
        return shlex.join(
            ["ssh", "-o", algorithm, "-l", endpoint.user, *port, endpoint.host, "true"]
        )
    kind = str(key.get_name()).removeprefix("ssh-").partition("-")[0]
    file = next((str(path) for path in endpoint.known_hosts if _own(path)), _KNOWN_HOSTS)
    return f"{shlex.join(['ssh-keyscan', '-t', kind, *port, endpoint.host])} >> {file}"


def _own(path: Path) -> bool:
    return path.is_relative_to(Path.home())
