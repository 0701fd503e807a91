from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the host part needs the extra 'torch'")

from edgekit.files.operators import does_more_than_compute, harmless_target  # noqa: E402


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.add.Tensor",
        "torch.ops.aten.conv2d.default",
        "torch.ops.aten.__and__.Tensor",
        "torch.ops.aten._unsafe_view.default",
        "torch.ops.prims.convert_element_type.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.sym_max",
        "_operator.floordiv",
        "math.ceil",
    ],
)
def test_harmless(target: str) -> None:
    assert harmless_target(target) == target


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "torch.ops.load_library",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.from_file.out",
        "torch.ops.aten.save.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.no_such_operator.default",
        "torch.ops.aten._unsafe_masked_index.default",
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.c10d.send.default",
        "torch.ops.higher_order.while_loop",
        "torch.nn.Linear",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.factorial",
        "os.system",
        "",
        "torch.ops.aten.add.Tensor\nimport os",
    ],
)
def test_other_targets(target: str) -> None:
    assert harmless_target(target) is None


def test_no_other_operator_takes_the_name_of_a_file() -> None:
    schemas = torch._C._jit_get_all_schemas()
    found = {
        schema.name
        for schema in schemas
        for argument in schema.arguments
        if any(word in argument.name for word in ("file", "path", "url", "command"))
        and "str" in str(argument.type)
    }
    opened = {name.removeprefix("aten::") for name in found if name.startswith("aten::")}
    assert opened == {"from_file", "save"}
    assert all(does_more_than_compute(name) for name in opened)
    assert not [name for name in found if name.startswith(("prims::", "prim::", "torchvision::"))]


def test_indices_are_checked() -> None:
    for name, overload in (("index", "Tensor"), ("index_put", "default")):
        twin = f"torch.ops.aten.{name}.{overload}"
        assert harmless_target(f"torch.ops.aten._unsafe_{name}.{overload}") == twin
        unchecked = getattr(getattr(torch.ops.aten, f"_unsafe_{name}"), overload)._schema
        checked = getattr(getattr(torch.ops.aten, name), overload)._schema
        assert [a.name for a in unchecked.arguments] == [a.name for a in checked.arguments]
