"""Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import ConfigError, LoadError
from edgekit.run import run

RNG = np.random.default_rng(0)


def test_inputs_of_any_network(here: Path, ranker: Path) -> None:
    users, items = RNG.normal(0, 1, (2, 21, 4)).astype(np.float32)
    np.savez("queries.npz", users=users, input_items=items, labels=np.zeros(3))
    (result,) = run(ranker, [Path("queries.npz")]).files
    assert result.outputs == {"arrays": Path("queries-outputs.npz")}
    with np.load("queries-outputs.npz", allow_pickle=False) as archive:
        assert archive.files == ["file"]
        np.testing.assert_array_equal(archive["file"], -users * items)


def test_inputs_of_a_classifier(
    here: Path, classifier: Path, artifact_output: Callable[[Path, np.ndarray], np.ndarray]
) -> None:
    images = RNG.normal(0, 1, (9, 3, 16, 16))
    np.savez("set.npz", image=images)  # float64: numpy's own type
    run(classifier, [Path("set.npz")])
    expected = artifact_output(classifier, images.astype(np.float32))
    with np.load("set-outputs.npz") as archive:
        # Batches of eight and one take other kernels than nine at once.
        np.testing.assert_allclose(archive["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"users": np.zeros((2, 4), np.float32)}, r"has no array 'items' \(it has users\)"),
        (
            {"users": np.zeros((2, 4), np.float32), "items": np.zeros((2, 5), np.float32)},
            r"'items' is float32 \[2, 5\]",
        ),
        (
            {"users": np.zeros((2, 4), np.float32), "items": np.zeros((2, 4), complex)},
            r"'items' is complex128 \[2, 4\]",
        ),
        (
            {"users": np.zeros((2, 4), np.float32), "items": np.zeros((3, 4), np.float32)},
            "one common number of samples",
        ),
    ],
)
def test_inputs_that_do_not_fit(
    here: Path, ranker: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez("queries.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said) as caught:
        run(ranker, [Path("queries.npz")])
    if "common" not in said:
        assert "users float32 [N, 4], items float32 [N, 4]" in caught.value.hint
    assert not Path("queries-outputs.npz").exists()


def test_sizes_are_multiples(here: Path, restorer: Path) -> None:
    np.savez("set.npz", image=np.zeros((1, 3, 8, 9), np.float32))
    with pytest.raises(ConfigError, match=r"'image' is float32 \[1, 3, 8, 9\]") as caught:
        run(restorer, [Path("set.npz")])
    assert "any multiple of 2" in caught.value.hint


@pytest.mark.parametrize("kind", ["text", "pickle", "bare"])
def test_files_that_are_no_archive(here: Path, ranker: Path, kind: str) -> None:
    path = Path("queries.npz")
    if kind == "text":
        path.write_text("no archive", encoding="utf-8")
    elif kind == "pickle":
        np.savez(path, users=np.array([{}], dtype=object), items=np.zeros((1, 4), np.float32))
    else:
        with path.open("wb") as stream:
            np.save(stream, np.zeros((1, 4), np.float32))
    with pytest.raises(LoadError, match=r"'queries\.npz' is not a readable \.npz"):
        run(ranker, [path])
