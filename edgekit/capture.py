"""From ``nn.Module`` to a functional ATen graph, by ``torch.export``."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from edgekit.canonical.constants import fold_constants
from edgekit.canonical.decomposed import restore_operators
from edgekit.canonical.embedding import split_embedding_bags
from edgekit.canonical.masks import bound_masks
from edgekit.canonical.pooling import rewrite_pooling
from edgekit.canonical.products import write_products_as_linear
from edgekit.errors import CaptureError
from edgekit.files.quiet import quiet_torch
from edgekit.graph import store
from edgekit.types import InputSpec, OutputSpec, Preprocessing, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CapturedModel:
    """A network as a graph of functional ATen operators.

    ``graph`` takes the inputs in order and returns the flat tuple of outputs; BatchNorm operators
    are kept until calibration is done. ``batch`` tells whether axis 0 is really dynamic.
    """

    graph: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    task: Task
    preprocessing: Preprocessing | None
    num_classes: int | None
    batch: bool
    notes: tuple[str, ...] = ()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the graph without gradients."""
        with torch.no_grad():
            outputs: tuple[Tensor, ...] = self.graph(*inputs)
        return outputs


@dataclass(frozen=True, slots=True)
class Fill:
    """What the integer and the boolean inputs of an example hold, everywhere."""

    integers: int = 0
    booleans: int = 0


# A mask of zeros hides everything, or nothing: networks do not agree. Ones are tried first, because
# most masks say what to keep; a table with a single row takes no other id than zero.
_FILLS = (Fill(1, 1), Fill(1, 0), Fill(0, 1), Fill(0, 0))


def example_inputs(
    inputs: Sequence[InputSpec],
    batch: int,
    generator: torch.Generator | None = None,
    fill: Fill = _FILLS[-1],
) -> tuple[Tensor, ...]:
    """Draw standard-normal float and constant integer inputs of the declared shapes.

    Args:
        inputs: the network's inputs.
        batch: size of axis 0 of every input with a dynamic batch.
        generator: source of the floats' randomness; zeros when ``None``.
        fill: what the others hold.
    """
    made = []
    for spec in inputs:
        shape = (batch, *spec.shape[1:]) if spec.dynamic_batch else spec.shape
        dtype = getattr(torch, spec.dtype)
        if dtype.is_floating_point and generator is not None:
            made.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            made.append(torch.full(shape, _constant(dtype, fill), dtype=dtype))
    return tuple(made)


def _constant(dtype: torch.dtype, fill: Fill) -> int:
    if dtype.is_floating_point:
        return 0
    return fill.booleans if dtype == torch.bool else fill.integers


def capture(
    module: nn.Module,
    inputs: Sequence[InputSpec],
    *,
    task: Task = Task.OTHER,
    preprocessing: Preprocessing | None = None,
    num_classes: int | None = None,
) -> CapturedModel:
    """Trace a network in evaluation mode; ``module`` itself stays as it is.

    The batch axis is exported as dynamic when the first axis of the input shape is 1 and the
    network allows it; where it does not, the batch is fixed at 1 and ``notes`` says so.

    Raises:
        CaptureError: the forward pass fails on the declared inputs, uses control flow that depends
            on data, or computes something else than the captured graph does.
    """
    with _evaluating(module):
        return _capture(module, tuple(inputs), task, preprocessing, num_classes)


def first_output(module: nn.Module, inputs: Sequence[InputSpec]) -> Tensor | None:
    """Return the network's first output for one example, ``None`` if that is no tensor.

    Raises:
        CaptureError: the forward pass fails on the declared inputs.
    """
    with _evaluating(module):
        returned = _probe(module, tuple(inputs)).returned
    first = next(iter(returned), None)
    return first if isinstance(first, Tensor) else None


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _capture(
    module: nn.Module,
    inputs: tuple[InputSpec, ...],
    task: Task,
    preprocessing: Preprocessing | None,
    num_classes: int | None,
) -> CapturedModel:
    probe = _probe(module, inputs)
    wanted = any(spec.dynamic_batch for spec in inputs)
    notes: tuple[str, ...] = ()
    program = None
    if wanted or any(spec.variable_axes for spec in inputs):
        try:
            program = _export(module, inputs, probe.fill, batch=2)
        except Exception as error:  # noqa: BLE001 - torch.export raises whatever the network does
            notes = (f"the batch is fixed at 1: torch.export says {_first_line(error)}",)
            log.info("dynamic export failed: %s", error)
    if program is None:
        inputs = tuple(replace(spec, variable_axes=(), multiple=1) for spec in inputs)
        try:
            program = _export(module, inputs, probe.fill, batch=None)
        except Exception as error:
            raise CaptureError(
                f"torch.export cannot capture the network: {_first_line(error)}",
                "rewrite control flow that depends on tensor values with torch.where or torch.cond",
            ) from error
        wanted = False
    graph = _faithful_graph(program, probe)
    notes += _refused_size(graph, inputs, probe.fill)
    outputs = _output_specs(graph, program, batch=2 if wanted else None)
    return CapturedModel(graph, inputs, outputs, task, preprocessing, num_classes, wanted, notes)


