from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.architecture import Architecture, confirmed_arch, parse_arch
from edgekit.errors import ConfigError, UnsafeFileError
from edgekit.registry import MODELS

torch = pytest.importorskip("torch")

Module = Callable[[str], str]

LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=6,
)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Write a module into the current directory and return its name."""
    monkeypatch.chdir(tmp_path)
    name = f"my_net_{tmp_path.name}".replace("-", "_").replace(".", "_")
    monkeypatch.delitem(sys.modules, name, raising=False)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zoo:efficientnet_lite0", Architecture("zoo", "efficientnet_lite0")),
        (
            "zoo:efficientnet_lite0(num_classes=10)",
            Architecture("zoo", "efficientnet_lite0", (), (("num_classes", 10),)),
        ),
        ("my_net:Net", Architecture("my_net", "Net")),
        ("my_net:Net()", Architecture("my_net", "Net")),
        ("pkg.nets:Net.small", Architecture("pkg.nets", "Net.small")),
        (
            "my_net:build(3, 'a', width=0.75, blocks=[1, 2], size=(-1, 2), norm=None)",
            Architecture(
                "my_net",
                "build",
                (3, "a"),
                (("width", 0.75), ("blocks", [1, 2]), ("size", (-1, 2)), ("norm", None)),
            ),
        ),
    ],
)
def test_parse(text: str, expected: Architecture) -> None:
    assert parse_arch(text) == expected
    assert parse_arch(str(expected)) == expected


@given(st.lists(LITERALS, max_size=2), st.dictionaries(st.sampled_from("abc"), LITERALS))
def test_text_and_value_agree(args: list[object], kwargs: dict[str, object]) -> None:
    arch = Architecture("pkg.net", "build", tuple(args), tuple(kwargs.items()))
    assert parse_arch(str(arch)) == arch


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected zoo:NAME or module:factory"),
        ("efficientnet_lite0", "expected zoo:NAME or module:factory"),
        ("my-net:build", "expected zoo:NAME or module:factory"),
        ("my_net:", "literal arguments"),
        ("my_net:build(", "literal arguments"),
        ("my_net:build()()", "must be a name"),
        ("my_net:(lambda: 1)()", "must be a name"),
        ("my_net:build(width=x)", "x is not a literal"),
        ("my_net:build(__import__('os').getcwd())", "is not a literal"),
        ("my_net:build(*[1])", "is not a literal"),
        ("my_net:build(**{'a': 1})", "\\*\\* is not allowed"),
        ("my_net:build(a=1, a=2)", "a is given twice|repeated"),
        ("my_net:build({[]: 1})", "literal arguments"),
        ("my_net:build(" + "[" * 500 + ")", "literal arguments"),
        ("my_net:build(" + "1," * 5000 + ")", "expected zoo:NAME"),
        ("my_net:build\n(\x1b[2J", "literal arguments"),
    ],
)
def test_bad_text(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_arch(text)
    assert "--arch zoo:efficientnet_lite0" in caught.value.hint
    assert caught.value.message.isprintable()


def test_a_file_name_is_told_to_be_one() -> None:
    with pytest.raises(ConfigError, match="not of a file") as caught:
        parse_arch("my_net.py:build(width=2)")
    assert "--arch my_net:build(width=2)" in caught.value.hint


def test_parsing_imports_nothing(module: Module) -> None:
    name = module("raise SystemExit('imported')")
    parse_arch(f"{name}:build")
    assert name not in sys.modules


def test_build_from_the_current_directory(module: Module) -> None:
    name = module(
        "from torch import nn\n"
        "def build(features, *, bias=True):\n"
        "    return nn.Linear(features, 2, bias=bias)\n"
    )
    path = list(sys.path)
    network = parse_arch(f"{name}:build(3, bias=False)").build()
    assert isinstance(network, torch.nn.Linear)
    assert (network.in_features, network.bias) == (3, None)
    assert sys.path == path


def test_the_users_module_comes_before_an_installed_one(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module("from torch import nn\nnetwork = nn.ReLU()\n")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / f"{name}.py").write_text("network = 'of the same name'\n")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    assert isinstance(parse_arch(f"{name}:network").build(), torch.nn.ReLU)


def test_imports_during_the_call_also_find_the_current_directory(
    module: Module, tmp_path: Path
) -> None:
    (tmp_path / "late_part_of_net.py").write_text("from torch.nn import Identity\n")
    name = module("def build():\n  from late_part_of_net import Identity\n  return Identity()\n")
    assert isinstance(parse_arch(f"{name}:build").build(), torch.nn.Identity)


def test_class_attribute_and_ready_made_network(module: Module) -> None:
    name = module(
        "from torch import nn\n"
        "class Net(nn.Identity):\n"
        "    @classmethod\n"
        "    def small(cls): return cls()\n"
        "network = nn.Identity()\n"
    )
    for factory in ("Net", "Net.small", "network"):
        assert isinstance(parse_arch(f"{name}:{factory}").build(), torch.nn.Identity)


def test_arguments_for_a_ready_made_network_are_an_error(module: Module) -> None:
    name = module("from torch import nn\nnetwork = nn.Identity()\n")
    with pytest.raises(ConfigError, match="is a network already and takes no arguments"):
        parse_arch(f"{name}:network(width=2)").build()


@pytest.mark.parametrize(
    ("source", "call", "said"),
    [
        ("build = 3", "build", "'build' is of type int and cannot be called"),
        ("def build(): return 'net'", "build", "gives a value of type str, not a torch.nn.Module"),
        ("x = 1", "build", "has no 'build'"),
        ("def build(width): pass", "build", "building the network failed.*TypeError: .*width"),
        ("def build():\n    raise KeyError('w')", "build", "line 2: KeyError: 'w'"),
        ("class Own(Exception): pass\ndef build(): raise Own('mine')", "build", "Own: mine"),
        ("def build(): raise SystemExit(3)", "build", "SystemExit: 3"),
        ("import not_installed_xyz", "build", "importing '.*' failed.*No module named 'not_inst"),
        ("def build(:", "build", "importing '.*' failed.*SyntaxError"),
        ("1 / 0", "build", "importing '.*' failed at .*line 1: ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_in_the_users_code(
    module: Module, source: str, call: str, said: str
) -> None:
    name = module(source)
    with pytest.raises(ConfigError, match=said) as caught:
        parse_arch(f"{name}:{call}").build()
    assert name in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint


def test_ctrl_c_in_the_users_code_is_no_error(module: Module) -> None:
    name = module("def build(): raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        parse_arch(f"{name}:build").build()


def test_what_the_users_code_prints_stays_out_of_the_result(
    module: Module, capsys: pytest.CaptureFixture[str]
) -> None:
    name = module(
        "from torch import nn\nprint('one')\ndef build():\n    print('two')\n    return nn.ReLU()\n"
    )
    parse_arch(f"{name}:build").build()
    assert capsys.readouterr() == ("", "one\ntwo\n")


def test_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("no_such_net", "json.no_such_net", "no_such.net"):
        with pytest.raises(ConfigError, match=f"there is no module '{module}'") as caught:
            parse_arch(f"{module}:build").build()
        assert "run edgekit in the directory" in caught.value.hint


def test_zoo_refuses_unknown_names_and_arguments() -> None:
    with pytest.raises(ConfigError, match="unknown zoo network 'resnet'") as caught:
        parse_arch("zoo:resnet").build()
    assert all(name in caught.value.hint for name in MODELS)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'classes'") as caught:
        parse_arch("zoo:efficientnet_lite0(classes=3)").build()
    assert caught.value.hint == "zoo:efficientnet_lite0 takes (num_classes=1000)"
    with pytest.raises(ConfigError, match="building the network failed"):
        parse_arch("zoo:efficientnet_lite0(num_classes=-1)").build()


STAND_IN = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Flatten(), nn.Linear(12, classes))

def create_model(model_name, pretrained=False, num_classes=1000, **kwargs):
    assert model_name == "resnet18" and not pretrained and not kwargs
    return Net(num_classes)

def resnet18(*, weights=None, progress=True):
    return Net(10)
"""


