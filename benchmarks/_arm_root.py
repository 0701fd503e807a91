"""A private folder with an aarch64 Python, NumPy and ONNX Runtime, and an emulator to run it.

Nothing of the system is changed: apt works with lists and a cache of its own, and packages are
unpacked, not installed. Debian and Ubuntu only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

EMULATOR = "qemu-aarch64-static"
_ARM_PACKAGES = ("python3", "libstdc++6")
_TIMEOUT_S = 900.0
# Wheels bear the oldest tag that they run on; pip takes no newer system for an older one.
_PLATFORMS = ("2_28", "2_27", "2_17")


class SetupError(Exception):
    """The emulated environment cannot be made on this machine."""


def make_arm_root(folder: Path, wheels: tuple[str, ...]) -> Path:
    """Fill ``folder`` with an aarch64 system and Python packages, unless it is done already.

    Args:
        folder: kept between runs.
        wheels: requirements such as ``numpy==2.2.6``.

    Returns:
        The Python program in it.

    Raises:
        SetupError: no apt, no network, or a package without an aarch64 wheel.
    """
    done = folder / "done.txt"
    if not done.exists() or done.read_text() != "\n".join(wheels):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "root").mkdir(parents=True)
        _unpack_system(folder)
        _unpack_wheels(folder, wheels)
        done.write_text("\n".join(wheels))
    return arm_python(folder)


def arm_python(folder: Path) -> Path:
    """Return the Python program of an aarch64 system."""
    found = sorted((folder / "root/usr/bin").glob("python3.[0-9]*[0-9]"))
    if not found:
        raise SetupError(f"'{folder}' holds no Python")
    return found[0]


def site_packages(folder: Path) -> Path:
    """Return where the wheels are unpacked."""
    return folder / "site"


def find_emulator(folder: Path) -> Path:
    """Return the emulator: an installed one, else one that is unpacked below ``folder``."""
    installed = shutil.which(EMULATOR) or shutil.which("qemu-aarch64")
    if installed is not None:
        return Path(installed)
    unpacked = folder / "emulator"
    if not unpacked.is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            _run(["apt-get", "download", "qemu-user-static"], Path(scratch))
            for package in Path(scratch).glob("*.deb"):
                _run(["dpkg-deb", "--extract", str(package), str(unpacked)], Path(scratch))
    return next(unpacked.rglob(EMULATOR))


def _unpack_system(folder: Path) -> None:
    """Download what apt finds Python to need, for another architecture, and unpack it."""
    state = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()  # nothing is installed there yet
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Dir::State::lists": f"{state}/lists",
        "Dir::State::status": f"{state}/status",
        "Dir::Cache": str(state),
        "Dir::Cache::archives": f"{state}/archives",
    }
    apt = ["apt-get", "-q", "-y"]
    for key, value in settings.items():
        apt += ["-o", f"{key}={value}"]
    _run([*apt, "update"], folder)
    _run([*apt, "--download-only", "install", *_ARM_PACKAGES], folder)
    for package in sorted((state / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(folder / "root")], folder)
    shutil.rmtree(state)


def _unpack_wheels(folder: Path, wheels: tuple[str, ...]) -> None:
    version = arm_python(folder).name.removeprefix("python")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--python-version", version, "--implementation", "cp"]
    for system in _PLATFORMS:
        command += ["--platform", f"manylinux_{system}_aarch64"]
    _run([*command, "--platform", "manylinux2014_aarch64", "-d", "wheels", *wheels], folder)
    for wheel in sorted((folder / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site_packages(folder))
    shutil.rmtree(folder / "wheels")


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"'{command[0]}' failed: {error}") from error
    if done.returncode != 0:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(f"'{' '.join(command[:2])} ...' failed: {told[-1] if told else 'silent'}")
