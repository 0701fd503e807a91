from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import ConfigError
from edgekit.options import InputOption, parse_input, parse_preprocessing
from edgekit.types import DTYPES, Preprocessing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", InputOption(None, (1, 3, 224, 224))),
        ("image:1x3x224x224", InputOption("image", (1, 3, 224, 224))),
        ("1x50:int64", InputOption(None, (1, 50), "int64")),
        ("ids:1x50:int64", InputOption("ids", (1, 50), "int64")),
        ("1x3x256~x320~", InputOption(None, (1, 3, 256, 320), "float32", (2, 3))),
        ("8", InputOption(None, (8,))),
        ("encoder.hidden-states:1x4", InputOption("encoder.hidden-states", (1, 4))),
    ],
)
def test_input(text: str, expected: InputOption) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected \\[NAME:\\]SHAPE"),
        ("image", "expected \\[NAME:\\]SHAPE"),
        ("1x3xHxW", "expected \\[NAME:\\]SHAPE"),
        ("-1x3", "expected \\[NAME:\\]SHAPE"),
        ("a:1x3:float32:x", "expected \\[NAME:\\]SHAPE"),
        ("1x0x3", "at least 1"),
        ("1x3:float64", "'float64' is not one of"),
        ("my input:1x3", "is not a name"),
    ],
)
def test_bad_input(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse_input(text)
    assert "1x3x224x224" in caught.value.hint


@given(
    st.from_regex(r"[A-Za-z_]\w{0,9}", fullmatch=True) | st.none(),
    st.lists(st.tuples(st.integers(1, 4096), st.booleans()), min_size=1, max_size=6),
    st.sampled_from(DTYPES),
    st.integers(1, 64) | st.none(),
)
def test_input_round_trip(
    name: str | None, axes: list[tuple[int, bool]], dtype: str, multiple: int | None
) -> None:
    mark = "~" if multiple is None else f"~{multiple}"
    sizes = "x".join(f"{size}{mark if variable else ''}" for size, variable in axes)
    option = parse_input(f"{'' if name is None else name + ':'}{sizes}:{dtype}")
    variable_axes = tuple(axis for axis, (_, variable) in enumerate(axes) if variable)
    said = multiple if variable_axes else None
    assert option == (name, tuple(size for size, _ in axes), dtype, variable_axes, said)


@pytest.mark.parametrize("text", ["1x3x8~2x8~4", "1x3x8~0x8~0"])
def test_bad_multiple(text: str) -> None:
    with pytest.raises(ConfigError, match="multiples of one number, at least 1"):
        parse_input(text)


def test_preprocessing() -> None:
    text = "mean=0.485/0.456/0.406,std=0.229/0.224/0.225,resize=256,crop=224,range=1,color=bgr"
    assert parse_preprocessing(text) == Preprocessing(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224, 1, "bgr"
    )


def test_absent_parts_are_not_done() -> None:
    assert parse_preprocessing("mean=0.5, std=0.5") == Preprocessing((0.5,), (0.5,))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not one of mean, std"),
        ("mean", "'mean' is not one of"),
        ("size=224", "'size=224' is not one of"),
        ("mean=0.5,mean=0.5", "mean is given twice"),
        ("mean=a", "'a' is not a value of mean"),
        ("mean=nan", "'nan' is not a value of mean"),
        ("mean=1/2", "one value or three"),
        ("std=0", "must be positive"),
        ("crop=1.5", "'1.5' is not a value of crop"),
        ("crop=0", "at least 1"),
        ("range=2", "1 or 255"),
        ("color=cmyk", "rgb, bgr or gray"),
    ],
)
def test_bad_preprocessing(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_preprocessing(text)
