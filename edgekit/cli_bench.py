"""The commands ``edgekit bench`` and ``edgekit doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit import machine_tables
from edgekit.boundary import write_json
from edgekit.cli_device import DeviceName, OutFile, bench_there, doctor_there
from edgekit.cli_options import (
    AsJson,
    BenchTargets,
    InputSizes,
    Threads,
    input_sizes,
    named_inputs,
    target_names,
)
from edgekit.console import working, write
from edgekit.errors import ConfigError
from edgekit.types import InputSpec


def bench(
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR|FILE...", help="Results, .onnx, .xml, .plan, .pt.")
    ],
    targets: BenchTargets = None,
    inputs: InputSizes = None,
    blocks: Annotated[int, typer.Option(min=2, metavar="N", help="Blocks of each artifact.")] = 7,
    seconds: Annotated[float, typer.Option(metavar="S", help="Length of a block.")] = 0.5,
    warmup: Annotated[float, typer.Option(min=0, metavar="S", help="Before each block.")] = 0.3,
    threads: Threads = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Samples in an inference.")] = 1,
    mode: Annotated[
        str, typer.Option(metavar="M", help="blocks, or single-stream after MLPerf.")
    ] = "blocks",
    min_duration: Annotated[
        float, typer.Option(min=0, metavar="S", help="Of a single stream, at least.")
    ] = 600.0,
    min_queries: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of a single stream, at least.")
    ] = 100,
    copies: Annotated[
        bool, typer.Option("--copies/--no-copies", help="Time copies to and from a GPU, too.")
    ] = True,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Launch a recorded CUDA graph.")
    ] = False,
    energy: Annotated[
        bool, typer.Option("--energy/--no-energy", help="Sample power, where it can be read.")
    ] = True,
    network: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="File that was quantized, for torch.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(metavar="A", help="Of the network, if the file does not say it.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="KEY", help="Set of weights in the network's file.")
    ] = None,
    trust_pickle: Annotated[
        bool, typer.Option("--trust-pickle", help="Run the code in it where opening needs that.")
    ] = False,
    device: DeviceName = None,
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Time float against INT8 on this machine or a device, and say why INT8 is not faster."""
    settings: dict[str, Any] = {
        "targets": target_names(targets),
        "shapes": input_sizes(inputs or ()),
        "blocks": blocks,
        "block_seconds": seconds,
        "warmup_seconds": warmup,
        "threads": threads,
        "batch": batch,
        "mode": mode,
        "min_seconds": min_duration,
        "min_queries": min_queries,
        "copies": copies,
        "cuda_graph": cuda_graph,
        "energy": energy,
    }
    with working("bench") as progress:
        from edgekit import bench as run_bench
        from edgekit.bench.documents import document_writer
        from edgekit.bench.network_lanes import Network
        from edgekit.runners.run_options import NetworkOptions

        stated = tuple(
            InputSpec(
                str(option.name),
                option.shape,
                option.dtype,
                option.variable_axes,
                option.multiple or 1,
            )
            for option in named_inputs(inputs or ())
        )
        options = NetworkOptions(arch, weights, trust_pickle, stated)
        if device is not None:
            if network is not None:
                raise ConfigError("--network with --device: devices have no torch", "leave it out")
            document = bench_there(paths, device, settings, out, progress)
        else:
            save = document_writer(out)
            report = run_bench(
                paths,
                **settings,
                network=None if network is None else Network(network, options),
                file_options=options,
                finished=lambda partial: save(partial.to_dict()),
                progress=progress,
            )
            document = report.to_dict()
            save(document)
    if as_json:
        write_json(document)
    else:
        write(machine_tables.bench(document))


def doctor(device: DeviceName = None, as_json: AsJson = False) -> None:
    """Say what this machine or a device can do with INT8 and INT4, and what to install."""
    with working("doctor") as progress:
        from edgekit import doctor as examine

        document = examine().to_dict() if device is None else doctor_there(device, progress)
    if as_json:
        write_json(document)
    else:
        write(machine_tables.doctor(document))
