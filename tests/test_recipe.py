"""``recipe.json``: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import ConfigError
from edgekit.recipe import SCHEMA_VERSION, Recipe, read_recipe, write_recipe
from edgekit.types import Cpu, Effort, InputSpec, LayerBits, Preprocessing, Task

RECIPE = Recipe(
    model_sha256="ab" * 32,
    arch="my_net:build(width=0.75)",
    inputs=(
        InputSpec("image", (1, 3, 32, 48), variable_axes=(2, 3)),
        InputSpec("ids", (1, 7), "int64"),
    ),
    preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5,), resize=40, crop=32, color="bgr"),
    task=Task.EMBEDDING,
    scheme="w4a8",
    targets=("tensorrt", "onnxruntime"),
    calibration="images:größe/",
    effort=Effort.BEST,
    cpu=Cpu.ARM,
    samples=64,
    seed=7,
    threads=2,
    edgekit="0.1.0",
    end_bits=6,
    bits={"body.0": LayerBits(5, 8), "head": LayerBits(8, 16)},
)
SMALLEST = replace(
    RECIPE, model_sha256=None, arch=None, preprocessing=None, targets=(), end_bits=8, bits={}
)


@pytest.mark.parametrize("recipe", [RECIPE, SMALLEST], ids=["all", "smallest"])
def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    write_recipe(recipe, tmp_path)
    assert read_recipe(tmp_path / "recipe.json") == recipe


def test_document() -> None:
    document = json.loads(json.dumps(RECIPE.to_dict()))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["inputs"][0]["variable_axes"] == [2, 3]
    assert document["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert (document["task"], document["effort"], document["cpu"]) == ("embedding", "best", "arm")
    assert document["targets"] == ["tensorrt", "onnxruntime"]  # their order is the report's
    assert (document["end_bits"], document["bits"]) == (6, {"body.0": [5, 8], "head": [8, 16]})


def test_equal_recipes_give_equal_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    write_recipe(RECIPE, folders[0])
    write_recipe(read_recipe(folders[0] / "recipe.json"), folders[1])
    first, second = [(folder / "recipe.json").read_bytes() for folder in folders]
    assert first == second
    assert first.endswith(b"}\n")


def changed(**changes: Any) -> dict[str, Any]:
    return {**RECIPE.to_dict(), **changes}


INPUT = RECIPE.to_dict()["inputs"][0]
BAD = {
    "other version": (changed(schema_version=99), "schema version 99, this edgekit reads 2"),
    "no version": ({k: v for k, v in changed().items() if k != "schema_version"}, "version None"),
    "unknown key": (changed(typo=1), "unknown or missing keys: typo"),
    "missing key": (
        {k: v for k, v in changed().items() if k != "seed"},
        "unknown or missing keys: seed",
    ),
    "unknown task": (changed(task="cooking"), "'cooking' is not a valid Task"),
    "unknown effort": (changed(effort="endless"), "'endless' is not a valid Effort"),
    "unknown cpu": (changed(cpu="z80"), "'z80' is not a valid Cpu"),
    "unknown scheme": (changed(scheme="w3a3"), "unknown scheme 'w3a3'"),
    "unknown input key": (changed(inputs=[INPUT | {"typo": 1}]), "unknown key 'typo'"),
    "bad input": (changed(inputs=[INPUT | {"shape": [0]}]), "all >= 1"),
    "inputs no list": (changed(inputs=3), "not iterable"),
    "bad preprocessing": (changed(preprocessing={"range": 7}), "range is 1 or 255, not 7"),
    "preprocessing no object": (changed(preprocessing=[1]), "preprocessing: unknown key 1"),
    "no samples": (changed(samples=0), r"samples \(0\)"),
    "no threads": (changed(threads=0), r"threads \(0\)"),
    "negative seed": (changed(seed=-1), r"seed \(-1\)"),
    "seed is text": (changed(seed="7"), "recipe: "),
    "older version": (changed(schema_version=1), "schema version 1, this edgekit reads 2"),
    "ends too narrow": (changed(end_bits=3), "end bits 3: with scheme 'w4a8' .* take 4 to 8 bits"),
    "ends too wide": (changed(end_bits=9), "end bits 9"),
    "ends narrower than the rest": (
        changed(scheme="w8a8", end_bits=4),
        "end bits 4: with scheme 'w8a8' .* take 8 bits",
    ),
    "ends no integer": (changed(end_bits=4.5), "recipe: 'float' object"),
    "bits no object": (changed(bits=[4, 8]), "recipe: "),
    "bits no pair": (changed(bits={"head": 4}), "layer 'head': 4 is not a pair"),
    "bits of text": (changed(bits={"head": ["4", 8]}), "layer 'head': .* is not a pair"),
    "bits off the grid": (changed(bits={"head": [1, 8]}), "layer 'head': bit widths 1 and 8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_documents(case: str, tmp_path: Path) -> None:
    document, said = BAD[case]
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=said):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a recipe"),
        (b"{", "cannot be read as a recipe"),
        (b"\xff\xfe", "cannot be read as a recipe"),
        (b"[1]", "expected a JSON object"),
        (None, "No such file"),
    ],
    ids=["empty", "cut short", "not text", "a list", "missing"],
)
def test_bad_files(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        read_recipe(path)
    assert str(path) in caught.value.message


def test_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read as a recipe") as caught:
        read_recipe(tmp_path)
    assert "recipe.json" in caught.value.hint
