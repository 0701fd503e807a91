"""One ssh connection: made, checked, used for commands and files, and closed.

Commands are lists of words. They reach the device's shell through ``shlex.join``, so that nothing
in a path or a name is ever read as shell syntax.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from edgekit.errors import ConfigError, require
from edgekit.remote.address import Device
from edgekit.remote.errors import ConnectionLostError, DeviceError
from edgekit.remote.host_keys import (
    RefuseUnknownKey,
    changed_key,
    fingerprint,
    load_known_hosts,
)
from edgekit.remote.ssh_config import EXTRA, SSH_PORT, Endpoint, read_ssh_config, resolve_endpoint
from edgekit.remote.streams import direct, refused_keys, through_program, unreachable

_LOGGER = "edgekit.remote.ssh"
_BANNER_S, _LOGIN_S, _CHANNEL_S = 15.0, 30.0, 20.0
_KEEPALIVE_S = 15
_DEEPEST = 5
_ANSWER_S = 30.0
_STATUS_S, _POLL_S = 5.0, 0.02
_ASKED_S = 5.0
_STDERR_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a short command said."""

    status: int
    stdout: str
    stderr: str


class Connection:
    """An open connection; a context manager.

    Args:
        device: the device.
        depth: machines behind it, to notice a configuration that goes in circles.
        jumps: machines to go through, if not those that the configuration names.
    """

    def __init__(self, device: Device, depth: int = 0, jumps: tuple[Device, ...] = ()) -> None:
        self.device = device
        self._depth = depth
        self._stack = ExitStack()
        self._client: Any = None
        self._sftp: Any = None
        found = resolve_endpoint(device, read_ssh_config(device))
        self.endpoint: Endpoint = replace(found, jumps=jumps) if jumps else found

    def __enter__(self) -> Connection:
        try:
            self._connect()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; nothing fails because it is gone already."""
        with suppress(OSError, EOFError):
            self._stack.close()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as this side knows."""
        transport = None if self._client is None else self._client.get_transport()
        return transport is not None and bool(transport.is_active())

    def answers(self) -> bool:
        """Whether the device still answers: when a connection breaks, commands end first."""
        paramiko = require("paramiko", extra=EXTRA)
        transport = self._client.get_transport()
        if transport is None:
            return False
        try:
            transport.open_session(timeout=_ASKED_S).close()
        except (OSError, EOFError, paramiko.SSHException):
            return False
        return True

    @property
    def host_key(self) -> str:
        """Fingerprint of the device's key, which tells devices apart."""
        return fingerprint(self._client.get_transport().get_remote_server_key())

    def lost(self) -> ConnectionLostError:
        """Return the error for a connection that broke."""
        return ConnectionLostError(
            f"the connection to {self.endpoint.label} was lost",
            "see whether the device is still on and its network works, then run the command again",
        )

    def start(self, command: Sequence[str]) -> Any:
        """Start a command and return its channel, a paramiko ``Channel``.

        Raises:
            ConnectionLostError: the connection broke.
            DeviceError: the device starts nothing.
        """
        paramiko = require("paramiko", extra=EXTRA)
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise self.lost()
            channel = transport.open_session(timeout=_CHANNEL_S)
            channel.exec_command(shlex.join(command))
        except (OSError, EOFError, paramiko.SSHException) as error:
            if not self.alive:
                raise self.lost() from error
            raise DeviceError(
                f"{self.endpoint.label} refuses to start a command: {error}",
                "its sshd limits sessions (MaxSessions) or its account has no shell",
            ) from error
        return channel

    def run(
        self, command: Sequence[str], stdin: bytes = b"", timeout_s: float = _ANSWER_S
    ) -> Answer:
        """Run a short command and wait for it.

        Args:
            command: program and arguments.
            stdin: what it reads.
            timeout_s: seconds until it must have answered.

        Raises:
            ConnectionLostError: the connection broke.
            DeviceError: the device starts nothing, or nothing came in time.
        """
        channel = self.start(command)
        channel.settimeout(timeout_s)
        try:
            channel.sendall(stdin)
            channel.shutdown_write()
            stdout = channel.makefile("rb").read()
            stderr = channel.makefile_stderr("rb").read(_STDERR_BYTES)
            status = self.exit_status(channel)
        except TimeoutError as error:
            raise self._unanswered(command, timeout_s) from error
        except (OSError, EOFError) as error:
            raise self.lost() from error
        finally:
            channel.close()
        if status is None and not self.alive:
            raise self.lost()
        text = (stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))
        return Answer(-1 if status is None else status, *text)

    def _unanswered(self, command: Sequence[str], seconds: float) -> DeviceError:
        if not self.alive:
            return self.lost()
        return DeviceError(
            f"{self.endpoint.label}: '{command[0]}' gave no answer within {seconds:g} s",
            "the device is overloaded: see what else runs there",
        )

    def exit_status(self, channel: Any) -> int | None:
        """Return the exit code of a command that has ended.

        Returns:
            ``None`` where a signal ended it, or the connection broke.
        """
        # The end of the output arrives a little before the code does.
        deadline = time.monotonic() + _STATUS_S
        while not channel.exit_status_ready() and not channel.closed:
            if time.monotonic() > deadline or not self.alive:
                return None
            time.sleep(_POLL_S)
        code = int(channel.recv_exit_status()) if channel.exit_status_ready() else -1
        return None if code < 0 else code

    def sftp(self) -> Any:
        """Return paramiko's ``SFTPClient`` of this connection.

        Raises:
            ConnectionLostError: the connection broke.
            DeviceError: the device's sshd has no SFTP.
        """
        paramiko = require("paramiko", extra=EXTRA)
        if self._sftp is None:
            try:
                self._sftp = self._client.open_sftp()
            except (OSError, EOFError, paramiko.SSHException) as error:
                if not self.alive:
                    raise self.lost() from error
                raise DeviceError(
                    f"{self.endpoint.label} does not take files: {error}",
                    "its sshd needs a line 'Subsystem sftp internal-sftp'",
                ) from error
        return self._sftp

    def _connect(self) -> None:
        paramiko = require("paramiko", extra=EXTRA)
        # A logger with a handler of no effect: what paramiko's threads meet is told by our errors.
        logging.getLogger(_LOGGER).addHandler(logging.NullHandler())
        where = self.endpoint
        client = paramiko.SSHClient()
        client.set_log_channel(_LOGGER)
        load_known_hosts(client, where)
        client.set_missing_host_key_policy(RefuseUnknownKey(where))
        stream = self._stream()
        self._stack.callback(client.close)
        try:
            client.connect(
                where.key_name,  # the socket is open already: this names the host key only
                SSH_PORT,
                username=where.user,
                sock=stream,
                key_filename=list(where.identity_files) or None,
                allow_agent=not where.identities_only,
                look_for_keys=not where.identities_only,
                banner_timeout=_BANNER_S,
                auth_timeout=_LOGIN_S,
                channel_timeout=_CHANNEL_S,
                timeout=where.connect_timeout_s,
            )
        except paramiko.BadHostKeyException as error:
            raise changed_key(where, error.key, error.expected_key) from error
        except paramiko.AuthenticationException as error:
            raise refused_keys(where) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise (
                refused_keys(where) if _knocked(client) else unreachable(where, error)
            ) from error
        client.get_transport().set_keepalive(_KEEPALIVE_S)
        self._client = client

    def _stream(self) -> Any:
        """Return something like a socket to the device, directly or through what is configured."""
        where = self.endpoint
        if where.jumps:
            return self._through(where)
        if where.proxy_command is not None:
            return self._stack.enter_context(through_program(where.proxy_command))
        return self._stack.enter_context(direct(where))

    def _through(self, where: Endpoint) -> Any:
        paramiko = require("paramiko", extra=EXTRA)
        if self._depth >= _DEEPEST:
            raise ConfigError(f"~/.ssh/config: ProxyJump of '{self.device.host}' goes in circles")
        *before, last = where.jumps
        jump = self._stack.enter_context(Connection(last, self._depth + 1, tuple(before)))
        try:
            return jump._client.get_transport().open_channel(
                "direct-tcpip",
                (where.host, where.port),
                ("127.0.0.1", 0),
                timeout=where.connect_timeout_s,
            )
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise DeviceError(
                f"{where.label} cannot be reached from {jump.endpoint.label}: {error}"
            ) from error


def _knocked(client: Any) -> bool:
    """Whether a connection got as far as the question who we are."""
    transport = client.get_transport()
    return transport is not None and transport.is_active() and transport.initial_kex_done
