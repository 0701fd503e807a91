"""Classes of pictures, against softmax and prototypes in plain numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.cli import main
from edgekit.datasets import read_image
from edgekit.errors import ConfigError, LoadError, OutputError, UnsupportedError
from edgekit.few_shot import Metric
from edgekit.preprocess import preprocess
from edgekit.run import run
from edgekit.run.classes import best_classes, probabilities
from edgekit.types import Preprocessing

cv2 = pytest.importorskip("cv2", reason="opencv is not installed")
Output = Callable[[Path, np.ndarray], np.ndarray]
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=16, crop=16)


def draw(path: Path, seed: int, size: tuple[int, int] = (20, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))
    return path


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64))
    found: np.ndarray = powers / powers.sum()
    return found


def outputs(output: Output, result: Path, paths: list[Path]) -> np.ndarray:
    """The artifact's own output for each picture, ``[N, K]``."""
    arrays = [preprocess(read_image(path), IMAGENET)[None] for path in paths]
    return np.concatenate([output(result, array) for array in arrays])


def test_five_classes(here: Path, classifier: Path, artifact_output: Output) -> None:
    paths = [draw(here / f"{name}.png", seed) for seed, name in enumerate("abc")]
    report = run(classifier, paths)
    logits = outputs(artifact_output, classifier, paths)
    for result, row in zip(report.files, logits, strict=True):
        order = np.argsort(-row)[:5]
        assert [guess.index for guess in result.guesses] == order.tolist()
        # The same logits: nothing but the order of float64 operations differs.
        chances = [guess.probability for guess in result.guesses]
        np.testing.assert_allclose(chances, softmax(row)[order], rtol=1e-12)
        np.testing.assert_allclose([g.score for g in result.guesses], row[order], rtol=1e-6)
    assert {path.name for path in here.iterdir()} == {"a.png", "b.png", "c.png"}


