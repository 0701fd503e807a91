"""Turns measurements into the rows of the table: measured, peers, bar, verdict."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks._cases import Case
from benchmarks._interleaved import Ratio, ratio

PASS, FAIL, UNCLEAR, MISSING, INFO = "pass", "FAIL", "unclear", "not measured", "-"

MIN_AGREEMENT = 96.5
MAX_DROP = 1.5
RESOURCES = {"instant": (60.0, 2.5), "standard": (240.0, 4.0)}
"""Seconds and GB that the command may take on two cores, by effort."""
FLOAT_CONVOLUTIONS = 2  # so many may stay in float: 47 of EfficientNet-Lite0's 49 run in INT8
MAX_OF_NNCF = 1.0
MAX_OF_ONNXRUNTIME = 1.05
MAX_OF_FLOAT = 0.70
MAX_HELP_SECONDS = 0.3

_LONGEST_REASON = 300
_PEERS = {"nncf": "NNCF", "onnxruntime_full": "ORT", "onnxruntime_7bit": "ORT 7-bit"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. ``judged``: whether its verdict counts for the exit code."""

    network: str
    figure: str
    measured: str
    peers: str
    bar: str
    verdict: str
    judged: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of one artifact over the images, percent."""

    top1: float
    drop: float
    agreement: float
    images: int
    convolutions: Mapping[str, int] | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def scores(result: Mapping[str, Any]) -> dict[str, Score]:
    """Compare every artifact with the float network of the same run."""
    lanes = {key: lane for key, lane in result["accuracy"].items() if lane is not None}
    if "float" not in lanes:
        return {}
    reference, labels = lanes["float"]["predicted"], lanes["float"]["labels"]
    float_top1 = _percent_equal(reference, labels)
    found = {}
    for key, lane in lanes.items():
        top1 = _percent_equal(lane["predicted"], labels)
        agreement = _percent_equal(lane["predicted"], reference)
        found[key] = Score(
            top1, round(float_top1 - top1, 4), agreement, len(labels), lane["convolutions"]
        )
    return found


def ratios(result: Mapping[str, Any]) -> dict[tuple[str, str], Ratio]:
    """Compare the latencies that the table asks for."""
    if result["latency"] is None:
        return {}
    medians = {
        key: [block["median_ms"] for block in blocks]
        for key, blocks in result["latency"]["blocks"].items()
    }
    pairs = (
        ("ours_openvino", "nncf"),
        ("ours_openvino", "float_openvino"),
        ("ours_onnxruntime", "onnxruntime_7bit"),
        ("ours_onnxruntime", "float"),
        ("onnxruntime_7bit", "float"),
        ("onnxruntime_precise", "float"),
        ("nncf", "float_openvino"),
    )
    return {
        (a, b): ratio(medians[a], medians[b]) for a, b in pairs if a in medians and b in medians
    }


def judge(case: Case, result: Mapping[str, Any], effort: str) -> list[Row]:
    """Return the rows of one network."""
    table = _Table(case, result, effort)
    table.accuracy()
    table.resources()
    table.convolutions()
    if result["latency"] is not None:
        table.latency()
    table.tensorrt()
    return table.rows


def judge_help(seconds: float | None) -> Row:
    """Return the row of ``edgekit --help``."""
    verdict = MISSING if seconds is None else _at_most(seconds, MAX_HELP_SECONDS)
    measured = "-" if seconds is None else f"{seconds:.2f} s"
    bar = f"<= {MAX_HELP_SECONDS:g} s"
    return Row("", "edgekit --help, best of 5", measured, "-", bar, verdict, judged=True)


class _Table:
    def __init__(self, case: Case, result: Mapping[str, Any], effort: str) -> None:
        self.rows: list[Row] = []
        self._case = case
        self._result = result
        self._scores = scores(result)
        self._effort = effort

    def _add(self, figure: str, measured: str, peers: str, bar: str, verdict: str) -> None:
        self.rows.append(
            Row(self._case.name, figure, measured, peers, bar, verdict, self._case.judged)
        )

    def accuracy(self) -> None:
        """Agreement and drop of each target."""
        peers = {
            label: self._scores[key].agreement
            for key, label in _PEERS.items()
            if key in self._scores
        }
        told = ", ".join(f"{label} {value:.1f}" for label, value in peers.items()) or "-"
        best = max(peers.values(), default=None)
        for key, name in (("ours_onnxruntime", "ONNX Runtime"), ("ours_openvino", "OpenVINO")):
            self._agreement(key, f"agreement, {name}, executed", told, best)
        self._agreement("ours_tensorrt", "agreement, TensorRT's form, simulated", "-", None)
        for key, name in (
            ("ours_onnxruntime", "ONNX Runtime"),
            ("ours_openvino", "OpenVINO"),
            ("ours_tensorrt", "TensorRT's form"),
        ):
            self._drop(key, f"top-1 drop, {name}")

    def _agreement(self, key: str, figure: str, told: str, best: float | None) -> None:
        bar = f">= {MIN_AGREEMENT:g}" + ("" if best is None else f" and > {best:.1f}")
        score = self._scores.get(key)
        if score is None:
            self._add(figure, "-", told, bar, MISSING)
            return
        passed = score.agreement >= MIN_AGREEMENT and (best is None or score.agreement > best)
        self._add(figure, f"{score.agreement:.1f} %", told, bar, PASS if passed else FAIL)

    def _drop(self, key: str, figure: str) -> None:
        bar = f"<= {MAX_DROP:g} points"
        told = ", ".join(
            f"{label} {self._scores[peer].drop:+.1f}"
            for peer, label in _PEERS.items()
            if peer in self._scores
        )
        score = self._scores.get(key)
        if score is None:
            self._add(figure, "-", told or "-", bar, MISSING)
            return
        measured = f"{score.drop:+.1f} points"
        self._add(figure, measured, told or "-", bar, _at_most(score.drop, MAX_DROP))

    def resources(self) -> None:
        """Wall time and peak memory of the command."""
        max_seconds, max_gb = RESOURCES[self._effort]
        time_bar, memory_bar = f"<= {max_seconds:g} s", f"<= {max_gb:g} GB"
        nncf = self._result["peers"].get("nncf")
        peer = "-" if nncf is None else f"NNCF alone {nncf['seconds']:.1f} s"
        if self._result["quantize"] is None:
            self._add("wall time of the command", "-", peer, time_bar, MISSING)
            self._add("peak memory", "-", "-", memory_bar, MISSING)
            return
        usage = self._result["quantize"]["usage"]
        seconds = usage["seconds"]
        verdict = _at_most(seconds, max_seconds)
        self._add("wall time of the command, 2 cores", f"{seconds:.1f} s", peer, time_bar, verdict)
        process = usage["process_bytes"] / 1e9
        tree = max(usage["tree_bytes"] / 1e9, process)  # sampling may miss a short peak
        measured = f"{tree:.2f} GB; largest process {process:.2f}"
        verdict = _at_most(tree, max_gb)
        self._add("peak memory, all processes together", measured, "-", memory_bar, verdict)

    def convolutions(self) -> None:
        """Convolutions that the runtime executes in INT8."""
        total = self._case.convolutions
        for key, target, name, peer in (
            ("ours_onnxruntime", "onnxruntime", "ONNX Runtime", "onnxruntime_7bit"),
            ("ours_openvino", "openvino", "OpenVINO", "nncf"),
        ):
            figure, bar = f"convolutions in INT8, {name}", f">= {total - FLOAT_CONVOLUTIONS}"
            told = f"{_PEERS[peer]} {self._count(peer)}"
            count = self._count(key)
            if count is None:
                self._add(figure, "-", told, bar, MISSING)
                continue
            reasons = self._float_reasons(target)
            verdict = PASS if count >= total - FLOAT_CONVOLUTIONS else FAIL
            self._add(figure, f"{count} of {total}{reasons}", told, bar, verdict)

    def _count(self, key: str) -> int | None:
        score = self._scores.get(key)
        if score is None or score.convolutions is None:
            return None
        return score.convolutions.get("int8", 0)

    def _float_reasons(self, target: str) -> str:
        if self._result["quantize"] is None:
            return ""
        told = self._result["quantize"]["report"]["targets"].get(target, {})
        reasons = told.get("float_layers") or {}
        return "; " + "; ".join(f"{k}: {v}" for k, v in reasons.items()) if reasons else ""

    def latency(self) -> None:
        """Ratios of latency, with the interval over blocks."""
        found = ratios(self._result)
        for figure, pair, peer_pair, bar in (
            ("latency, OpenVINO, of NNCF's", ("ours_openvino", "nncf"), None, MAX_OF_NNCF),
            (
                "latency, OpenVINO, of float",
                ("ours_openvino", "float_openvino"),
                ("nncf", "float_openvino"),
                None,
            ),
            (
                "latency, ONNX Runtime, of its own 7-bit file",
                ("ours_onnxruntime", "onnxruntime_7bit"),
                None,
                MAX_OF_ONNXRUNTIME,
            ),
            (
                "latency, ONNX Runtime, of float",
                ("ours_onnxruntime", "float"),
                ("onnxruntime_7bit", "float"),
                MAX_OF_FLOAT,
            ),
        ):
            told = self._milliseconds(pair[1])
            if peer_pair in found:
                told += f"; {_PEERS[peer_pair[0]]} {found[peer_pair]}"
            text = "-" if bar is None else f"<= {bar:.2f}"
            if pair not in found:
                self._add(figure, "-", told, text, MISSING)
                continue
            measured = f"{found[pair]}; {self._milliseconds(pair[0])}"
            self._add(figure, measured, told, text, _ratio_verdict(found[pair], bar))

    def _milliseconds(self, key: str) -> str:
        blocks = self._result["latency"]["blocks"].get(key)
        if not blocks:
            return "-"
        return f"{statistics.median(block['median_ms'] for block in blocks):.2f} ms"

    def tensorrt(self) -> None:
        """Engines of our file, and what the parser says to ONNX Runtime's default output."""
        ours, other = (self._result["tensorrt"][k] for k in ("ours", "onnxruntime_default"))
        figure, bar = "TensorRT: engines for SM86 and SM89", "built, no Q/DQ warnings"
        told = "-"
        if other is not None and other["builder"] is not None:
            said = other["rejected"]
            verb = f"rejected ({_short_reason(said)})" if said else "accepted"
            told = f"ORT's default output: {verb}"
        if ours is None or ours["builder"] is None:
            self._add(figure, "no builder here", told, bar, MISSING)
            return
        if ours["rejected"] is not None:
            self._add(figure, f"rejected ({_short_reason(ours['rejected'])})", told, bar, FAIL)
            return
        built, warnings = sorted(ours["engines"]), ours["quantization_warnings"]
        verdict = PASS if built == ["SM86", "SM89"] and not warnings else FAIL
        measured = f"{' and '.join(built)} built, {len(warnings)} Q/DQ warnings"
        self._add(figure, measured, told, bar, verdict)


def _percent_equal(left: list[int], right: list[int]) -> float:
    return round(100.0 * sum(a == b for a, b in zip(left, right, strict=True)) / len(right), 4)


def _short_reason(said: str) -> str:
    """Shorten a parser's message, in which the node's name returns in every clause."""
    node = re.search(r"node '([^']+)'", said)
    if node is not None:
        first = node.end()
        said = said[:first] + said[first:].replace(node[1], "it")
    return textwrap.shorten(said, _LONGEST_REASON, placeholder=" ...")


def _at_most(value: float, bar: float) -> str:
    return PASS if value <= bar else FAIL


def _ratio_verdict(found: Ratio, bar: float | None) -> str:
    """Above the bar by less than the interval is no proof either way."""
    if bar is None:
        return INFO
    if found.value <= bar:
        return PASS
    return FAIL if found.low > bar else UNCLEAR
