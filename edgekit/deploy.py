"""A bundle for a device: a result's artifacts with all that runs, checks and times them there.

The bundle is a result directory itself, so that ``bench`` and ``open_artifact`` take it as one. It
holds no host's engine: an engine runs only on the GPU that it was built for. No torch.
"""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.deploy_files import CHECKSUMS, RUNNER, SCRIPTS, fixed_files
from edgekit.deploy_samples import write_samples
from edgekit.device.package import write_runner
from edgekit.errors import ConfigError, OutputError, UnsupportedError
from edgekit.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    TargetEntry,
    read_manifest,
    verify_files,
    write_manifest,
)
from edgekit.output import AtomicDirectory
from edgekit.types import Progress, no_progress

ARCHIVE = ".tar.gz"


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device.

    Attributes:
        needed: targets of which the result must hold at least one, the most wanted first.
        taken: targets that are delivered where the result holds them.
        built: the target whose engine is built on the device.
    """

    needed: tuple[str, ...]
    taken: tuple[str, ...]
    built: str


DEVICES: Mapping[str, Device] = {
    "jetson": Device(("tensorrt",), ("tensorrt", "onnxruntime"), "tensorrt"),
}


@dataclass(frozen=True, slots=True)
class Deployment:
    """What was written.

    Attributes:
        path: the folder or archive.
        device: key in :data:`DEVICES`.
        targets: the targets in it.
        files: number of files.
        size_bytes: their sizes together, unpacked.
        notes: what the user must know.
    """

    path: Path
    device: str
    targets: tuple[str, ...]
    files: int
    size_bytes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "path": str(self.path),
            "device": self.device,
            "targets": list(self.targets),
            "files": self.files,
            "size_bytes": self.size_bytes,
            "notes": list(self.notes),
        }


def deploy(
    result: Path, *, to: str, out: Path, seed: int = 0, progress: Progress = no_progress
) -> Deployment:
    """Make a bundle for a device.

    Args:
        result: what ``edgekit quantize`` wrote.
        to: key in :data:`DEVICES`.
        out: the folder to make, or a ``.tar.gz`` file; appears whole or not at all.
        seed: of the sample inputs that the bundle carries.
        progress: called as the work advances.

    Raises:
        ConfigError: there is no such device.
        LoadError: not a result, or one of its files differs from its manifest.
        UnsupportedError: the result holds nothing for this device.
        MissingDependencyError: ONNX Runtime is not installed, which computes the samples' outputs.
        OutputError: ``out`` exists or cannot be written.
    """
    if to not in DEVICES:
        raise ConfigError(f"unknown device '{to}'", f"known: {', '.join(DEVICES)}")
    manifest = read_manifest(result)
    entries = _entries(result, manifest, to)
    if not out.name.endswith(ARCHIVE):
        with AtomicDirectory(out) as output:
            bundle = _fill(result, manifest, entries, to, output.path, out.name, seed, progress)
            output.commit()
        progress("done", 1.0)
        return _deployment(out, to, bundle)
    name = out.name.removesuffix(ARCHIVE)
    if out.exists() or out.is_symlink():
        raise OutputError(f"'{out}' exists already", "choose another file, or remove it first")
    with AtomicDirectory(out.with_name(f"{out.name}.making")) as output:
        folder = output.path / name
        folder.mkdir()
        bundle = _fill(result, manifest, entries, to, folder, name, seed, progress)
        progress("archive", 0.9)
        write_archive(folder, output.path / out.name)
        (output.path / out.name).replace(out)
    progress("done", 1.0)
    return _deployment(out, to, bundle)


def _entries(result: Path, manifest: Manifest, to: str) -> tuple[TargetEntry, ...]:
    """Return what the device takes of a result, without the engines of other machines."""
    device = DEVICES[to]
    held = {entry.name: entry for entry in manifest.targets}
    if not any(name in held for name in device.needed):
        raise UnsupportedError(
            f"'{result}' has nothing for '{to}': it holds {', '.join(held) or 'no target'}",
            f"quantize the model with --targets {','.join(device.taken)}, in a scheme that "
            "runtimes execute",
        )
    return tuple(
        replace(
            held[name],
            files=tuple(f for f in held[name].files if f.path not in held[name].engines),
            engines=(),
        )
        for name in device.taken
        if name in held
    )


def _fill(
    result: Path,
    manifest: Manifest,
    entries: Sequence[TargetEntry],
    to: str,
    folder: Path,
    name: str,
    seed: int,
    progress: Progress,
) -> Manifest:
    """Write the files of a bundle into an existing folder and return its manifest."""
    progress("copy", 0.0)
    reference = [file for file in manifest.files if file.path == manifest.reference]
    copied = [*reference, *(file for entry in entries for file in entry.files)]
    verify_files(result, copied)
    for file in copied:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(result / file.path, folder / file.path)
    verify_files(folder, copied)
    (folder / RUNNER).mkdir()
    added = [path.relative_to(folder).as_posix() for path in write_runner(folder / RUNNER)]
    progress("simulate samples", 0.2)
    added += write_samples(result, manifest, entries, folder, seed)
    added += _write_fixed(replace(manifest, targets=tuple(entries)), to, folder, name)
    files = (*reference, *(FileEntry.of(folder, path) for path in sorted(added)))
    bundle = replace(manifest, targets=tuple(entries), files=files)
    write_manifest(bundle, folder)
    _write_checksums(bundle, folder)
    return bundle


def _write_fixed(manifest: Manifest, to: str, folder: Path, name: str) -> list[str]:
    built = [entry.model for entry in manifest.targets if entry.name == DEVICES[to].built]
    texts = fixed_files(manifest.to_dict(), name, built[0] if built else None)
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
        if path in SCRIPTS:
            (folder / path).chmod(0o755)
    return list(texts)


def _write_checksums(bundle: Manifest, folder: Path) -> None:
    """Write what ``sha256sum --check`` reads: a device checks it before it starts any Python."""
    entries = [*bundle.all_files, FileEntry.of(folder, MANIFEST_NAME)]
    lines = [f"{e.sha256}  {e.path}\n" for e in sorted(entries, key=lambda e: e.path)]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def write_archive(folder: Path, path: Path) -> None:
    """Pack a folder; equal contents give equal bytes, whoever packs them and whenever."""
    with (
        path.open("wb") as stream,
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for file in (folder, *sorted(folder.rglob("*"))):
            archive.add(
                file, file.relative_to(folder.parent).as_posix(), recursive=False, filter=_plain
            )


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop what differs from machine to machine."""
    executable = member.isdir() or member.mode & 0o100
    return member.replace(
        mtime=0, mode=0o755 if executable else 0o644, uid=0, gid=0, uname="", gname="", deep=False
    )


def _deployment(out: Path, to: str, bundle: Manifest) -> Deployment:
    names = tuple(entry.name for entry in bundle.targets)
    notes = ["the engine is built on the device: build.sh"]
    notes += [
        f"no {name} artifact in it: the result holds none"
        for name in DEVICES[to].taken
        if name not in names
    ]
    size = sum(file.size_bytes for file in bundle.all_files)
    return Deployment(out, to, names, len(bundle.all_files) + 2, size, tuple(notes))
