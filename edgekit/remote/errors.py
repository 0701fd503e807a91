"""What can go wrong between this machine and a device."""

from __future__ import annotations

from typing import Any

from edgekit.errors import EdgekitError


class DeviceError(EdgekitError):
    """A device cannot be used, or its part of the work failed."""

    code = "device"


class UnknownHostKeyError(DeviceError):
    """Nobody has confirmed yet that the key belongs to this device."""

    code = "unknown_host_key"


class ChangedHostKeyError(DeviceError):
    """The device shows another key than the one that was confirmed."""

    code = "changed_host_key"


class LoginError(DeviceError):
    """The device accepts none of the keys."""

    code = "login"


class DiskFullError(DeviceError):
    """The device has no room for what is to be written there."""

    code = "device_disk_full"


class ConnectionLostError(DeviceError):
    """The connection broke, or the device stopped answering."""

    code = "connection_lost"


class RunnerKilledError(DeviceError):
    """The process on the device ended without an answer."""

    code = "runner_killed"


def kept(error: EdgekitError, partial: dict[str, Any] | None, where: str) -> EdgekitError:
    """Return the error with a sentence that says where finished results are.

    Args:
        error: what ended the run.
        partial: the document of the finished rounds, if there are any.
        where: the file that holds it.
    """
    if partial is None:
        return error
    return type(error)(f"{error.message}; finished rounds are kept in '{where}'", error.hint)
