"""Checkpoints, recipes, manifests and YAML that name code or files of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.case import ZOO, Case
from hostile.making import torch_bytes
from hostile.pickles import checkpoint_with

_RECIPE: dict[str, Any] = {
    "schema_version": 2,
    "model_sha256": None,
    "arch": ZOO,
    "inputs": [{"name": "x", "shape": [1, 3, 32, 32], "dtype": "float32", "variable_axes": []}],
    "preprocessing": None,
    "task": "classification",
    "scheme": "w8a8",
    "targets": ["onnxruntime"],
    "calibration": "renorm",
    "effort": "instant",
    "cpu": "avx2",
    "samples": 64,
    "seed": 0,
    "threads": 1,
    "edgekit": "0",
    "end_bits": 8,
    "bits": {},
    "rounding": "gptq",
}
_INPUT = {"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32", "variable_axes": []}
_TARGET: dict[str, Any] = {
    "name": "onnxruntime",
    "model": "m",
    "files": [{"path": "m", "sha256": "0" * 64, "size_bytes": 1}],
    "executed": True,
    "reason": None,
    "engines": [],
}
ANY = ("config", "load", "unsafe_file", "missing_dependency", "unsupported", "usage")


def evil_module(folder: Path, marker: Path) -> None:
    """A module of the user's that must not be imported because a file says so."""
    (folder / "evil_net.py").write_text(
        f"open({str(marker)!r}, 'w')\ndef build(*a):\n    return None\n"
    )


def checkpoint_case(arch: str, *words: str) -> Case:
    def write(folder: Path, marker: Path) -> None:
        evil_module(folder, marker)
        (folder / "model.pt").write_bytes(torch_bytes(checkpoint_with("arch", arch)))

    typed = " with --arch" if words else ""
    name = f"checkpoint that names {arch}{typed}"
    return Case(name, write, "nothing was imported", words=("quantize", "model.pt", *words))


def recipe_case(name: str, codes: tuple[str, ...] = ANY, said: str = "", **fields: Any) -> Case:
    def write(folder: Path, marker: Path) -> None:
        evil_module(folder, marker)
        (folder / "model.pt").write_bytes(torch_bytes({"a": 1}))
        shown = json.dumps(_RECIPE | fields).replace("MARKER", str(marker))
        (folder / "recipe.json").write_text(shown)

    words = ("quantize", "model.pt", "--recipe", "recipe.json")
    return Case(f"recipe, {name}", write, said, words=words, codes=codes)


def manifest_case(name: str, change: Callable[[dict[str, Any]], object]) -> Case:
    def write(folder: Path, marker: Path) -> None:
        evil_module(folder, marker)
        target = json.loads(json.dumps(_TARGET))
        change(target)
        document = {
            "schema_version": 1,
            "edgekit_version": "0",
            "task": "classification",
            "inputs": [_INPUT],
            "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
            "preprocessing": None,
            "num_classes": None,
            "scheme": "w8a8",
            "cpu": "avx2",
            "targets": [target],
            "files": [],
        }
        result = folder / "result"
        result.mkdir(exist_ok=True)
        (result / "manifest.json").write_text(json.dumps(document))
        (result / "m").write_bytes(b"a")
        (folder / "data").mkdir(exist_ok=True)

    words = ("evaluate", "result", "--data", "data")
    return Case(f"manifest, {name}", write, "", words=words, codes=ANY)


def _write_deep_manifest(folder: Path, _: Path) -> None:
    for name in ("result", "data"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "result" / "manifest.json").write_text("[" * 100_000)


def text_case(name: str, file: str, text: str, *words: str) -> Case:
    def write(folder: Path, marker: Path) -> None:
        (folder / "model.pt").write_bytes(torch_bytes({"a": 1}))
        (folder / file).write_text(text.replace("MARKER", str(marker)))

    return Case(name, write, "", words=("quantize", *words), codes=ANY)


_YAML = "!!python/object/apply:os.system ['echo run > MARKER']\n"
DOCUMENTS = (
    checkpoint_case("os:system"),
    checkpoint_case("os:system('echo run > marker')"),
    checkpoint_case("evil_net:build"),
    checkpoint_case("evil_net:build(1)", "--arch", ZOO),
    checkpoint_case("zoo.evil_net:build"),
    recipe_case("os:system", ("unsafe_file",), "nothing was imported", arch="os:system('id')"),
    recipe_case("user's module", ("unsafe_file",), "nothing was imported", arch="evil_net:build"),
    recipe_case("code in the arguments", arch="zoo:efficientnet_lite0(__import__('os'))"),
    recipe_case("trust in itself", trust_pickle=True),
    recipe_case("engine that is code", calibration="__import__('evil_net')"),
    recipe_case("target that is a module", targets=["evil_net:build"]),
    recipe_case("target outside", targets=["../evil"]),
    recipe_case("absurd input", inputs=[_INPUT | {"shape": [1, 3, 10**7, 10**7]}]),
    recipe_case("numbers that are texts", seed="0; import os", samples="9", threads=[]),
    manifest_case("target that is a module", lambda t: t.update({"name": "evil_net:build"})),
    manifest_case(
        "model outside",
        lambda t: t.update(
            {"model": "../../m", "files": [{"path": "../../m", "sha256": "", "size_bytes": 1}]}
        ),
    ),
    manifest_case("file of another content", lambda t: None),
    Case(
        "manifest, deep JSON",
        _write_deep_manifest,
        "",
        words=("evaluate", "result", "--data", "data"),
        codes=ANY,
    ),
    text_case("YAML as a network", "model.pt", _YAML, "model.pt"),
    text_case("YAML as a recipe", "recipe.yaml", _YAML, "model.pt", "--recipe", "recipe.yaml"),
    text_case("deep JSON as a recipe", "r.json", "[" * 100_000, "model.pt", "--recipe", "r.json"),
)