SIZE_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError, TypeError)
"""What torch raises where sizes do not fit."""


def other_size(spec: InputSpec) -> InputSpec:
    """Return an input whose variable axes have other sizes, each its own and odd in the multiple.

    Such sizes are halved unevenly, and they are larger: a network has a smallest size.
    """
    shape = list(spec.shape)
    for place, axis in enumerate(spec.variable_axes):
        steps = shape[axis] // spec.multiple
        shape[axis] = spec.multiple * (steps + 1 + steps % 2 + 2 * place)
    return replace(spec, shape=tuple(shape))


def _refused_size(
    graph: fx.GraphModule, inputs: tuple[InputSpec, ...], fill: Fill
) -> tuple[str, ...]:
    """Return a note if the network does not take any size that its variable axes allow."""
    sized = tuple(other_size(spec) for spec in inputs)
    if sized == inputs:
        return ()
    try:
        with torch.no_grad():
            graph(*example_inputs(sized, 1, torch.Generator().manual_seed(0), fill))
    except SIZE_ERRORS:
        shapes = ", ".join("x".join(map(str, spec.shape)) for spec in sized)
        return (
            f"the network does not take the size {shapes}: where sizes must be multiples of 4, "
            "say so with ~4, as in --input 1x3x256~4x256~4",
        )
    return ()


@dataclass(frozen=True)
class _Probe:
    """One example, and what the network itself returns for it, flat."""

    fill: Fill
    inputs: tuple[Tensor, ...]
    returned: tuple[object, ...]


def _probe(module: nn.Module, inputs: tuple[InputSpec, ...]) -> _Probe:
    """Run the network on the first example that it takes and answers with finite numbers.

    Raises:
        CaptureError: it takes none.
    """
    taken: list[_Probe] = []
    failure: Exception | None = None
    for fill in _fills(inputs):
        example = example_inputs(inputs, 1, torch.Generator().manual_seed(0), fill)
        try:
            with torch.no_grad():
                returned = tuple(pytree.tree_leaves(module(*example)))
        except Exception as error:  # noqa: BLE001 - whatever the network raises
            failure = error
            continue
        taken.append(_Probe(fill, example, returned))
        if all(not isinstance(x, Tensor) or bool(x.isfinite().all()) for x in returned):
            return taken[-1]
    if taken:
        return taken[0]
    assert failure is not None
    shapes = ", ".join(f"{s.name}:{'x'.join(map(str, s.shape))}:{s.dtype}" for s in inputs)
    raise CaptureError(
        f"the network fails on its declared inputs ({shapes}): {_first_line(failure)}",
        "check --input, for example --input 1x3x224x224, once for each input",
    ) from failure


def _fills(inputs: tuple[InputSpec, ...]) -> Iterator[Fill]:
    """Yield the fills that make a difference."""
    dtypes = {getattr(torch, spec.dtype) for spec in inputs}
    seen = set()
    for fill in _FILLS:
        values = tuple(_constant(dtype, fill) for dtype in dtypes)
        if values not in seen:
            seen.add(values)
            yield fill


def _export(
    module: nn.Module, inputs: tuple[InputSpec, ...], fill: Fill, batch: int | None
) -> torch.export.ExportedProgram:
    dim = torch.export.Dim("batch")
    shapes = []
    for spec in inputs:
        axes: dict[int, object] = {0: dim} if spec.dynamic_batch else {}
        axes.update(dict.fromkeys(spec.variable_axes, torch.export.Dim.AUTO))
        shapes.append(axes)
    dynamic = None if batch is None else tuple(shapes)
    with quiet_torch():  # it prints whole graphs that it cannot follow
        return torch.export.export(
            module, example_inputs(inputs, batch or 1, fill=fill), dynamic_shapes=dynamic
        )


