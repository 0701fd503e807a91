"""``manifest.json``: what a result directory holds, for the machine that runs it.

Plain JSON, so that a device reads it with nothing but Python. Every file of the result is listed
with its hash: an artifact that was cut short by a bad copy must not be mistaken for a bad network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgekit.errors import ConfigError, LoadError
from edgekit.types import Cpu, InputSpec, OutputSpec, Preprocessing, Task

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the result: ``path`` is relative to the result directory, with ``/``."""

    path: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        _check_relative(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": self.path, "sha256": self.sha256, "size_bytes": self.size_bytes}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FileEntry:
        """Read what :meth:`to_dict` wrote; unknown and missing keys are errors."""
        _check_keys(data, "file", ("path", "sha256", "size_bytes"))
        return cls(str(data["path"]), str(data["sha256"]), int(data["size_bytes"]))

    @classmethod
    def of(cls, directory: Path, path: str) -> FileEntry:
        """Hash the existing file ``directory / path``."""
        digest = hashlib.sha256()
        size = 0
        with (directory / path).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return cls(path, digest.hexdigest(), size)


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """One delivered target.

    Attributes:
        name: key of the target in the registry.
        model: the file that the target's runner opens, relative to the result directory.
        files: every file of the target, ``model`` among them.
        executed: whether the artifact was run by its own runtime when it was made.
        reason: why it was not, else ``None``.
        engines: prebuilt engines among ``files``, if the target has such.
    """

    name: str
    model: str
    files: tuple[FileEntry, ...]
    executed: bool
    reason: str | None = None
    engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        listed = {entry.path for entry in self.files}
        for path in (self.model, *self.engines):
            if path not in listed:
                raise ConfigError(f"target '{self.name}': '{path}' is not among its files")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "model": self.model,
            "files": [entry.to_dict() for entry in self.files],
            "executed": self.executed,
            "reason": self.reason,
            "engines": list(self.engines),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TargetEntry:
        """Read what :meth:`to_dict` wrote; unknown and missing keys are errors."""
        _check_keys(data, "target", ("name", "model", "files", "executed", "reason", "engines"))
        return cls(
            name=str(data["name"]),
            model=str(data["model"]),
            files=tuple(FileEntry.from_dict(entry) for entry in data["files"]),
            executed=bool(data["executed"]),
            reason=None if data["reason"] is None else str(data["reason"]),
            engines=tuple(str(path) for path in data["engines"]),
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The contents of ``manifest.json``.

    Attributes:
        edgekit_version: version that wrote the result.
        task: meaning of the first output.
        inputs: network inputs, in order.
        outputs: network outputs, in order.
        preprocessing: how an image becomes the input; ``None`` when the network takes no image.
        num_classes: number of classes of a classifier, else ``None``.
        scheme: name of the quantization scheme, such as ``"w8a8"``.
        cpu: instruction set that the CPU artifacts are exact on.
        targets: what was delivered.
        files: files outside the targets' folders (float reference, codes, recipe).
        reference: the float network, relative to the result directory.
        versions: version of each tool that took part.
    """

    edgekit_version: str
    task: Task
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    preprocessing: Preprocessing | None
    num_classes: int | None
    scheme: str
    cpu: Cpu
    targets: tuple[TargetEntry, ...]
    files: tuple[FileEntry, ...] = ()
    reference: str = "float/model.onnx"
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_relative(self.reference)
        names = [entry.name for entry in self.targets]
        if len(set(names)) != len(names):
            raise ConfigError(f"manifest: a target is listed twice in {names}")

    def target(self, name: str) -> TargetEntry:
        """Return the entry of one target.

        Raises:
            ConfigError: the result holds no such target.
        """
        for entry in self.targets:
            if entry.name == name:
                return entry
        held = ", ".join(entry.name for entry in self.targets) or "none"
        raise ConfigError(f"this result holds no target '{name}'", f"it holds: {held}")

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """Every file of the result except the manifest itself."""
        return (*self.files, *(file for entry in self.targets for file in entry.files))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plain = None if self.preprocessing is None else self.preprocessing.to_dict()
        return {
            "schema_version": SCHEMA_VERSION,
            "edgekit_version": self.edgekit_version,
            "task": self.task.value,
            "inputs": [spec.to_dict() for spec in self.inputs],
            "outputs": [spec.to_dict() for spec in self.outputs],
            "preprocessing": plain,
            "num_classes": self.num_classes,
            "scheme": self.scheme,
            "cpu": self.cpu.value,
            "targets": [entry.to_dict() for entry in self.targets],
            "files": [entry.to_dict() for entry in self.files],
            "reference": self.reference,
            "versions": dict(sorted(self.versions.items())),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """Read what :meth:`to_dict` wrote; unknown and missing keys are errors.

        Raises:
            ConfigError: a key is unknown or missing, or the schema version is another one.
        """
        _check_schema(data)
        _check_keys(data, "manifest", _MANIFEST_KEYS)
        plain, classes = data["preprocessing"], data["num_classes"]
        return cls(
            edgekit_version=str(data["edgekit_version"]),
            task=Task(data["task"]),
            inputs=tuple(InputSpec.from_dict(spec) for spec in data["inputs"]),
            outputs=tuple(OutputSpec.from_dict(spec) for spec in data["outputs"]),
            preprocessing=None if plain is None else Preprocessing.from_dict(plain),
            num_classes=None if classes is None else int(classes),
            scheme=str(data["scheme"]),
            cpu=Cpu(data["cpu"]),
            targets=tuple(TargetEntry.from_dict(entry) for entry in data["targets"]),
            files=tuple(FileEntry.from_dict(entry) for entry in data["files"]),
            reference=str(data["reference"]),
            versions={str(key): str(value) for key, value in data["versions"].items()},
        )


_MANIFEST_KEYS = (
    "schema_version",
    "edgekit_version",
    "task",
    "inputs",
    "outputs",
    "preprocessing",
    "num_classes",
    "scheme",
    "cpu",
    "targets",
    "files",
    "reference",
    "versions",
)


def write_manifest(manifest: Manifest, directory: Path) -> Path:
    """Write ``directory/manifest.json`` and return its path; equal manifests give equal bytes."""
    path = directory / MANIFEST_NAME
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def read_manifest(directory: Path) -> Manifest:
    """Read ``directory/manifest.json``.

    Raises:
        LoadError: ``directory`` is not a result of edgekit, or its manifest is damaged or of
            another schema version.
    """
    path = directory / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LoadError(
            f"'{directory}' is not an edgekit result directory: it has no {MANIFEST_NAME}",
            "give the directory that 'edgekit quantize --out' wrote",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"'{path}' cannot be read: {error}") from error
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ConfigError(f"expected an object, got {type(data).__name__}")
        return Manifest.from_dict(data)
    except (
        ConfigError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        hint = error.hint if isinstance(error, ConfigError) else ""
        raise LoadError(
            f"'{path}' is not a valid manifest: {error}", hint or "quantize the model again"
        ) from error


def verify_files(directory: Path, files: Iterable[FileEntry]) -> None:
    """Compare files on disk with their entries in the manifest.

    Args:
        directory: the result directory.
        files: the entries to check: a target's, or :attr:`Manifest.all_files`.

    Raises:
        LoadError: a file is missing, or its size or hash differs.
    """
    for entry in files:
        _verify_file(directory, entry)


def _verify_file(directory: Path, entry: FileEntry) -> None:
    path = directory / entry.path
    hint = "copy the whole result directory again, or quantize the model again"
    try:
        found = FileEntry.of(directory, entry.path)
    except OSError as error:
        raise LoadError(f"'{path}' is listed in the manifest but cannot be read", hint) from error
    if found.size_bytes != entry.size_bytes:
        raise LoadError(
            f"'{path}' has {found.size_bytes} bytes, the manifest says {entry.size_bytes}", hint
        )
    if found.sha256 != entry.sha256:
        raise LoadError(f"'{path}' was changed: its SHA-256 is not the manifest's", hint)


def _check_schema(data: Mapping[str, Any]) -> None:
    version = data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"schema version {version!r}, this edgekit reads {SCHEMA_VERSION}",
            "use the edgekit version that wrote the result, or quantize the model again",
        )


def _check_keys(data: Mapping[str, Any], what: str, known: tuple[str, ...]) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ConfigError(f"{what}: unknown key {', '.join(map(repr, unknown))}")
    missing = [key for key in known if key not in data]
    if missing:
        raise ConfigError(f"{what}: missing key {', '.join(map(repr, missing))}")


def _check_relative(path: str) -> None:
    # A manifest may come from elsewhere: it must not name files outside its own directory.
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ":" in path or ".." in parts:
        raise ConfigError(f"'{path}' is not a path inside the result directory")
