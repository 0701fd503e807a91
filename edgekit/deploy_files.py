"""The fixed files of a bundle for Jetson: scripts, requests, pinned packages, a short guide."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

CHECKSUMS = "SHA256SUMS"
RUNNER = "runner"
_ENVIRONMENT = """\
# shellcheck shell=sh
# Read by the other scripts. Checks every file of the bundle before any of them runs.
if ! sha256sum --check --quiet --strict SHA256SUMS >&2; then
    echo "error: this bundle is damaged" >&2
    echo "hint: copy it again, whole" >&2
    exit 2
fi
PYTHON=${PYTHON:-python3}
PYTHONPATH=$PWD/runner${PYTHONPATH:+:$PYTHONPATH}
PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH PYTHONDONTWRITEBYTECODE
"""
_SCRIPT = """\
#!/bin/sh
# {purpose}
# Options are changed by NAME=VALUE, as in: {example}
set -eu
cd "$(dirname "$0")"
# shellcheck source-path=SCRIPTDIR source=env.sh
. ./env.sh
exec "$PYTHON" -m edgekit.device --plain {command} requests/{command}.json "$@"
"""
_PURPOSES = {
    "verify": (
        "Compares what the artifacts compute here with what the host simulated.",
        "./verify.sh 'targets=[\"onnxruntime\"]'",
    ),
    "build": (
        "Builds the TensorRT engine for this device's GPU; needs JetPack's python3-libnvinfer.",
        "./build.sh timing_cache=/var/cache/edgekit/timing.cache",
    ),
    "run": (
        "Runs the artifact on inputs; those that the bundle brings, if no others are named.",
        "./run.sh inputs=mine.npz stacked=false outputs=results.npz",
    ),
    "bench": (
        "Times the artifacts here; the document goes to standard output.",
        "./bench.sh blocks=20 > bench.json",
    ),
}
SCRIPTS: Mapping[str, str] = {
    f"{command}.sh": _SCRIPT.format(command=command, purpose=purpose, example=example)
    for command, (purpose, example) in _PURPOSES.items()
}
"""Executable files, by name."""

REQUIREMENTS = """\
# What a Jetson needs beside TensorRT, which JetPack brings: aarch64 wheels for Python 3.10
# (JetPack 6) and 3.12 (JetPack 7). ONNX Runtime's wheels for Python 3.10 end at 1.23.2, and
# JetPack 6's own packages were built against NumPy 1.
numpy==1.26.4; python_version < "3.12"
numpy==2.2.6; python_version >= "3.12"
onnxruntime==1.23.2; python_version < "3.12"
onnxruntime==1.32.0; python_version >= "3.12"
# What ONNX Runtime asks for.
flatbuffers==25.12.19
packaging==26.3
protobuf==7.36.2
coloredlogs==15.0.1; python_version < "3.12"
humanfriendly==10.0; python_version < "3.12"
mpmath==1.3.0; python_version < "3.12"
sympy==1.14.0; python_version < "3.12"
"""

_GUIDE = """\
# {name}

A network that edgekit {version} quantized ({scheme}), with all that a Jetson needs to run it.
Nothing of this has to be installed; Python 3.10 or later and JetPack 6 or 7 are enough.

    sudo apt-get install python3-venv python3-libnvinfer     # TensorRT's Python, if it is missing
    python3 -m venv --system-site-packages ~/edgekit-venv    # so that it sees TensorRT
    ~/edgekit-venv/bin/pip install -r requirements.txt
    export PYTHON=~/edgekit-venv/bin/python

    ./build.sh       # the engine for this very GPU: tensorrt/engine.plan (minutes)
    ./verify.sh      # does it compute what the host simulated?
    ./bench.sh       # how fast is it? Set the power mode and the clocks first
    ./run.sh inputs=mine.npz stacked=false outputs=results.npz

Each script first checks every file against SHA256SUMS. Without the engine, `run.sh`, `verify.sh`
and `bench.sh` use ONNX Runtime on the CPU.

| targets | {targets} |
| --- | --- |
| inputs | {inputs} |
| outputs | {outputs} |

`mine.npz` holds one array for each input, samples on axis 0, as `numpy.savez` writes it.
"""


def requests(model: str | None) -> dict[str, dict[str, Any]]:
    """Return the request of each script, by its command.

    Args:
        model: the file that an engine is built from, relative to the bundle.
    """
    found: dict[str, dict[str, Any]] = {
        "verify": {"bundle": "."},
        "run": {
            "result": ".",
            "inputs": "samples/inputs.npz",
            "stacked": True,
            "outputs": "outputs.npz",
        },
        "bench": {"paths": ["."]},
    }
    if model is not None:
        folder = model.rpartition("/")[0]
        found["build"] = {
            "model": model,
            "out": f"{folder}/engine.plan",
            "timing_cache": f"{folder}/timing.cache",
        }
    return found


def fixed_files(document: Mapping[str, Any], name: str, model: str | None) -> dict[str, str]:
    """Return the texts of the fixed files by path.

    Args:
        document: content of the bundle's manifest.
        name: of the bundle.
        model: the file that an engine is built from, relative to the bundle.
    """
    files = {
        f"requests/{command}.json": json.dumps(request, indent=2) + "\n"
        for command, request in requests(model).items()
    }
    files |= {script: text for script, text in SCRIPTS.items() if _served(script, files)}
    guide = _GUIDE.format(
        name=name,
        version=document["edgekit_version"],
        scheme=document["scheme"],
        targets=", ".join(target["name"] for target in document["targets"]),
        inputs=_tensors(document["inputs"]),
        outputs=_tensors(document["outputs"]),
    )
    return {**files, "env.sh": _ENVIRONMENT, "requirements.txt": REQUIREMENTS, "README.md": guide}


def _served(script: str, files: Mapping[str, str]) -> bool:
    return f"requests/{script.removesuffix('.sh')}.json" in files


def _tensors(specs: list[dict[str, Any]]) -> str:
    return ", ".join(f"`{s['name']}` {'x'.join(map(str, s['shape']))} {s['dtype']}" for s in specs)
