"""``edgekit bench`` and ``edgekit doctor`` on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgekit.bench.documents import document_writer
from edgekit.doctor import QUANTIZE
from edgekit.errors import EdgekitError
from edgekit.remote.address import Device
from edgekit.remote.cache import PARTIAL, TIMINGS, device_cache
from edgekit.remote.errors import kept
from edgekit.remote.plan import Plan, plan_bench
from edgekit.remote.session import Session, between, open_session
from edgekit.remote.transfer import Upload, fetch_file
from edgekit.types import Progress, no_progress

_WORKS = "works"
_DOCTOR, _COPIED, _BUILT = 0.1, 0.2, 0.35  # finished fractions of a whole benchmark

Document = dict[str, Any]


def doctor_on_device(device: Device, *, progress: Progress = no_progress) -> Document:
    """Examine a device.

    Args:
        device: the device.
        progress: called as it advances.

    Returns:
        The document of ``edgekit doctor --json``, and ``device``.

    Raises:
        DeviceError: the device cannot be reached, or cannot run the torch-free part.
    """
    with open_session(device, progress) as session:
        document = session.part.ask("doctor", {}, between(progress, 0.1, 0.9))
        # A device runs what a host has quantized.
        document["advice"] = [a for a in document["advice"] if not a.startswith(QUANTIZE)]
        document["device"] = session.describe()
    progress("done", 1.0)
    return document


def bench_on_device(
    paths: Sequence[str | Path],
    device: Device,
    options: Mapping[str, Any],
    *,
    out: Path | None = None,
    progress: Progress = no_progress,
) -> Document:
    """Time artifacts on a device.

    Args:
        paths: result directories and model files, as :func:`edgekit.bench.bench` takes them.
        device: the device.
        options: further options of :func:`edgekit.bench.bench` as JSON values.
        out: file for the document; it holds the finished rounds while others run.
        progress: called as it advances.

    Returns:
        The document of ``edgekit bench --json``, and ``device``.

    Raises:
        EdgekitError: as :func:`edgekit.bench.bench`.
        DeviceError: the device cannot be used. Finished rounds are kept in ``out``, or else in
            the cache of the device.
        KeyboardInterrupt: the user ended it; its text says where finished rounds are.
    """
    save = document_writer(out)  # which refuses a wrong path before any work is done
    with (
        open_session(device, progress) as session,
        TemporaryDirectory(prefix="edgekit-") as scratch,
    ):
        targets = options.get("targets") or device.targets
        problems = {} if targets else _problems(session, between(progress, 0.05, _DOCTOR))
        plan = plan_bench([Path(path) for path in paths], targets, problems, Path(scratch))
        copied = session.part.send(list(plan.uploads), between(progress, _DOCTOR, _COPIED))
        cache = device_cache(session.connection.host_key)
        built = _build(session, plan, cache, between(progress, _COPIED, _BUILT))
        told = {**session.describe(), "copied_bytes": copied, "engines": built}
        run = _Run(session, plan, told, out or cache / PARTIAL)
        document = run.bench(options, between(progress, _BUILT, 1.0))
    (cache / PARTIAL).unlink(missing_ok=True)
    save(document)
    progress("done", 1.0)
    return document


def _problems(session: Session, progress: Progress) -> dict[str, str]:
    """Return the runtimes that do not work on the device, with the reason."""
    examined = session.part.ask("doctor", {}, progress)
    return {
        str(runtime["name"]): str(runtime["problem"] or runtime["state"])
        for runtime in examined["runtimes"]
        if runtime["state"] != _WORKS
    }


def _build(session: Session, plan: Plan, cache: Path, progress: Progress) -> list[Document]:
    """Build the engines on the device, with the timings of earlier builds there."""
    if not plan.builds:
        return []
    timings = cache / TIMINGS
    if timings.is_file():
        session.part.send([Upload(timings, TIMINGS)], progress)
    documents = []
    for number, build in enumerate(plan.builds):
        part = between(progress, number / len(plan.builds), (number + 1) / len(plan.builds))
        request = {"model": build.model, "out": build.engine, "timing_cache": TIMINGS}
        documents.append(session.part.ask("build", request, part))
        # After each one: the next may fail, and measuring took minutes.
        fetch_file(session.connection, session.workspace, TIMINGS, timings)
    return documents


class _Run:
    """A benchmark on a device, and what of it is finished."""

    def __init__(self, session: Session, plan: Plan, device: Document, keep: Path) -> None:
        self._session = session
        self._plan = plan
        self._device = device
        self._keep = keep
        self._save = document_writer(keep)
        self._partial: Document | None = None

    def bench(self, options: Mapping[str, Any], progress: Progress) -> Document:
        """Run it and return its document."""
        request = {**options, "paths": list(self._plan.paths), "targets": self._plan.targets}
        try:
            document = self._session.part.ask("bench", request, progress, self._finished)
        except EdgekitError as error:
            raise kept(error, self._partial, str(self._keep)) from error
        except KeyboardInterrupt as error:
            if self._partial is None:
                raise
            raise KeyboardInterrupt(f"finished rounds are kept in '{self._keep}'") from error
        return self._completed(document, complete=True)

    def _finished(self, document: Document) -> None:
        self._partial = self._completed(document, complete=False)
        self._save(self._partial)

    def _completed(self, document: Document, *, complete: bool) -> Document:
        """Give paths the names that the user gave them, and say what was not sent at all."""
        named: Document = renamed(document, self._plan.paths)
        left_out = dict(self._plan.skipped)
        named["skipped"] = {**left_out, **named["skipped"]}
        notes = [f"{name}: not timed: {reason}" for name, reason in left_out.items()]
        named["notes"] = [*notes, *named["notes"]]
        named["device"] = {**self._device, "complete": complete}
        return named


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Replace paths of the device in all texts and keys of a JSON value.

    Args:
        value: the value.
        names: path on the device to what the user called it.
    """
    if isinstance(value, str):
        for there, here in names.items():
            value = value.replace(there, here)
        return value
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {renamed(key, names): renamed(item, names) for key, item in value.items()}
    return value
