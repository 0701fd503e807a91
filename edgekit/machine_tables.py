"""Benchmarks, regressions, the state of the machine and inspections, as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgekit.tables import human_size, percent, render

_SHOWN = 6
_VERDICTS = {
    "faster": "faster",
    "slower": "slower",
    "unclear": "no clear difference",
}


def bench(document: Mapping[str, Any]) -> str:
    """Return the text for a finished ``edgekit bench``.

    Args:
        document: what ``--json`` prints.
    """
    heads = ("artifact", "p50", "p90", "p99", "per second", "cold start", "memory", "size")
    rows = [_lane(lane) for lane in document["lanes"]]
    lines = ["intervals: 95 %, bootstrap over blocks"]
    lines += [line for lane in document["lanes"] for line in _lane_lines(lane)]
    for comparison in document["comparisons"]:
        ratio = comparison["ratio"]
        lines.append(
            f"{comparison['lane']}: {_interval(ratio, '.2f')} times the latency of "
            f"{comparison['baseline']}: {_VERDICTS[comparison['verdict']]}"
        )
        lines += [f"  {reason['text']}" for reason in comparison["reasons"]]
    lines += [*document["notes"], _conditions(document)]
    return render(heads, rows, [*lines, *_device_lines(document)])


def _device_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield which device it was, where it was not this machine."""
    device = document.get("device")
    if device is not None:
        yield f"device {device['name']}: {device['user']}@{device['host']}:{device['port']}"
        for engine in device.get("engines", ()):
            yield f"built there by TensorRT {engine['version']} in {engine['seconds']:.0f} s"


def _lane_lines(lane: Mapping[str, Any]) -> Iterator[str]:
    """Yield what only some lanes have: a single stream, the device's own time, energy."""
    stream, device, energy = lane["single_stream"], lane["device_ms"], lane["energy"]
    if stream is not None and stream["estimate_ms"] is not None:
        yield (
            f"{lane['name']}: single stream, p{100 * stream['percentile']:.0f} "
            f"{stream['estimate_ms']:.4g} ms by early stopping ({stream['queries']} queries in "
            f"{stream['duration_s']:.0f} s; measured {stream['measured_ms']:.4g} ms)"
        )
    if device is not None:
        setup = lane["setup"]
        copies = "with" if setup["copies"] else "without"
        graph = ", as a CUDA graph" if setup["cuda_graph"] else ""
        yield (
            f"{lane['name']}: the GPU works {_interval(device, '.3g')} ms; latencies are {copies} "
            f"copies{graph}"
        )
    if energy["joules_per_inference"] is not None:
        above = energy["above_idle_joules_per_inference"]
        idle = "" if above is None else f", {1e3 * above['value']:.3g} mJ above idle"
        joules = {key: 1e3 * value for key, value in energy["joules_per_inference"].items()}
        yield (
            f"{lane['name']}: {_interval(joules, '.3g')} mJ for an inference{idle}, "
            f"{energy['mean_w']:.3g} W"
        )


def _lane(lane: Mapping[str, Any]) -> tuple[str, ...]:
    latency, memory = lane["latency"], lane["peak_memory_bytes"]
    return (
        lane["name"],
        f"{_interval(latency['p50_ms'], '.3g')} ms",
        f"{latency['p90_ms']['value']:.3g} ms",
        f"{latency['p99_ms']['value']:.3g} ms",
        f"{lane['throughput_per_s']['value']:.3g}",
        f"{lane['cold_start']['cold_start_ms']['value']:.0f} ms",
        "-" if memory is None else human_size(memory),
        human_size(lane["size_bytes"]),
    )