def test_names_of_classes(here: Path, classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(here / "a.png", 0)
    names = [f"kind {index}" for index in range(7)]
    Path("names.txt").write_text("\n".join(names), encoding="utf-8")
    words = ["run", str(classifier), "a.png", "--classes", "names.txt"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["files"][0]["classes"]
    assert [guess["name"] for guess in found] == [names[guess["index"]] for guess in found]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert found[0]["name"] in shown
    assert f"{100 * found[0]['probability']:.1f} %" in shown
    Path("names.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert main(words) == 2
    assert "2 names for 7 classes" in capsys.readouterr().err


def test_probabilities() -> None:
    logits = np.array([[1.0, 3.0, -2.0]])
    np.testing.assert_allclose(probabilities(logits)[0], softmax(logits[0]), rtol=1e-12)
    np.testing.assert_allclose(probabilities(logits + 1e5), probabilities(logits), rtol=1e-9)
    already = np.array([[0.25, 0.75, 0.0]])
    assert np.array_equal(probabilities(already), already)
    lone = probabilities(np.array([[2.0]]))[0]
    np.testing.assert_allclose(lone, [1 - 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-2.0))])


def test_a_map_of_classes_is_refused() -> None:
    for output in (np.zeros((1, 3, 4, 4)), np.array([[np.nan, 1.0]])):
        with pytest.raises(UnsupportedError, match="expected finite numbers"):
            best_classes(output, None)


def test_picture_of_another_size(here: Path, restorer: Path, ranker: Path) -> None:
    draw(here / "a.png", 0)
    with pytest.raises(UnsupportedError, match="not one image") as caught:
        run(ranker, [Path("a.png")])
    assert ".npz" in caught.value.hint


@pytest.fixture
def support(here: Path) -> dict[str, list[Path]]:
    counts = {"cat": 1, "dog": 3, "emu": 2}
    return {
        name: [draw(here / "support" / name / f"{i}.png", 10 * c + i) for i in range(count)]
        for c, (name, count) in enumerate(counts.items())
    }


@pytest.mark.parametrize("metric", list(Metric))
def test_prototypes(
    here: Path,
    embedder: Path,
    artifact_output: Output,
    support: dict[str, list[Path]],
    metric: Metric,
) -> None:
    paths = [draw(here / f"{index}.png", 100 + index) for index in range(4)]
    report = run(embedder, paths, support=Path("support"), metric=metric)
    assert report.metric == metric.value
    assert report.support == {"cat": 1, "dog": 3, "emu": 2}
    means = np.stack([outputs(artifact_output, embedder, own).mean(0) for own in support.values()])
    for result, z in zip(report.files, outputs(artifact_output, embedder, paths), strict=True):
        expected = means @ z / np.linalg.norm(means, axis=1)
        if metric is Metric.COSINE:
            expected = expected / np.linalg.norm(z)
        order = np.argsort(-expected)
        assert [guess.name for guess in result.guesses] == [list(support)[i] for i in order]
        # Sums of twelve float32 products, in another order.
        np.testing.assert_allclose([g.score for g in result.guesses], expected[order], rtol=1e-5)
        assert [guess.probability for guess in result.guesses] == [None] * 3


def test_prototypes_are_kept(here: Path, embedder: Path, support: dict[str, list[Path]]) -> None:
    del support
    query = [draw(here / "query.png", 5)]
    first = run(embedder, query, support=Path("support"), save_support=Path("kept.npz"))
    assert first.outputs == {"support": Path("kept.npz")}
    again = run(embedder, query, support=Path("kept.npz"))
    assert again.files[0].guesses == first.files[0].guesses
    assert again.support == first.support
    with pytest.raises(OutputError, match=r"'kept\.npz' exists already"):
        run(embedder, support=Path("support"), save_support=Path("kept.npz"))
    made = run(embedder, support=Path("support"), save_support=Path("alone.npz"))
    assert made.files == ()
    assert Path("alone.npz").read_bytes() == Path("kept.npz").read_bytes()


def test_prototypes_of_another_network(
    here: Path, embedder: Path, support: dict[str, list[Path]]
) -> None:
    del support
    query = [draw(here / "query.png", 5)]
    run(embedder, support=Path("support"), save_support=Path("kept.npz"))
    arrays = dict(np.load("kept.npz"))
    about = json.dumps({"schema_version": 1, "network": "0" * 64})
    np.savez("other.npz", **{**arrays, "about": np.array(about)})
    with pytest.raises(ConfigError, match="prototypes of another network"):
        run(embedder, query, support=Path("other.npz"))
    np.savez("damaged.npz", **{**arrays, "counts": np.zeros(9, np.int64)})
    with pytest.raises(LoadError, match="damaged prototypes"):
        run(embedder, query, support=Path("damaged.npz"))
    np.savez("images.npz", images=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(LoadError, match="holds no prototypes") as caught:
        run(embedder, query, support=Path("images.npz"))
    assert "support/cat/1.jpg" in caught.value.hint


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "is not a folder"),
        (["support/1.png", "support/2.png"], "pictures that are in no class, such as '1.png'"),
        (["support/cat/1.png"], "holds one class only"),
        (["support/cat/1.png", "support/dog/notes.txt"], "no picture for class 'dog'"),
    ],
)
def test_support_laid_out_otherwise(
    here: Path, embedder: Path, files: list[str], said: str
) -> None:
    for file in files:
        draw(here / file, 0) if file.endswith(".png") else _note(here / file)
    query = [draw(here / "query.png", 5)]
    with pytest.raises(ConfigError, match=said) as caught:
        run(embedder, query, support=Path("support"))
    assert "support/cat/1.jpg" in caught.value.hint


def _note(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("nothing", encoding="utf-8")


def test_options_of_support(here: Path, embedder: Path, classifier: Path) -> None:
    draw(here / "a.png", 0)
    with pytest.raises(ConfigError, match="--save-support without pictures"):
        run(embedder, [Path("a.png")], save_support=Path("kept.npz"))
    with pytest.raises(ConfigError, match="--support is for embeddings"):
        run(classifier, [Path("a.png")], support=Path("support"))
    Path("names.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="--classes is for classifiers"):
        run(embedder, [Path("a.png")], classes=Path("names.txt"))
    assert main(["run", str(embedder), "a.png", "--metric", "euclid"]) == 2


def test_embeddings(here: Path, embedder: Path, artifact_output: Output) -> None:
    paths = [draw(here / f"{index}.png", index) for index in range(3)]
    report = run(embedder, paths, out=Path("made"))
    assert report.outputs["embeddings"] == Path("made/embeddings.npz")
    with np.load("made/embeddings.npz", allow_pickle=False) as archive:
        assert archive["files"].tolist() == [str(path) for path in paths]
        expected = outputs(artifact_output, embedder, paths)
        np.testing.assert_array_equal(archive["embeddings"], expected)
