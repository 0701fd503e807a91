"""``report.json``: what was decided, what was written, how each artifact behaved when run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.capture import CapturedModel
from edgekit.environment import cpu_description, package_versions, peak_memory_bytes
from edgekit.loading import LoadedModel
from edgekit.lowering import LoweredModel
from edgekit.manifest import FileEntry, Manifest, TargetEntry, write_manifest
from edgekit.quantized import QuantizedModel
from edgekit.recipe import Recipe
from edgekit.types import Artifact
from edgekit.verify import MIN_MATCH, MIN_SQNR_DB, TargetVerification

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Everything that is known of one run. ``docs/report.md`` documents the JSON form.

    ``failures`` gives the reason for each target that was not delivered; ``shortfalls`` the
    agreements below what the user asked for.
    """

    recipe: Recipe
    captured: CapturedModel
    artifacts: tuple[Artifact, ...]
    verifications: Mapping[str, TargetVerification]
    failures: Mapping[str, str]
    shortfalls: tuple[str, ...]
    document: Mapping[str, Any]

    @classmethod
    def build(
        cls,
        *,
        model: Path,
        loaded: LoadedModel,
        recipe: Recipe,
        captured: CapturedModel,
        quantized: QuantizedModel,
        lowered: Mapping[str, LoweredModel],
        artifacts: Sequence[Artifact],
        verifications: Sequence[TargetVerification],
        failures: Mapping[str, str],
        shortfalls: Sequence[str],
        stage_seconds: Mapping[str, float],
    ) -> Report:
        """Gather the report of a finished run."""
        by_target = {result.target: result for result in verifications}
        document = {
            "schema_version": SCHEMA_VERSION,
            "model": {
                "file": model.name,
                "sha256": loaded.sha256,
                "arch": loaded.arch,
                "source": loaded.source,
                "parameters": sum(p.numel() for p in loaded.module.parameters()),
                "notes": [*loaded.notes, *captured.notes],
            },
            "recipe": recipe.to_dict(),
            "calibration": {
                "method": quantized.statistics.method,
                "samples": quantized.statistics.samples,
                "notes": list(quantized.statistics.notes),
                "decisions": dict(quantized.decisions),
            },
            "limits": {"match": MIN_MATCH, "simulation_sqnr_db": MIN_SQNR_DB},
            "targets": {
                name: _target(name, artifacts, by_target, failures, lowered)
                for name in recipe.targets
            },
            "bits": {name: [b.weight, b.activation] for name, b in quantized.bits.items()},
            "tensors": _tensors(quantized),
            "seconds": dict(stage_seconds),
            "peak_memory_bytes": peak_memory_bytes(),
            "cpu": cpu_description(),
            "versions": package_versions(),
        }
        return cls(
            recipe,
            captured,
            tuple(artifacts),
            by_target,
            dict(failures),
            tuple(shortfalls),
            document,
        )


def _target(
    name: str,
    artifacts: Sequence[Artifact],
    verifications: Mapping[str, TargetVerification],
    failures: Mapping[str, str],
    lowered: Mapping[str, LoweredModel],
) -> dict[str, Any]:
    artifact = next((a for a in artifacts if a.target == name), None)
    checked = verifications.get(name)
    plain = {} if checked is None else checked.to_dict()
    return {
        "status": "failed" if name in failures else "ok",
        "failure": failures.get(name),
        "model": None if artifact is None or name in failures else artifact.model,
        "notes": [] if artifact is None else list(artifact.notes),
        "saturation": _saturation(lowered.get(name)),
        **plain,
    }


def _saturation(lowered: LoweredModel | None) -> dict[str, Any]:
    """Channels whose 16-bit pair sums could have overflowed, and were repaired."""
    if lowered is None:
        return {}
    risky = {name: {"at_risk": a, "channels": c} for name, (a, c) in lowered.at_risk.items() if a}
    return {
        "pairing": lowered.profile.pairing.value,
        "repaired_channels": sum(entry["at_risk"] for entry in risky.values()),
        "layers": risky,
    }


def _tensors(quantized: QuantizedModel) -> dict[str, Any]:
    return {
        name: {
            "minimum": stats.minimum,
            "maximum": stats.maximum,
            "prior": None if stats.prior is None else list(stats.prior),
            "rule": stats.rule,
        }
        for name, stats in quantized.statistics.tensors.items()
    }


def write_result_files(report: Report, directory: Path) -> None:
    """Write ``manifest.json`` and ``report.json`` beside the artifacts."""
    delivered = [a for a in report.artifacts if a.target not in report.failures]
    targets = []
    for artifact in delivered:
        checked = report.verifications[artifact.target]
        engines = tuple(path for path in artifact.files if path.endswith(".plan"))
        targets.append(
            TargetEntry(
                artifact.target,
                artifact.model,
                tuple(FileEntry.of(directory, path) for path in artifact.files),
                checked.executed,
                None if checked.executed else checked.reason,
                engines,
            )
        )
    neutral = ("float/model.onnx", "quantized.safetensors", "recipe.json")
    captured = report.captured
    manifest = Manifest(
        edgekit_version=report.recipe.edgekit,
        task=captured.task,
        inputs=captured.inputs,
        outputs=captured.outputs,
        preprocessing=captured.preprocessing,
        num_classes=captured.num_classes,
        scheme=report.recipe.scheme,
        cpu=report.recipe.cpu,
        targets=tuple(targets),
        files=tuple(FileEntry.of(directory, path) for path in neutral),
        versions=package_versions(),
    )
    write_manifest(manifest, directory)
    document = dict(report.document)
    for artifact in delivered:
        sizes = {path: (directory / path).stat().st_size for path in artifact.files}
        document["targets"][artifact.target]["size_bytes"] = _payload(sizes)
        document["targets"][artifact.target]["files"] = sizes
    document["float_size_bytes"] = (directory / "float/model.onnx").stat().st_size
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")


def _payload(sizes: Mapping[str, int]) -> int:
    """Bytes of the model itself, prebuilt engines apart."""
    return sum(size for path, size in sizes.items() if not path.endswith(".plan"))