def _faithful_graph(program: torch.export.ExportedProgram, probe: _Probe) -> fx.GraphModule:
    """Return the flat graph, checked against what the network itself computed.

    In-place operators become functional one by one, which keeps the graph as the user wrote it.
    Where one changes a tensor through a view (``x[:, 0] = 0``), that loses the change, and torch's
    own functionalization takes over: it rewrites views as well.

    Raises:
        CaptureError: neither graph computes what the network does.
    """
    graph = _flat_graph(program)
    if _agrees(graph, probe):
        return graph
    graph = _flat_graph(program.run_decompositions({}))
    if _agrees(graph, probe):
        return graph
    raise CaptureError(
        "the captured graph does not compute what the network does",
        "write the forward pass without random numbers, and without state that it changes",
    )


def _agrees(graph: fx.GraphModule, probe: _Probe) -> bool:
    expected = [value.detach() for value in probe.returned if isinstance(value, Tensor)]
    with torch.no_grad():
        got = graph(*probe.inputs)
    # the kernels are the same; 1e-3 leaves room for another order of sums, not for a lost operator
    return len(got) == len(expected) and all(
        torch.allclose(g.double(), e.double(), rtol=1e-3, atol=1e-3 * _size(e), equal_nan=True)
        for g, e in zip(got, expected, strict=True)
    )


def _size(value: Tensor) -> float:
    """Root mean square of the finite values."""
    finite = value.double()[value.isfinite()]
    return float(finite.square().mean().sqrt()) if finite.numel() else 0.0


def _flat_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """Return the program as a plain function from tensors to a tuple of tensors."""
    graph_module = program.module(check_guards=False)
    assert isinstance(graph_module, fx.GraphModule)
    graph = graph_module.graph
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    flat = output.args[0] if isinstance(output.args[0], (list, tuple)) else output.args
    for value in flat:
        if value is not None and not isinstance(value, fx.Node):
            raise CaptureError(
                f"the network returns {value!r}, which is not a tensor",
                "return tensors only, alone or in a tuple, list or dictionary",
            )
    output.args = (tuple(value for value in flat if value is not None),)
    _functionalize(graph)
    restore_operators(graph)
    split_embedding_bags(graph)
    write_products_as_linear(graph)
    rewrite_pooling(graph)
    bound_masks(graph_module)
    graph.eliminate_dead_code()
    fold_constants(graph_module)
    graph_module.recompile()
    for name, parameter in list(graph_module.named_parameters(remove_duplicate=False)):
        store(graph_module, name, parameter.detach())  # frozen here, not in the user's module
    return graph_module


def _functionalize(graph: fx.Graph) -> None:
    """Replace in-place operators such as ``relu_`` by their functional forms.

    Raises:
        CaptureError: an in-place operator without a functional twin.
    """
    for node in list(graph.nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        name = target._schema.name.split("::")[1]
        if not name.endswith("_") or name.endswith("__"):
            continue
        packet = getattr(torch.ops.aten, name[:-1], None)
        if packet is None or target._overloadname not in packet.overloads():
            raise CaptureError(
                f"node '{node.name}': the in-place operator {name} has no functional form",
                "write the network without in-place changes of tensors",
            )
        node.target = getattr(packet, target._overloadname)
        mutated = node.args[0]
        if isinstance(mutated, fx.Node):  # later readers see the changed value
            for user in [user for user in mutated.users if user > node]:
                user.replace_input_with(mutated, node)


def _output_specs(
    graph: fx.GraphModule, program: torch.export.ExportedProgram, batch: int | None
) -> tuple[OutputSpec, ...]:
    values = [node.meta["val"] for node in graph.graph.output_node().args[0]]  # type: ignore[union-attr]
    names = _output_names(program, len(values))
    specs = []
    for name, value in zip(names, values, strict=True):
        if value.dim() == 0:
            raise CaptureError(
                f"output '{name}' is a single number for the whole batch",
                "return tensors whose first axis is the batch",
            )
        shape = [int(size) if isinstance(size, int) else -1 for size in value.shape]
        if batch is not None and shape and not isinstance(value.shape[0], int):
            shape[0] = 1
        specs.append(OutputSpec(name, tuple(shape), str(value.dtype).removeprefix("torch.")))
    return tuple(specs)


def _output_names(program: torch.export.ExportedProgram, count: int) -> list[str]:
    """Name outputs by their dictionary keys where the network returns a dictionary."""
    spec = program.call_spec.out_spec
    returned = program.graph_signature.user_outputs
    keyed = spec is not None and isinstance(spec.type, type) and issubclass(spec.type, dict)
    if keyed and spec.num_leaves == len(spec.context):
        pairs = zip(spec.context, returned, strict=True)
        return [str(key) for key, value in pairs if value is not None]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
