"""Does an artifact compute on ARM what it computes on x86? Both by ONNX Runtime, ARM emulated.

    python -m benchmarks.arm_emulation DIR

DIR is what ``edgekit quantize`` wrote. The torch-free runner runs the artifact once here and once
as an aarch64 program under user-mode emulation, on the same inputs. The bar: the same best class
on at least 99 of 100. Emulation says nothing about speed. ``benchmarks/README.md`` says more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._arm_root import (
    SetupError,
    find_emulator,
    make_arm_root,
    site_packages,
)
from benchmarks._cases import CASES, DataError, find_data
from benchmarks._images import ImageSet
from benchmarks._record import Recording
from edgekit.deploy_samples import draw_feeds
from edgekit.device.package import write_runner
from edgekit.errors import EdgekitError
from edgekit.fidelity import sqnr_db
from edgekit.manifest import Manifest, read_manifest, verify_files
from edgekit.runners.child import OUTPUTS_NAME, RESULT_NAME, WorkerRequest, run_in_child

_SCHEMA = 1
_USER_ERROR = 2
_TARGET = "onnxruntime"
_BAR = 99.0
_TIMEOUT_S = 3600.0
Arrays = Mapping[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when the bar is reached, 1 when it is not, 2 when it cannot run."""
    options = _parse(arguments)
    recording = Recording()
    try:
        manifest = read_manifest(options.result)
        entry = manifest.target(_TARGET)
        verify_files(options.result, entry.files)
        feeds = _feeds(manifest, options)
        root = options.root.resolve()
        python = make_arm_root(root, tuple(options.packages.split(",")))
        command = [str(find_emulator(root)), "-cpu", options.cpu, "-L", str(root / "root")]
        request = WorkerRequest(
            _TARGET, (options.result / entry.model).resolve(), Path(), threads=1, stacked=True
        )
        content = _compare(request, feeds, [*command, str(python)], site_packages(root), manifest)
    except (EdgekitError, DataError, SetupError) as error:
        print(error, file=sys.stderr)
        return _USER_ERROR
    content = {**content, "cpu": options.cpu, "inputs": options.case or "drawn", "bar": _BAR}
    recording.save(options.json, _SCHEMA, content)
    print(json.dumps(content, indent=1))
    return 0 if content["top1_equal_percent"] >= _BAR else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.arm_emulation", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("result", type=Path, metavar="DIR")
    add("--samples", type=int, default=100, help="inputs (default 100)")
    add("--case", choices=sorted(CASES), help="take its real images in place of drawn inputs")
    add("--cpu", default="cortex-a76", help="emulated (default cortex-a76, as Orin's cores)")
    packages = "numpy==2.2.6,onnxruntime==1.23.2"
    add("--packages", default=packages, help=f"of the aarch64 Python (default {packages})")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    add("--root", type=Path, default=cache / "edgekit/arm_root", help="kept between runs")
    add("--json", type=Path, default=None, help="write the recorded document")
    return parser.parse_args(arguments)


def _feeds(manifest: Manifest, options: argparse.Namespace) -> dict[str, np.ndarray]:
    if options.case is None:
        return draw_feeds(manifest, options.samples, np.random.default_rng(0))
    images = ImageSet(CASES[options.case], find_data([options.case]), options.samples)
    (spec,) = manifest.inputs
    return {spec.name: np.stack([images.input(index) for index in range(len(images))])}


def _compare(
    request: WorkerRequest, feeds: Arrays, emulated: list[str], site: Path, manifest: Manifest
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Path(scratch) / "inputs.npz"
        np.savez(inputs, **feeds)  # type: ignore[arg-type]
        request = replace(request, inputs=inputs)
        here = run_in_child(request, _TIMEOUT_S)
        if here.failure is not None:
            raise here.failure
        began = time.monotonic()
        there, told = _run_emulated(request, emulated, site, Path(scratch))
        seconds = round(time.monotonic() - began, 1)
    first = manifest.outputs[0].name
    one, other = (v[first].reshape(len(v[first]), -1) for v in (here.outputs, there))
    same = one.argmax(axis=1) == other.argmax(axis=1)
    return {
        "samples": len(same),
        "top1_equal": int(same.sum()),
        "top1_equal_percent": 100.0 * float(same.mean()),
        "identical": int((one == other).all(axis=1).sum()),
        "sqnr_db": {n: _finite(sqnr_db(here.outputs[n], there[n])) for n in there},
        "largest_difference": {n: float(np.abs(here.outputs[n] - there[n]).max()) for n in there},
        "largest_value": {n: float(np.abs(v).max()) for n, v in here.outputs.items()},
        "layers": {
            "x86": _precisions([asdict(layer) for layer in here.executed]),
            "aarch64": _precisions(told["executed"]),
        },
        "versions": {"x86": dict(here.versions), "aarch64": told["versions"]},
        "emulated_seconds": seconds,
    }


def _finite(decibel: float) -> float | None:
    """Return ``None`` where the outputs are identical: JSON knows no infinity."""
    return None if decibel == float("inf") else decibel


def _precisions(layers: Sequence[Mapping[str, str]]) -> dict[str, int]:
    names = [layer["precision"] for layer in layers]
    return {name: names.count(name) for name in sorted(set(names))}


def _run_emulated(
    request: WorkerRequest, emulated: list[str], site: Path, folder: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run the worker of the torch-free runner as an aarch64 program.

    Not through ``edgekit.device``: starting another aarch64 program from within an emulated one
    needs the emulator in the kernel's list of binary formats.
    """
    runner = folder / "runner"
    runner.mkdir()
    write_runner(runner)
    job = folder / "request.json"
    job.write_text(json.dumps(request.to_dict()), encoding="utf-8")
    home = Path(emulated[-1]).parent.parent
    environment = {
        "PYTHONPATH": os.pathsep.join(map(str, (runner, site))),
        "PYTHONHOME": str(home),
        "PATH": os.environ.get("PATH", ""),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*emulated, "-m", "edgekit.runners.worker", str(job)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if not (folder / RESULT_NAME).exists():
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SetupError(f"the emulated run ended with {done.returncode}: {last[0]}")
    told: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
    if told["error"] is not None:
        raise SetupError(f"the emulated run failed: {told['error']['message']}")
    with np.load(folder / OUTPUTS_NAME, allow_pickle=False) as archive:
        outputs = {name: archive[f"arr_{i}"] for i, name in enumerate(told["outputs"])}
    return outputs, told


if __name__ == "__main__":
    sys.exit(main())
