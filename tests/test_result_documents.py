"""The tables of docs/report.md and docs/bench.md agree with real documents key by key."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import manifest, recipe
from edgekit.cli import main

pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

NUMBER = (int, float)
TYPES: Mapping[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": NUMBER,
    "text": (str,),
    "FILE": (str,),
    "TARGET": (str,),
    "boolean": (bool,),
    "object": (dict,),
    "null": (type(None),),
}
Row = tuple[str, str]  # path of a key, its type


@pytest.fixture(scope="module")
def documented(root: Path) -> dict[str, dict[str, str]]:
    """File name -> path of a key -> its type."""
    text = (root / "docs" / "report.md").read_text(encoding="utf-8")
    sections = re.split(r"^## (\w+\.json), version (\d+)$", text, flags=re.MULTILINE)[1:]
    return {
        f"{name} {version}": dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", body, re.MULTILINE))
        for name, version, body in zip(sections[::3], sections[1::3], sections[2::3], strict=True)
    }


@pytest.fixture(scope="module")
def result(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    folder = tmp_path_factory.mktemp("documents") / "result"
    words = ["quantize", str(tiny_folder / "tiny.pt"), "--arch", "tiny:build", "--out", str(folder)]
    words += ["--input", "1x3x32x32", "--preprocessing", "crop=32", "--targets", "onnxruntime"]
    words += ["--effort", "instant"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_folder)
        assert main(words) == 0
    return folder


def steps(path: str) -> list[str]:
    """`a[].b` -> `a`, `[]`, `b`."""
    return path.replace("[]", ".[]").split(".")


def undocumented(value: Any, rows: list[tuple[list[str], str]], at: str) -> Iterator[str]:
    """Yield what a document holds otherwise than the rows say; all rows begin at `value`."""
    own = [kind for path, kind in rows if not path]
    if own and not any(is_a(value, kind) for kind in own[0].split(" or ")):
        yield f"{at}: {value!r} is no {own[0]}"
    below = [(path, kind) for path, kind in rows if path]
    if isinstance(value, dict) and (below or own != ["object"]):
        heads = {path[0] for path, _ in below}
        wild = next((head for head in heads if head.isupper() and head != "[]"), None)
        missing = heads - {wild} - set(value)
        if missing:
            yield f"{at}: documented, but not there: {sorted(missing)}"
        for key, item in value.items():
            head = key if key in heads else wild
            if head is None:
                yield f"{at}.{key}: not documented"
            else:
                inner = [(path[1:], kind) for path, kind in below if path[0] == head]
                yield from undocumented(item, inner, f"{at}.{key}")
    elif isinstance(value, list) and below:
        for item in value:
            inner = [(path[1:], kind) for path, kind in below if path[0] == "[]"]
            yield from undocumented(item, inner, f"{at}[]")


def is_a(value: object, kind: str) -> bool:
    """Whether a JSON value is of a kind such as `list of text`."""
    if kind.startswith("list of "):
        inner = kind.removeprefix("list of ").removeprefix("two ")
        singular = inner if inner in TYPES else inner.removesuffix("s")
        return isinstance(value, list) and all(is_a(item, singular) for item in value)
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, TYPES[kind])


@pytest.mark.parametrize("name", ["report.json", "manifest.json", "recipe.json"])
def test_every_key_is_documented(
    name: str, result: Path, documented: dict[str, dict[str, str]]
) -> None:
    document = json.loads((result / name).read_text(encoding="utf-8"))
    rows = documented[f"{name} {document['schema_version']}"]
    found = list(undocumented(document, [(steps(path), rows[path]) for path in rows], name))
    assert found == []


@pytest.fixture(scope="module", params=["blocks", "single-stream"])
def bench_document(request: pytest.FixtureRequest, result: Path) -> dict[str, Any]:
    from edgekit.bench import bench

    report = bench(
        [result],
        blocks=2,
        block_seconds=0.01,
        warmup_seconds=0.0,
        threads=1,
        mode=request.param,
        min_seconds=0.01,
    )
    document: dict[str, Any] = json.loads(json.dumps(report.to_dict()))
    return document


def test_every_key_of_a_benchmark_is_documented(root: Path, bench_document: dict[str, Any]) -> None:
    text = (root / "docs" / "bench.md").read_text(encoding="utf-8")
    version = bench_document["schema_version"]
    _, _, body = text.partition(f"## Document of `bench --json`, version {version}\n")
    table = body.partition("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) > 50
    plain = [(steps(path), kind) for path, kind in rows]
    assert list(undocumented(bench_document, plain, "bench")) == []


def test_every_key_of_a_run_is_documented(root: Path, result: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
    from edgekit.run import run

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((32, 40, 3), np.uint8))
    report = run(result, [tmp_path / "a.png"], out=tmp_path / "made")
    document = json.loads((tmp_path / "made" / "results.json").read_text(encoding="utf-8"))
    assert document == report.to_dict()
    text = (root / "docs" / "run.md").read_text(encoding="utf-8")
    version = document["schema_version"]
    _, _, table = text.partition(f"## Document of `run --json`, version {version}\n")
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", table, re.MULTILINE)
    assert len(rows) > 15
    plain = [(steps(path), kind) for path, kind in rows]
    assert list(undocumented(document, plain, "run")) == []


def test_check_sees_a_difference() -> None:
    rows = [(steps("a.NAME.b"), "integer"), (steps("c[].d"), "text or null"), (["e"], "number")]
    good = {"a": {"x": {"b": 1}, "y": {"b": 2}}, "c": [{"d": None}, {"d": "t"}], "e": 1.5}
    assert list(undocumented(good, rows, "f")) == []
    assert list(undocumented({**good, "new": 1}, rows, "f")) == ["f.new: not documented"]
    assert list(undocumented({**good, "e": "1"}, rows, "f")) == ["f.e: '1' is no number"]
    assert list(undocumented({**good, "e": True}, rows, "f")) == ["f.e: True is no number"]
    odd = {"a": {"x": {}}, "c": [{"d": 3}]}
    assert list(undocumented(odd, rows, "f")) == [
        "f: documented, but not there: ['e']",
        "f.a.x: documented, but not there: ['b']",
        "f.c[].d: 3 is no text or null",
    ]


def test_versions_are_the_ones_in_the_code(documented: dict[str, dict[str, str]]) -> None:
    from edgekit import report

    assert set(documented) == {
        f"report.json {report.SCHEMA_VERSION}",
        f"manifest.json {manifest.SCHEMA_VERSION}",
        f"recipe.json {recipe.SCHEMA_VERSION}",
    }
