"""Inputs for any quantizer: made for a network without data, and written as arrays."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgekit.calibrate import Synthesizer, synthesizer
from edgekit.errors import OutputError
from edgekit.gallery import gallery
from edgekit.loading import load
from edgekit.options import InputOption
from edgekit.stages import compute_device, on_device
from edgekit.synthetic import SyntheticSet, array_name, save_synthetic
from edgekit.types import Preprocessing, Progress, Task, no_progress

SCHEMA_VERSION = 1


@runtime_checkable
class Portable(Protocol):
    """An engine with settings of its own for sets that other quantizers calibrate with."""

    def portable(self) -> Synthesizer:
        """Return the engine with these settings."""
        ...


@dataclass(frozen=True)
class Synthesis:
    """What was written.

    Attributes:
        path: the ``.npz`` file.
        gallery: picture of the images by class, ``None`` where the input is no image or OpenCV is
            not installed.
        made: the set.
        arrays: names of the arrays that hold the network's inputs, in order.
    """

    path: Path
    gallery: Path | None
    made: SyntheticSet
    arrays: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "file": str(self.path),
            "gallery": None if self.gallery is None else str(self.gallery),
            "engine": self.made.engine,
            "samples": len(self.made),
            "arrays": {
                name: list(value.shape)
                for name, value in zip(self.arrays, self.made.inputs, strict=True)
            },
            "size_bytes": self.path.stat().st_size,
            "notes": list(self.made.notes),
            "facts": dict(self.made.facts),
        }


def synthesize(
    model: str | Path,
    *,
    out: str | Path = "calib.npz",
    samples: int = 256,
    engine: str = "distill",
    arch: str | None = None,
    inputs: Sequence[InputOption] = (),
    preprocessing: Preprocessing | None = None,
    task: Task | None = None,
    seed: int = 0,
    device: str = "auto",
    checkpoint: str | Path | None = None,
    trust_pickle: bool = False,
    weights: str | None = None,
    progress: Progress = no_progress,
) -> Synthesis:
    """Make inputs for a network and write them to an ``.npz`` file, with a picture beside it.

    Args:
        model: file of weights (see :func:`edgekit.load`).
        out: file to write; neither it nor a ``.png`` of the same name may exist.
        samples: number of samples.
        engine: ``distill`` or ``clusterq``.
        arch: architecture, where the file does not name it.
        inputs: input shapes, where neither file nor zoo states them.
        preprocessing: how an image becomes the first input.
        task: meaning of the first output.
        seed: seed of everything random.
        device: ``auto``, ``cpu`` or ``cuda``.
        checkpoint: file that the run is saved to, and continued from if it exists.
        trust_pickle: open also a file that runs code when it is opened.
        weights: which of several sets of weights in the file.
        progress: called as the work advances.

    Raises:
        EdgekitError: the user's error; nothing is written.
    """
    path = Path(out)
    maker = synthesizer(engine, samples, seed)
    if isinstance(maker, Portable):
        maker = maker.portable()
    place = compute_device(device)
    _require_free(path)
    loaded = load(
        model,
        arch=arch,
        inputs=inputs,
        preprocessing=preprocessing,
        task=task,
        trust_pickle=trust_pickle,
        weights=weights,
    )
    captured = loaded.capture_teacher() or loaded.capture()
    with on_device(captured, place):
        made = maker.synthesize(
            captured,
            checkpoint=None if checkpoint is None else Path(checkpoint),
            progress=progress,
        )
    facts = {"model_sha256": loaded.sha256, "arch": loaded.arch, "seed": seed}
    save_synthetic(made, captured.inputs, path, facts)
    picture = _write_gallery(made, captured.preprocessing, path.with_suffix(".png"))
    progress("done", 1.0)
    return Synthesis(path, picture, made, tuple(array_name(spec.name) for spec in captured.inputs))


def _require_free(path: Path) -> None:
    if path.suffix != ".npz":
        raise OutputError(f"--out {path}: the file is an .npz", "for example -o calib.npz")
    for file in (path, path.with_suffix(".png")):
        if file.exists():
            raise OutputError(f"the file '{file}' exists already", "name another one with -o")
    if not path.parent.is_dir():
        raise OutputError(f"the folder '{path.parent}' does not exist", "make it first")


def _write_gallery(
    made: SyntheticSet, preprocessing: Preprocessing | None, path: Path
) -> Path | None:
    if importlib.util.find_spec("cv2") is None:
        return None
    import cv2

    sheet = gallery(made, preprocessing)
    if sheet is None:
        return None
    done, encoded = cv2.imencode(".png", sheet[:, :, ::-1])
    assert done
    try:
        path.write_bytes(encoded.tobytes())
    except OSError as error:
        raise OutputError(
            f"the picture '{path}' cannot be written: {error.strerror or error}",
            f"'{path.with_suffix('.npz')}' is complete without it",
        ) from error
    return path
