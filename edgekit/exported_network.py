"""From a ``torch.export`` program to a network that takes its inputs by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgekit.capture import example_inputs
from edgekit.errors import ConfigError, LoadError
from edgekit.evaluation_mode import switch_to_evaluation
from edgekit.files.quiet import quiet_torch
from edgekit.files.torch_save import READER_ERRORS, unreadable
from edgekit.types import DTYPES, InputSpec

_EXPORT_FLOAT32 = "export the float32 network: torch.export.export(network.float().eval(), inputs)"


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """A program as a plain function of its tensors.

    ``inputs`` are in the order of the forward pass, with a dynamic batch as 1 and every other
    dynamic axis at its size during the export.
    """

    module: fx.GraphModule
    inputs: tuple[InputSpec, ...]
    notes: tuple[str, ...] = ()

    def check_inputs(self, chosen: Sequence[InputSpec]) -> None:
        """Check that the inputs which the user chose are among those of the export.

        Raises:
            ConfigError: a size differs that the export has fixed.
        """
        for stated, spec in zip(self.inputs, chosen, strict=True):
            free = {*stated.variable_axes, *([0] if stated.dynamic_batch else [])}
            fixed = [axis for axis in range(len(stated.shape)) if axis not in free]
            if (
                len(spec.shape) != len(stated.shape)
                or spec.dtype != stated.dtype
                or any(spec.shape[axis] != stated.shape[axis] for axis in fixed)
                or not set(spec.variable_axes) <= free
                or (spec.variable_axes and spec.multiple % stated.multiple)
            ):
                raise ConfigError(
                    f"--input {spec.name}: the program was exported for {_shown(stated)}, not for "
                    f"{_shown(spec)} (~ marks sizes that may vary)",
                    "leave out --input, or export the network again with dynamic_shapes",
                )

    def guard_batch(self, chosen: Sequence[InputSpec]) -> None:
        """Let the network refuse other batches than 1 if it computes something else for them.

        A program for a batch of 1 may have that number written into a reshape. Where it has not,
        it works for every batch, and nothing is changed.
        """
        batched = [place for place, spec in enumerate(chosen) if spec.dynamic_batch]
        if not batched or _takes_any_batch(self.module, chosen):
            return
        graph = self.module.graph
        placeholders = list(graph.find_nodes(op="placeholder"))
        with graph.inserting_after(placeholders[-1]):
            graph.call_function(refuse_other_batch, (placeholders[batched[0]],))
        self.module.recompile()


def refuse_other_batch(value: Tensor) -> None:
    """Stop where the batch is not 1; a graph calls this."""
    torch._check(value.shape[0] == 1, lambda: "the network was exported for a batch of 1 alone")


def exported_network(program: ExportedProgram, where: str) -> ExportedNetwork:
    """Return the program as a network in evaluation mode.

    Args:
        program: the program.
        where: the file's name, for messages.

    Raises:
        ConfigError: an input is not a tensor of a supported type.
        LoadError: the weights are not float32, or torch cannot rebuild the network.
    """
    with quiet_torch():
        try:
            outer = program.module(check_guards=False)
            assert isinstance(outer, fx.GraphModule)
            module = fx.GraphModule(outer, outer.graph)  # the outer one refuses eval()
            placeholders = module.graph.find_nodes(op="placeholder")
            # torch renames inputs with the name of a Python function, such as `input`.
            names = dict(zip(placeholders, program.graph_signature.user_inputs, strict=True))
            notes = switch_to_evaluation(module.graph)
            _take_flat(module.graph, program)
            module.graph.eliminate_dead_code()
            module.recompile()
        except READER_ERRORS as error:
            raise unreadable(error, where, "torch.export") from error
    _check_float32(module, where)
    module.eval().requires_grad_(False)
    inputs = tuple(
        _input_spec(node, str(names[node]), program, where)
        for node in module.graph.find_nodes(op="placeholder")
    )
    return ExportedNetwork(module, inputs, notes)


def _takes_any_batch(module: fx.GraphModule, inputs: Sequence[InputSpec]) -> bool:
    """Whether a batch of two gives what its halves give one by one."""
    both = example_inputs(inputs, 2, torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            whole = pytree.tree_leaves(module(*both))
            halves = [
                pytree.tree_leaves(
                    module(
                        *(
                            value[index : index + 1] if spec.dynamic_batch else value
                            for value, spec in zip(both, inputs, strict=True)
                        )
                    )
                )
                for index in range(2)
            ]
            return all(
                # The kernels may sum in another order for another batch, not more.
                torch.allclose(value, torch.cat(parts), rtol=1e-3, atol=1e-5, equal_nan=True)
                for value, *parts in zip(whole, *halves, strict=True)
            )
    except READER_ERRORS:
        return False


def _take_flat(graph: fx.Graph, program: ExportedProgram) -> None:
    """Let the graph take tensors by position, and return a flat tuple or a flat dictionary."""
    graph.set_codegen(fx.graph.CodeGen())
    for node in graph.find_nodes(op="placeholder"):
        if not isinstance(node.meta.get("val"), Tensor) and not node.users:
            graph.erase_node(node)  # a constant argument, which the program has taken over
    output = graph.output_node()
    values = pytree.tree_leaves(output.args[0])
    spec = program.call_spec.out_spec
    keys = spec.context if spec is not None and isinstance(spec.type, type) else None
    if isinstance(keys, list) and issubclass(spec.type, dict) and len(keys) == len(values):
        output.args = ({str(key): value for key, value in zip(keys, values, strict=True)},)
    else:
        output.args = (tuple(values),) if len(values) > 1 else (values[0],)


def _check_float32(module: fx.GraphModule, where: str) -> None:
    # A single number of another type, as traced code has them, does not change what is computed.
    tensors = [tensor for tensor in module.state_dict().values() if tensor.dim()]
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors}
    low = sorted(found & {"float16", "bfloat16", "float64"})
    if low:
        raise LoadError(f"{where}: was exported with weights in {', '.join(low)}", _EXPORT_FLOAT32)


def _input_spec(node: fx.Node, name: str, program: ExportedProgram, where: str) -> InputSpec:
    value = node.meta.get("val")
    dtype = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else "no tensor"
    if dtype not in DTYPES or not isinstance(value, Tensor) or not value.dim():
        raise ConfigError(
            f"{where}: input '{name}' of the program is {dtype} of "
            f"{value.dim() if isinstance(value, Tensor) else 0} axes",
            f"edgekit takes tensors with at least one axis, of {', '.join(DTYPES)}; "
            "export the network with such inputs",
        )
    sizes: list[int | torch.SymInt] = list(value.shape)
    dynamic = [axis for axis, size in enumerate(sizes) if isinstance(size, torch.SymInt)]
    shape = [_example_size(size, program) for size in sizes]
    if 0 in dynamic:
        shape[0] = 1
    variable = tuple(axis for axis in dynamic if axis)
    step = _multiple(shape, [value.shape[axis] for axis in variable], variable)
    return InputSpec(name, tuple(shape), dtype, variable, step)


def _multiple(
    shape: Sequence[int], sizes: Sequence[int | torch.SymInt], variable: Sequence[int]
) -> int:
    """Return what all of the program's dimensions are multiples of: 4 for ``4*Dim("h")``."""
    factors = {
        int(size.node.expr.as_coeff_Mul()[0]) for size in sizes if isinstance(size, torch.SymInt)
    }
    step = factors.pop() if len(factors) == 1 else 1  # one that holds for each axis, or none
    return step if step > 0 and all(shape[axis] % step == 0 for axis in variable) else 1


def _example_size(size: int | torch.SymInt, program: ExportedProgram) -> int:
    """Return the size during the export, or else the smallest that the program allows."""
    if isinstance(size, int):
        return size
    if isinstance(size.node.hint, int):
        return size.node.hint
    limits = program.range_constraints.get(size.node.expr)
    return max(int(limits.lower), 1) if limits is not None else 1


def _shown(spec: InputSpec) -> str:
    axes = {*spec.variable_axes, *([0] if spec.dynamic_batch else [])}
    step = "" if spec.multiple == 1 else str(spec.multiple)
    sizes = "x".join(
        f"{size}~{step if axis else ''}" if axis in axes else str(size)
        for axis, size in enumerate(spec.shape)
    )
    return f"{sizes}:{spec.dtype}"
