"""Runs an artifact on files, with the host's steps around it. No torch: it also runs on devices."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.datasets import list_images, read_image
from edgekit.errors import ConfigError, VerificationError
from edgekit.few_shot import Metric
from edgekit.manifest import Manifest, read_manifest
from edgekit.preprocess import fit_input, preprocess
from edgekit.run.arrays import read_inputs, run_arrays
from edgekit.run.artifact import OpenArtifact, check_image_input, open_target
from edgekit.run.classes import (
    Support,
    best_classes,
    make_support,
    read_names,
    read_support,
    support_files,
)
from edgekit.run.outputs import npz_bytes, planned, prepare, write_bytes
from edgekit.run.pictures import Picture, encode_png, read_picture, side_by_side
from edgekit.run.report import FileResult, Guess, RunReport
from edgekit.run.restoration import Restorer
from edgekit.run.tiles import DEFAULT_TILE
from edgekit.types import Progress, Task, no_progress

__all__ = ["FileResult", "Guess", "Metric", "RunReport", "run"]

_RESULTS = "results.json"
_EMBEDDINGS = "embeddings.npz"


def run(
    result_dir: Path,
    files: Sequence[Path] = (),
    *,
    target: str | None = None,
    out: Path | None = None,
    classes: Path | None = None,
    support: Path | None = None,
    save_support: Path | None = None,
    metric: Metric = Metric.PROJECTION,
    tile: int = DEFAULT_TILE,
    threads: int | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> RunReport:
    """Run one target of a result on pictures or arrays, and write what comes out.

    Pictures go through the steps that the network's task needs: an image-to-image network
    restores them at their size, a classifier names five classes, an embedding writes vectors or,
    with ``support``, finds the nearest class. Any network takes ``.npz`` files of its inputs.

    Args:
        result_dir: what ``edgekit quantize --out`` wrote.
        files: pictures, folders of pictures, and ``.npz`` files.
        target: name of the target; else the first that runs here, executed ones before others.
        out: folder for what is written; the current one if ``None``. Where it is given, the
            report is written there as well, as ``results.json``.
        classes: names of the classes, one a line.
        support: folder of class folders, or the file of an earlier ``save_support``.
        save_support: ``.npz`` to which the prototypes are written.
        metric: how embeddings and prototypes are compared.
        tile: side of tiles; pictures of more than ``tile * tile`` pixels run in tiles.
        threads: threads of the runtime; its own choice if ``None``.
        force: overwrite files.
        progress: called as the work advances.

    Raises:
        ConfigError: an option does not fit the network, or a layout is another one.
        LoadError: the result is damaged, or a file cannot be decoded.
        OutputError: a file exists or cannot be written.
        UnsupportedError: the network takes no picture, or no target runs here.
        VerificationError: the artifact returned something else than the manifest says.
    """
    manifest = read_manifest(result_dir)
    request = _Request(
        manifest,
        _expanded(files),
        Path() if out is None else out,
        out is not None,
        None if classes is None else read_names(classes),
        support,
        save_support,
        metric,
        tile,
        force,
    )
    request.check()
    artifact = open_target(result_dir, manifest, target, threads)
    with artifact.runner:
        return _Run(request, artifact, progress).all()


@dataclass(frozen=True, slots=True)
class _Request:
    """The options of :func:`run`, and what will be written."""

    manifest: Manifest
    files: tuple[Path, ...]
    out: Path
    summary: bool
    names: tuple[str, ...] | None
    support: Path | None
    save_support: Path | None
    metric: Metric
    tile: int
    force: bool

    @property
    def pictures(self) -> list[Path]:
        return [file for file in self.files if not _is_array(file)]

    @property
    def vectors(self) -> Path | None:
        """The file of embeddings, where pictures are embedded and not classified."""
        embeds = self.manifest.task is Task.EMBEDDING and self.support is None and self.pictures
        return self.out / _EMBEDDINGS if embeds else None

    def outputs(self) -> dict[Path, dict[str, Path]]:
        """Return what is written for each file, by kind."""
        name = re.sub(r"[^\w.-]+", "_", self.manifest.outputs[0].name)
        endings = {"arrays": "-outputs.npz"}
        pictures: dict[str, str] = {}
        if self.manifest.task is Task.IMAGE_TO_IMAGE:
            pictures = {name: f"-{name}.png", "before_after": "-before-after.png"}
        elif self.manifest.task not in (Task.CLASSIFICATION, Task.EMBEDDING):
            pictures = endings
        endings_of = {file: endings if _is_array(file) else pictures for file in self.files}
        return planned(endings_of, self.out)

    def check(self) -> None:
        """Find what cannot work before anything is opened.

        Raises:
            ConfigError: options contradict each other.
            OutputError: a file exists or cannot be written.
        """
        task = self.manifest.task
        if not self.files and self.save_support is None:
            raise ConfigError("no file to run", "give pictures, folders of pictures, or .npz files")
        if self.support is not None and task is not Task.EMBEDDING:
            raise ConfigError(
                f"--support is for embeddings, and this network is for {task.value}",
                "leave it out",
            )
        if self.save_support is not None and (self.support is None or self.support.is_file()):
            raise ConfigError("--save-support without pictures", "add --support FOLDER")
        if self.names is not None and task is not Task.CLASSIFICATION:
            raise ConfigError(
                f"--classes is for classifiers, and this network is for {task.value}",
                "leave it out; classes of --support have the names of their folders",
            )
        if self.pictures or self.support is not None:
            check_image_input(self.manifest)
        written = [path for kinds in self.outputs().values() for path in kinds.values()]
        for more in (self.vectors, self.save_support, self.results):
            written += [] if more is None else [more]
        given = {file.resolve() for file in self.files}
        lost = [path for path in written if path.resolve() in given]
        if lost:
            raise ConfigError(
                f"'{lost[0]}' is to be read and to be written",
                "leave it out of the files, or choose another folder with --out",
            )
        prepare(written, force=self.force)

    @property
    def results(self) -> Path | None:
        return self.out / _RESULTS if self.summary else None


class _Run:
    """One run: the open artifact, what is asked of it, and what came of it so far."""

    def __init__(self, request: _Request, artifact: OpenArtifact, progress: Progress) -> None:
        self._request = request
        self._artifact = artifact
        self._manifest = artifact.manifest
        self._progress = progress
        self._outputs = request.outputs()
        self._restorer: Restorer | None = None
        self._support: Support | None = None
        self._embedded: list[np.ndarray] = []

    def all(self) -> RunReport:
        """Run every file and return the report."""
        request = self._request
        if self._manifest.task is Task.IMAGE_TO_IMAGE and request.pictures:
            self._restorer = Restorer(self._artifact, request.tile)
        for file, kinds in self._outputs.items():
            if kinds:  # a bad file is found before others have been written
                self._check(file)
        if request.support is not None:
            self._support = self._make_support(request.support)
        results = self._each()
        written: dict[str, Path] = {}
        if self._support is not None and request.save_support is not None:
            write_bytes(request.save_support, npz_bytes(self._support.arrays()))
            written["support"] = request.save_support
        if request.vectors is not None:
            arrays = {
                "embeddings": np.stack(self._embedded),
                "files": np.array([str(file) for file in request.pictures]),
            }
            write_bytes(request.vectors, npz_bytes(arrays))
            written["embeddings"] = request.vectors
        report = self._report(results, written)
        if request.results is not None:
            text = json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n"
            write_bytes(request.results, text.encode())
        return report

    def _each(self) -> tuple[FileResult, ...]:
        results: list[FileResult] = []
        try:
            for index, file in enumerate(self._request.files):
                results.append(self._one(index, file))
        except KeyboardInterrupt as interrupt:
            if not any(result.outputs for result in results):
                raise
            kept = f"what {len(results)} of {len(self._request.files)} files gave was written"
            raise KeyboardInterrupt(kept) from interrupt
        return tuple(results)

    def _report(self, results: tuple[FileResult, ...], written: dict[str, Path]) -> RunReport:
        made = self._support
        if self._request.results is not None:
            written["results"] = self._request.results
        return RunReport(
            self._manifest.task,
            self._artifact.name,
            self._artifact.executed,
            self._artifact.reason,
            results,
            written,
            None if made is None else self._request.metric.value,
            {} if made is None else dict(zip(made.names, made.counts, strict=True)),
        )

    def _check(self, file: Path) -> None:
        if _is_array(file):
            read_inputs(file, self._manifest.inputs)
        elif self._restorer is not None:
            read_picture(file)
        else:
            self._image_input(file)

    def _one(self, index: int, file: Path) -> FileResult:
        self._tell(index, 0.0)
        if _is_array(file):
            return self._arrays(file)
        if self._restorer is not None:
            return self._restored(self._restorer, index, file)
        size, values, seconds = self._outputs_of(file)
        first = values[self._manifest.outputs[0].name]
        guesses: tuple[Guess, ...] = ()
        if self._manifest.task is Task.CLASSIFICATION:
            guesses = best_classes(first, self._request.names)
        elif self._support is not None:
            guesses = self._support.guesses(_vector(first), self._request.metric)
        elif self._manifest.task is Task.EMBEDDING:
            self._embedded.append(_vector(first))
        written = self._outputs[file]
        for path in written.values():
            write_bytes(path, npz_bytes(values))
        return FileResult(file, size, seconds, outputs=written, guesses=guesses)

    def _arrays(self, file: Path) -> FileResult:
        values, seconds = run_arrays(self._artifact, read_inputs(file, self._manifest.inputs))
        written = self._outputs[file]
        write_bytes(written["arrays"], npz_bytes(values))
        return FileResult(file, None, seconds, outputs=written)

    def _restored(self, restorer: Restorer, index: int, file: Path) -> FileResult:
        picture = read_picture(file)
        made = restorer.restore(picture, lambda part: self._tell(index, part))
        written = self._outputs[file]
        pictures: dict[str, Picture] = {
            kind: side_by_side(picture, made.picture) if kind == "before_after" else made.picture
            for kind in written
        }
        for kind, path in written.items():
            write_bytes(path, encode_png(pictures[kind]))
        return FileResult(file, picture.size, made.seconds, made.tiles, written, (), made.notes)

    def _tell(self, index: int, part: float) -> None:
        count = len(self._request.files)
        self._progress(f"run {index + 1}/{count}", (index + part) / count)

    def _image_input(self, file: Path) -> tuple[tuple[int, int], np.ndarray]:
        assert self._manifest.preprocessing is not None
        image = read_image(file)
        array = preprocess(image, self._manifest.preprocessing)
        return (image.shape[0], image.shape[1]), fit_input(array[None], self._manifest.inputs[0])

    def _outputs_of(self, file: Path) -> tuple[tuple[int, int], dict[str, np.ndarray], float]:
        size, value = self._image_input(file)
        began = time.perf_counter()
        found = self._artifact.infer({self._manifest.inputs[0].name: value})
        return size, found, time.perf_counter() - began

    def _make_support(self, source: Path) -> Support:
        network = _network_hash(self._manifest)
        if source.is_file():
            return read_support(source, network)
        classes = support_files(source)
        first = self._manifest.outputs[0].name

        def embed(file: Path) -> np.ndarray:
            return _vector(self._outputs_of(file)[1][first])

        return make_support(classes, embed, network)


def _vector(output: np.ndarray) -> np.ndarray:
    """Return the embedding ``[features]`` of one picture, in float32."""
    if not np.isfinite(output).all():
        raise VerificationError(
            "the artifact put out numbers that are not finite", "choose another one with --target"
        )
    return output.reshape(-1).astype(np.float32)


def _network_hash(manifest: Manifest) -> str:
    """Return the hash of the float network: its embeddings are those of all its targets."""
    return next((f.sha256 for f in manifest.files if f.path == manifest.reference), "")


def _is_array(file: Path) -> bool:
    return file.suffix.lower() == ".npz"


def _expanded(files: Sequence[Path]) -> tuple[Path, ...]:
    """Return files once each, folders as the pictures in them."""
    found: dict[Path, None] = {}
    for file in files:
        for item in list_images(file) if file.is_dir() else [file]:
            found[item] = None
    return tuple(found)