def _interval(estimate: Mapping[str, float], form: str) -> str:
    value, low, high = (format(estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _conditions(document: Mapping[str, Any]) -> str:
    where, settings = document["conditions"], document["settings"]
    cpu = where["cpu"]
    loads = [r["load_average"] for r in document["rounds"] if r["load_average"] is not None]
    threads = settings["threads"]
    parts = [
        f"{cpu['name']}, {cpu['cores']} cores",
        " ".join(cpu["flags"]),
        f"governor {where['governor']}" if where["governor"] else "",
        f"power mode {_mode(where['power_mode'])}" if where["power_mode"] else "",
        *(f"{part} clocks pinned" for part, pinned in where["clocks_pinned"].items() if pinned),
        "virtual machine" if where["virtual_machine"] else "",
        f"load {min(loads):g} to {max(loads):g}" if loads else "",
        f"threads: {'each runtime chooses' if threads is None else threads}",
        f"batch {settings['batch']}",
        f"{settings['blocks']} blocks of {settings['block_seconds']:g} s"
        if settings["mode"] == "blocks"
        else f"single stream of at least {settings['min_seconds']:g} s",
    ]
    return "; ".join(part for part in parts if part)


def _mode(mode: Mapping[str, Any]) -> str:
    return str(mode["id"] if mode["name"] is None else mode["name"])


def doctor(document: Mapping[str, Any]) -> str:
    """Return the text for ``edgekit doctor``.

    Args:
        document: what ``--json`` prints.
    """
    heads = ("what", "state", "INT8", "INT4")
    cpu = document["cpu"]
    state = f"{cpu['cores']} cores; {' '.join(cpu['flags']) or 'no instruction set that matters'}"
    rows = [(str(cpu["name"]), state, cpu["int8"], cpu["int4"])]
    for gpu in document["gpus"]:
        state = (
            f"compute capability {gpu['compute_capability'] / 10:.1f}, "
            f"{gpu['memory_bytes'] / 1e9:.0f} GB, driver for CUDA {gpu['cuda_version']}"
        )
        rows.append((gpu["name"], state, gpu["int8"], gpu["int4"]))
    rows += [(r["name"], _runtime_state(r), r["int8"], r["int4"]) for r in document["runtimes"]]
    return render(heads, rows, list(_doctor_lines(document)))


def _runtime_state(runtime: Mapping[str, Any]) -> str:
    # OpenVINO appends its build and branch to its version.
    versions = [f"{k} {v.split('-')[0]}" for k, v in runtime["versions"].items()]
    found = ", ".join(versions) or runtime["state"]
    if runtime["problem"] is not None:
        return f"{found}: {runtime['problem']}"
    return f"{found} works, on {', '.join(runtime['devices'])}"


def _doctor_lines(document: Mapping[str, Any]) -> Iterator[str]:
    board = "" if document["board"] is None else f", {document['board']}"
    yield f"Python {document['python']} on {document['platform']}{board}"
    yield from _device_lines(document)
    if not document["gpus"]:
        yield f"no NVIDIA GPU: {document['gpu_problem']}"
    yield from _board_lines(document)
    can = document["can"]
    yield f"quantize here: {'yes' if can['quantize'] else 'no'}"
    yield f"run artifacts here: {', '.join(can['run']) or 'none'}"
    for limit in document["will_not_work"]:
        yield f"will not work: {limit['what']} ({limit['instead']})"
    yield from (f"next: {advice}" for advice in document["advice"])


def _board_lines(document: Mapping[str, Any]) -> Iterator[str]:
    jetson, memory = document["jetson"], document["memory_bytes"]
    if jetson is not None:
        parts = [
            f"L4T {jetson['l4t'] or 'unknown'}",
            f"JetPack {jetson['jetpack'] or 'unknown'}",
            f"CUDA {jetson['cuda'] or 'not installed'}",
            f"TensorRT {jetson['tensorrt'] or 'not installed'}",
            f"{jetson['dla_cores']} DLA cores",
        ]
        yield "; ".join(parts)
    if document["power_mode"] is not None:
        pinned = [name for name, is_pinned in document["clocks_pinned"].items() if is_pinned]
        mode = _mode(document["power_mode"])
        yield f"power mode {mode}; pinned clocks: {' '.join(pinned) or 'none'}"
    available, free = memory["available"], document["free_bytes"]
    if available is not None and memory["total"] is not None:
        yield f"memory: {available / 1e9:.1f} of {memory['total'] / 1e9:.1f} GB available"
    if free is not None:
        yield f"disk: {free / 1e9:.1f} GB free"


def model_inspection(document: Mapping[str, Any]) -> str:
    """Return the text for ``edgekit inspect MODEL``.

    Args:
        document: what ``--json`` prints.
    """
    targets = list(document["targets"])
    heads = ("layer", "kind", "weight", "parameters", "followed by", *targets)
    rows = [
        (
            layer["name"],
            layer["kind"],
            _shape(layer["weight_shape"]),
            str(layer["parameters"]),
            layer["normalization"] or "-",
            *("int8" if layer["targets"][t] == "int8" else "float" for t in targets),
        )
        for layer in document["layers"]
    ]
    return render(heads, rows, list(_model_lines(document)))


def _model_lines(document: Mapping[str, Any]) -> Iterator[str]:
    inputs = ", ".join(f"{s['name']} {_shape(s['shape'])} {s['dtype']}" for s in document["inputs"])
    yield f"{document['arch']}: {document['parameters'] / 1e6:.2f} M parameters"
    yield f"task {document['task']}; inputs: {inputs}"
    norms = [f"{count} {name}" for name, count in document["normalizations"].items()]
    yield f"normalization: {', '.join(norms) or 'none'}"
    operators = [f"{count} {name}" for name, count in document["operators"].items()]
    yield f"other operators: {', '.join(operators) or 'none'}"
    yield f"calibration: {document['calibration']['method']}"
    yield from (f"  {reason}" for reason in document["calibration"]["reasons"])
    for name, counts in document["targets"].items():
        yield f"{name}: {counts['integer_layers']} of {counts['layers']} layers in INT8"
        reasons = {layer["name"]: layer["targets"][name] for layer in document["layers"]}
        yield from _float_lines({k: v for k, v in reasons.items() if v != "int8"})
    yield from document["notes"]


def _float_lines(reasons: Mapping[str, str]) -> Iterator[str]:
    layers_of: dict[str, list[str]] = {}
    for layer, reason in reasons.items():
        layers_of.setdefault(reason, []).append(layer)
    for reason, layers in layers_of.items():
        hidden = len(layers) - _SHOWN
        more = f" and {hidden} more" if hidden > 0 else ""
        yield f"  in float: {', '.join(layers[:_SHOWN])}{more} ({reason})"


def result_inspection(document: Mapping[str, Any]) -> str:
    """Return the text for ``edgekit inspect DIR``.

    Args:
        document: what ``--json`` prints.
    """
    targets = [name for name, target in document["targets"].items() if target["status"] == "ok"]
    heads = ("layer", "weight", "bits", "input", "output", "weight SQNR", "repaired", *targets)
    rows = [
        (
            layer["name"],
            _shape(layer["weight_shape"]),
            "-" if layer["bits"] is None else "/".join(map(str, layer["bits"])),
            _bounds(layer["input_range"]),
            _bounds(layer["output_range"]),
            _decibel(layer["weight_sqnr_db"]),
            str(max(layer["repaired"].values(), default=0)),
            *(layer["precision"][target] for target in targets),
        )
        for layer in document["layers"]
    ]
    return render(heads, rows, list(_result_lines(document)))


def _result_lines(document: Mapping[str, Any]) -> Iterator[str]:
    calibration = document["calibration"]
    yield f"calibration: {calibration['method']}, {calibration['samples']} samples"
    yield from calibration["notes"]
    rules = Counter(tensor["rule"] for tensor in document["tensors"].values())
    yield from (f"  {count} ranges: {rule}" for rule, count in rules.most_common())
    for name, target in document["targets"].items():
        if target["status"] != "ok":
            yield f"{name}: failed"
            continue
        planned = "planned, not run here" if target["integer_layers"] else "simulated in float"
        how = "run by its runtime" if target["executed"] else planned
        yield (
            f"{name}: {target['integer_layers']} of {target['layers']} layers in INT8 ({how}); "
            f"agreement {percent(target['agreement'])}, SQNR {_decibel(target['sqnr_db'])}; "
            f"{target['repaired_channels'] or 0} channels repaired against saturation"
        )
        layers = document["layers"]
        reasons = {layer["name"]: layer["float_reason"].get(name) for layer in layers}
        yield from _float_lines({k: v for k, v in reasons.items() if v is not None})


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _bounds(values: Sequence[float] | None) -> str:
    return "-" if values is None else f"{values[0]:.3g} to {values[1]:.3g}"


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} dB"


def regression(document: Mapping[str, Any]) -> str:
    """Return the text for a finished ``edgekit regress``.

    Args:
        document: what ``--json`` prints.
    """
    heads = ("target", "base", "head", "head / base", "limit", "INT8 layers", "verdict")
    targets = document["targets"]
    rows = [(name, *_contest(target), target["verdict"]) for name, target in targets.items()]
    lines = [f"{name}: {reason}" for name, t in targets.items() for reason in t["reasons"]]
    settings = document["settings"]
    lines.append(
        f"intervals: 98 %, over rounds; tolerance {100 * settings['tolerance']:g} % or "
        f"{settings['floor_us']:g} us"
    )
    return render(heads, rows, [*lines, *document["notes"], f"verdict: {document['verdict']}"])


def _contest(target: Mapping[str, Any]) -> tuple[str, ...]:
    layers = next((c for c in target["checks"] if c["name"] == "int8_layers"), None)
    counted = "-" if layers is None else f"{layers['base']} to {layers['head']}"
    latency = target["latency"]
    if latency is None:
        return ("-", "-", "-", "-", counted)
    ratio = latency["ratio"]
    low, high = ("?" if ratio[key] is None else f"{ratio[key]:.3f}" for key in ("low", "high"))
    return (
        f"{latency['base_ms']:.4g} ms",
        f"{latency['head_ms']:.4g} ms",
        f"{ratio['value']:.3f} [{low}, {high}]",
        f"{latency['limit']:.3f}",
        counted,
    )
