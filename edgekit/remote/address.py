"""Which device is meant, checked before anything is sent anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.errors import ConfigError
from edgekit.registry import RUNNERS, VARIANTS

PREFIX = "ssh://"
DEFAULT_PYTHON, DEFAULT_WORKDIR = "python3", "/tmp"  # noqa: S108 - a fresh folder is made in it
_FORM = "ssh://user@host[:port]"
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
# Names and IPv4 addresses; a leading "-" would be an option for the programs that get the name.
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,252})")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,15})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^\]/]*:[^\]/]*\]|[^:/@\[\]]*)(?::(?P<port>[^/]*))?/?"
)
_OWNED_VARIABLES = ("PYTHONPATH", "TMPDIR")  # set for the runner itself


@dataclass(frozen=True, slots=True)
class Device:
    """How a device is reached, and what is used there.

    Attributes:
        name: what the user calls it.
        host: host name, alias in ``~/.ssh/config``, or address.
        user, port: ``None`` for what the ssh configuration says.
        python: interpreter that finds NumPy and the runtimes.
        workdir: existing folder in which a temporary folder is made.
        targets: runtimes to use; all that work there if ``None``.
        env: further variables for the runner.

    Raises:
        ConfigError: a value has another form.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None
    python: str = DEFAULT_PYTHON
    workdir: str = DEFAULT_WORKDIR
    targets: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_host(self.host)
        if self.user is not None and not _USER.fullmatch(self.user):
            raise ConfigError(f"user: '{self.user}' is not a user name")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigError(f"port: {self.port} is not between 1 and 65535")
        _check_program(self.python)
        if not self.workdir.startswith(("/", "~/")) or _unprintable(self.workdir):
            raise ConfigError(f"workdir: '{self.workdir}' must be an absolute path on the device")
        for target in self.targets or ():
            if target not in RUNNERS and target not in VARIANTS:
                known = ", ".join((*RUNNERS, *VARIANTS))
                raise ConfigError(f"targets: '{target}' is no runtime", f"known: {known}")
        for variable, value in self.env.items():
            _check_variable(variable, value)

    @property
    def address(self) -> str:
        """The address as the user would write it."""
        user = "" if self.user is None else f"{self.user}@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{PREFIX}{user}{host}" + ("" if self.port is None else f":{self.port}")


def _check_host(host: str) -> None:
    if not (_IPV6 if ":" in host else _HOST).fullmatch(host):
        raise ConfigError(f"host: '{host}' is not a host name or address")


def _check_program(path: str) -> None:
    bare = "/" not in path
    plain = _NAME.fullmatch(path) if bare else path.startswith(("/", "~/"))
    if not plain or _unprintable(path):
        raise ConfigError(f"python: '{path}' must be a name, such as python3, or an absolute path")


def _check_variable(name: str, value: str) -> None:
    if not _VARIABLE.fullmatch(name) or name in _OWNED_VARIABLES:
        raise ConfigError(f"env: the variable '{name}' cannot be set")
    if "\0" in value or "\n" in value:
        raise ConfigError(f"env: the value of '{name}' must be one line")


def _unprintable(text: str) -> bool:
    return not text.isprintable()


def is_name(text: str) -> bool:
    """Whether a text can be the name of a device in ``devices.toml``."""
    return _NAME.fullmatch(text) is not None


def parse_address(text: str) -> Device:
    """Read ``ssh://user@host[:port]``.

    Raises:
        ConfigError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    hint = f"write {_FORM}; keys, not passwords, open the device"
    if match is None:
        raise ConfigError(f"--device '{text}' is not of the form {_FORM}", hint)
    port = match["port"]
    if port is not None and not re.fullmatch(r"[0-9]{1,5}", port):
        raise ConfigError(f"--device '{text}': '{port}' is not a port", hint)
    host = match["host"].strip("[]")
    try:
        return Device(host, host, match["user"], None if port is None else int(port))
    except ConfigError as error:
        raise ConfigError(f"--device '{text}': {error.message}", hint) from error