@pytest.mark.parametrize(
    ("package", "arch", "classes"),
    [
        ("timm", 'timm:create_model(model_name="resnet18")', 1000),
        ("timm", 'timm:create_model("resnet18", pretrained=False, num_classes=7)', 7),
        ("torchvision.models", "torchvision.models:resnet18", 10),
        ("torchvision.models", "torchvision.models:resnet18(weights=None)", 10),
    ],
)
def test_networks_of_installed_packages(
    package: str,
    arch: str,
    classes: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The packages are not needed for edgekit's own tests, so another one stands in for each."""
    from edgekit.loading import load
    from edgekit.options import parse_input

    folder = tmp_path.joinpath("site", *package.split("."))
    folder.mkdir(parents=True)
    for parent in (folder, *folder.parents[: package.count(".")]):
        (parent / "__init__.py").write_text(STAND_IN if parent == folder else "")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in _modules_of(package):
        monkeypatch.delitem(sys.modules, name)
    state = {"1.weight": torch.randn(classes, 12), "1.bias": torch.randn(classes)}
    torch.save({"model": state}, tmp_path / "weights.pt")
    try:
        loaded = load(tmp_path / "weights.pt", arch=arch, inputs=[parse_input("1x3x2x2")])
    finally:
        for name in _modules_of(package):
            del sys.modules[name]
    assert torch.equal(loaded.module.state_dict()["1.weight"], state["1.weight"])
    assert loaded.arch.startswith(arch.partition("(")[0])


def _modules_of(package: str) -> list[str]:
    top = package.partition(".")[0]
    return [name for name in sys.modules if name.partition(".")[0] == top]


@pytest.mark.parametrize(
    ("stated", "typed"),
    [
        (None, None),
        ("zoo:efficientnet_lite0", None),
        ("zoo:efficientnet_lite0", "zoo:efficientnet_lite0"),
        ("my_net:build(1)", "my_net:build(1)"),
    ],
)
def test_architecture_of_a_recipe_that_is_honoured(stated: str | None, typed: str | None) -> None:
    assert confirmed_arch(stated, typed) == stated


def test_recipe_alone_does_not_decide_what_is_imported() -> None:
    with pytest.raises(UnsafeFileError, match="'my_net:build'; nothing was imported") as caught:
        confirmed_arch("my_net:build", None)
    assert "typing the same --arch" in caught.value.hint
    for stated in (None, "zoo:efficientnet_lite0", "my_net:build"):
        with pytest.raises(ConfigError, match="--arch other:build: the recipe is for"):
            confirmed_arch(stated, "other:build")
