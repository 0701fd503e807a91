"""What `edgekit bench` adds to a bare ONNX Runtime loop and to OpenVINO's benchmark_app.

    python -m benchmarks.bench_overhead

Blocks of the two sides alternate, each in a fresh process, each round in the opposite order. Three
bars: at most 20 microseconds more for each inference of a tiny network, and within 5 % for a
network of some milliseconds, in both runtimes. Exit code 0: all reached. The minima are shown
beside, because other work on the machine touches them least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._conditions import conditions, load_average
from benchmarks._interleaved import Ratio, ratio
from benchmarks._process import run_step
from edgekit.runners.timing import Block, TimingRequest, time_block

_OVERHEAD_US = 20.0
_WITHIN = 0.05
_WARM_UP_S = 0.5
_LEAST_ROUNDS = 5
_TINY_SHAPE, _SHAPE = (1, 16), (1, 3, 96, 96)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 all bars reached, 1 a bar missed."""
    options = _parse(arguments)
    where = conditions()
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as name:
        tiny, network = _tiny(Path(name) / "tiny.onnx"), _network(Path(name) / "network.onnx")
        count, threads = options.blocks, options.threads
        overhead = _rounds(
            count, lambda: _bare(tiny, _TINY_SHAPE, threads), lambda: _ours(tiny, threads)
        )
        bare = _rounds(
            count, lambda: _bare(network, _SHAPE, threads), lambda: _ours(network, threads)
        )
        app = _rounds(
            count,
            lambda: _benchmark_app(network, threads),
            lambda: _ours(network, threads, target="openvino"),
        )
    where["load_average_after"] = load_average()
    rows = [
        *_overhead_rows(overhead),
        _ratio_row("network, bare ONNX Runtime loop", bare),
        _ratio_row("network, OpenVINO's benchmark_app", app),
    ]
    _print(where, rows)
    if options.json is not None:
        pairs = {"tiny": overhead, "network_onnxruntime": bare, "network_openvino": app}
        document = {"conditions": where, "rows": rows, "blocks": pairs}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["reached"] for row in rows) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_overhead", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--blocks", type=int, default=9, help="rounds of each pair (default 9)")
    parser.add_argument("--threads", type=int, help="of both sides; default: the runtime's own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    options = parser.parse_args(arguments)
    if options.blocks < _LEAST_ROUNDS:
        parser.error(f"--blocks: at least {_LEAST_ROUNDS}")
    return options


def _rounds(
    count: int, reference: Callable[[], dict[str, float]], ours: Callable[[], dict[str, float]]
) -> list[dict[str, dict[str, float]]]:
    pairs = []
    for number in range(count):
        print(f"round {number + 1} of {count}", file=sys.stderr, flush=True)
        sides = {"reference": reference, "edgekit": ours}
        order = reversed(sides) if number % 2 else iter(sides)
        pairs.append({name: sides[name]() for name in order})
    return pairs


def _ours(model: Path, threads: int | None, target: str = "onnxruntime") -> dict[str, float]:
    block: Block = time_block(
        TimingRequest(target, model, {}, 1, threads, _WARM_UP_S, seconds=_seconds())
    )
    # The loop fills its time, so this is what one turn costs, the clock and the list included.
    return {
        "p50_ms": block.p50_ms,
        "min_ms": block.min_ms,
        "loop_us": 1e6 * _seconds() / block.runs,
        "runs": block.runs,
    }


def _bare(model: Path, shape: tuple[int, ...], threads: int | None) -> dict[str, float]:
    request = {"path": str(model), "shape": shape, "threads": threads}
    return run_step("_bare_loop", {**request, "warmup": _WARM_UP_S, "seconds": _seconds()})


def _benchmark_app(model: Path, threads: int | None) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="edgekit-benchmark-") as folder:
        command = [sys.executable, "-c", "from openvino.tools.benchmark.main import main; main()"]
        command += ["-m", str(model), "-d", "CPU", "-api", "sync"]
        command += ["-t", f"{_seconds():g}", "-json_stats", "-ip", "f32"]
        # Its interface takes a hint or threads; one stream is what the hint comes to.
        fixed = ["-hint", "none", "-nstreams", "1", "-nthreads", str(threads)]
        command += ["-hint", "latency"] if threads is None else fixed
        command += ["-report_type", "no_counters", "-report_folder", folder]
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        (path,) = Path(folder).glob("*report.json")
        results = json.loads(path.read_text(encoding="utf-8"))["execution_results"]
    return {
        "p50_ms": float(results["latency (ms)"]),
        "min_ms": float(results["min latency"]),
        "runs": int(results["total number of iterations"]),
    }


