"""Ways to a device below ssh, and what to say where they end."""

from __future__ import annotations

import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from edgekit.errors import ConfigError
from edgekit.remote.errors import DeviceError, LoginError
from edgekit.remote.ssh_config import SSH_PORT, Endpoint

_UNACKNOWLEDGED_MS = 45_000  # after which the kernel gives a silent peer up
_END_S = 2.0


@contextmanager
def direct(where: Endpoint) -> Iterator[socket.socket]:
    """Connect to a device.

    Raises:
        DeviceError: nobody answers.
    """
    try:
        stream = socket.create_connection((where.host, where.port), where.connect_timeout_s)
    except OSError as error:
        raise unreachable(where, error) from error
    with stream:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        yield stream


@contextmanager
def through_program(command: Sequence[str]) -> Iterator[socket.socket]:
    """Start a program whose input and output are the connection.

    Raises:
        ConfigError: it cannot be started.
    """
    # A pair of sockets rather than pipes: when the program ends, reading ends.
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            try:
                child = subprocess.Popen(
                    list(command), stdin=theirs.fileno(), stdout=theirs.fileno()
                )
            except OSError as error:
                raise ConfigError(
                    f"~/.ssh/config: ProxyCommand '{command[0]}' cannot be started: "
                    f"{error.strerror}"
                ) from error
        try:
            yield ours
        finally:
            _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_END_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def unreachable(where: Endpoint, error: BaseException) -> DeviceError:
    """Return the error for a device that does not answer, or not as an sshd does."""
    test = ["ssh", *_port(where), f"{where.user}@{where.host}", "true"]
    return DeviceError(
        f"no ssh connection to {where.label}: {str(error) or type(error).__name__}",
        "see whether the device is on, its address is right and sshd runs there: "
        + shlex.join(test),
    )


def refused_keys(where: Endpoint) -> LoginError:
    """Return the error for a device that takes none of the keys."""
    tried = ", ".join(where.identity_files) or "the keys in ~/.ssh"
    agent = "" if where.identities_only else " and of the agent"
    copy = shlex.join(["ssh-copy-id", *_port(where), f"{where.user}@{where.host}"])
    return LoginError(
        f"{where.label} accepts none of the keys (tried: {tried}{agent})",
        f"install your key there: {copy}; a key with a passphrase must be in the agent "
        "(ssh-add); passwords are not used",
    )


def _port(where: Endpoint) -> list[str]:
    return [] if where.port == SSH_PORT else ["-p", str(where.port)]
