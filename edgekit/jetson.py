"""What an NVIDIA Jetson tells about itself: release, JetPack, packages, engines, memory.

Everything is read from files and from the package manager. In a container some of it is missing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_TEGRA = re.compile(r"nvidia,(tegra\d+)")
_VERSION = re.compile(r"\d+(?:\.\d+)*")
# Major release of L4T to JetPack's; exact versions stand in the package, where it is installed.
_JETPACK_OF = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
_BINDINGS = "python3-libnvinfer"
_PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "tensorrt", "libnvinfer[0-9]*", _BINDINGS)
_FORMAT = "-f=${Package} ${Version}\\n"
_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Jetson:
    """A Jetson; ``None`` for what it does not tell.

    Attributes:
        l4t: release of Jetson Linux, such as ``"36.4.3"``.
        jetpack: version of JetPack; only its first number where the package is not installed.
        soc: name of the chip, such as ``"tegra234"`` (Orin).
        cuda: version of the CUDA toolkit.
        tensorrt: version of the installed TensorRT package.
        bindings: version of the package with TensorRT's Python bindings.
        dla_cores: deep learning accelerators that the kernel has found.
    """

    l4t: str | None
    jetpack: str | None
    soc: str | None
    cuda: str | None
    tensorrt: str | None
    bindings: str | None
    dla_cores: int

    @property
    def l4t_major(self) -> int | None:
        """First number of the release."""
        return None if self.l4t is None else int(self.l4t.partition(".")[0])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "l4t": self.l4t,
            "jetpack": self.jetpack,
            "soc": self.soc,
            "cuda": self.cuda,
            "tensorrt": self.tensorrt,
            "bindings": self.bindings,
            "dla_cores": self.dla_cores,
        }


def read_jetson(root: Path = Path("/"), path: str | None = None) -> Jetson | None:
    """Examine this machine; ``None`` if it is no Jetson.

    Args:
        root: where ``etc``, ``proc``, ``sys`` and ``usr`` are.
        path: where ``dpkg-query`` is looked for; ``PATH`` of the environment if ``None``.
    """
    l4t = parse_release(_text(root / "etc/nv_tegra_release"))
    soc = _TEGRA.search(_text(root / "proc/device-tree/compatible"))
    if l4t is None and soc is None:
        return None
    packages = parse_packages(_ask_dpkg(path))
    return Jetson(
        l4t=l4t,
        jetpack=_jetpack(packages, l4t),
        soc=None if soc is None else soc.group(1),
        cuda=parse_cuda(_text(root / "usr/local/cuda/version.json")),
        tensorrt=_tensorrt(packages),
        bindings=_upstream(packages.get(_BINDINGS)),
        dla_cores=len(list((root / "sys/bus/platform/devices").glob("*.nvdla[0-9]"))),
    )


def parse_release(text: str) -> str | None:
    """Read ``/etc/nv_tegra_release``: ``# R36 (release), REVISION: 4.3, ...`` is ``36.4.3``."""
    match = _RELEASE.search(text)
    return None if match is None else f"{match[1]}.{match[2]}"


def parse_packages(text: str) -> dict[str, str]:
    """Read lines with a package and its version; packages without one are not installed."""
    lines = (line.split() for line in text.splitlines())
    return {words[0]: words[1] for words in lines if len(words) == 2}


def parse_cuda(text: str) -> str | None:
    """Read ``version.json`` of a CUDA toolkit."""
    try:
        version = json.loads(text)["cuda"]["version"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(version)


def memory_bytes(root: Path = Path("/")) -> dict[str, int | None]:
    """Return ``total`` and ``available`` memory; on a Jetson the GPU shares it."""
    lines = _text(root / "proc/meminfo").splitlines()
    told = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}

    def figure(key: str) -> int | None:
        words = told.get(key, [])
        return int(words[0]) * 1024 if words and words[0].isdigit() else None

    return {"total": figure("MemTotal"), "available": figure("MemAvailable")}


def _jetpack(packages: Mapping[str, str], l4t: str | None) -> str | None:
    exact = _upstream(packages.get("nvidia-jetpack"))
    if exact is not None or l4t is None:
        return exact
    return _JETPACK_OF.get(int(l4t.partition(".")[0]))


def _tensorrt(packages: Mapping[str, str]) -> str | None:
    names = ["tensorrt", *(n for n in packages if re.fullmatch(r"libnvinfer\d*", n))]
    found = [_upstream(packages[name]) for name in names if name in packages]
    return found[0] if found else None


def _upstream(version: str | None) -> str | None:
    """Return ``10.3.0.30`` of ``10.3.0.30-1+cuda12.5``, and ``6.2.1`` of ``6.2.1+b38``."""
    match = _VERSION.match(version or "")
    return None if match is None else match[0]


def _ask_dpkg(path: str | None) -> str:
    command = shutil.which("dpkg-query", path=path)
    if command is None:
        return ""
    try:
        run = subprocess.run(
            [command, "-W", _FORMAT, *_PACKAGES],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,  # it is 1 where one of the packages is unknown; the others are told
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.decode("utf-8", "replace")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