def _seconds() -> float:
    return 1.0  # benchmark_app takes whole seconds


def _overhead_rows(pairs: Sequence[dict[str, dict[str, float]]]) -> list[dict[str, Any]]:
    rows = []
    for name, figure, factor in (
        ("tiny network, added to the measured latency", "p50_ms", 1e3),
        ("tiny network, added to one turn of the loop", "loop_us", 1.0),
    ):
        added = [factor * (p["edgekit"][figure] - p["reference"][figure]) for p in pairs]
        value = statistics.median(added)
        text = (
            f"{value:+.2f} us (blocks {min(added):+.2f} to {max(added):+.2f}), bar {_OVERHEAD_US:g}"
        )
        rows.append({"name": name, "value": value, "text": text, "reached": value <= _OVERHEAD_US})
    return rows


def _ratio_row(name: str, pairs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    sides = ("edgekit", "reference")
    found: Ratio = ratio(*([pair[side]["p50_ms"] for pair in pairs] for side in sides))
    lowest: Ratio = ratio(*([pair[side]["min_ms"] for pair in pairs] for side in sides))
    text = f"ratio {found}, bar within {_WITHIN:.0%} (of minima {lowest})"
    value = found.value
    return {"name": name, "value": value, "text": text, "reached": abs(value - 1) <= _WITHIN}


def _print(where: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    versions = where["versions"]
    print(f"{where['cpu']}, {where['cores']} cores ({' '.join(where['cpu_flags'])})")
    print(f"onnxruntime {versions['onnxruntime']}, openvino {versions['openvino']}")
    print(
        f"load average {where['load_average_before']} before, {where['load_average_after']} after"
    )
    if where["load_average_before"] > os.cpu_count() / 2:  # type: ignore[operator]
        print("NOTE: the machine was busy; only the ratios mean something.")
    for row in rows:
        print(f"{'pass' if row['reached'] else 'FAIL'}  {row['name']}: {row['text']}")


def _tiny(path: Path) -> Path:
    """One small matrix product: nearly nothing but the call itself."""
    from onnx import helper

    weight = helper.make_tensor("w", 1, (16, 16), [0.1] * 256)
    return _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], _TINY_SHAPE, [weight])


def _network(path: Path) -> Path:
    """Twelve convolutions, some milliseconds on one core."""
    import numpy as np
    from onnx import helper, numpy_helper

    generator = np.random.default_rng(0)
    nodes, weights, channels, previous = [], [], 3, "x"
    for index in range(12):
        wide, stride = 32 << index // 4, 2 if index % 4 == 0 else 1
        spread = (2 / (9 * channels)) ** 0.5
        weight = spread * generator.standard_normal((wide, channels, 3, 3))
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        keys = {"pads": [1] * 4, "strides": [stride] * 2}
        nodes.append(helper.make_node("Conv", [previous, f"w{index}"], [f"c{index}"], **keys))
        previous = "y" if index == 11 else f"r{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [previous]))
        channels = wide
    return _save(path, nodes, _SHAPE, weights)


def _save(path: Path, nodes: Sequence[Any], shape: Sequence[int], weights: Sequence[Any]) -> Path:
    import onnx
    from onnx import helper

    ends = [
        helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "network", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 19)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


if __name__ == "__main__":
    sys.exit(main())
