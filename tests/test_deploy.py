"""Bundles for a device: what is in them, and their scripts, run for real on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.cli import main
from edgekit.deploy import DEVICES
from edgekit.deploy_samples import KEPT, draw_feeds
from edgekit.errors import ConfigError, LoadError, OutputError, UnsupportedError
from edgekit.manifest import read_manifest, verify_files

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def result(
    write_jetson_result: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_jetson_result(tmp_path_factory.mktemp("deploy") / "out")


@pytest.fixture(scope="module")
def made(result: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "bundle"
    edgekit.deploy(result, to="jetson", out=path)
    return path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, in a folder with a blank in its name."""
    return shutil.copytree(made, tmp_path / "a bundle")


def call(
    bundle: Path, script: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of the bundle from elsewhere."""
    return subprocess.run(
        [str(bundle / script), *arguments],
        cwd=bundle.parent,
        env={**os.environ, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_manifest_and_checksums_name_every_file(made: Path) -> None:
    held = contents(made)
    manifest = read_manifest(made)
    verify_files(made, manifest.all_files)
    assert {f.path for f in manifest.all_files} == set(held) - {"manifest.json", "SHA256SUMS"}
    lines = (made / "SHA256SUMS").read_text().splitlines()
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    assert listed == {path: digest for path, digest in held.items() if path != "SHA256SUMS"}


def test_no_engine_of_this_machine_is_delivered(
    write_jetson_result: Callable[..., Path], tmp_path: Path
) -> None:
    result = write_jetson_result(tmp_path / "out")
    engine = result / "tensorrt/engine.rtx.sm86.plan"
    engine.write_bytes(b"of another GPU")
    document = json.loads((result / "manifest.json").read_text())
    target = document["targets"][0]
    target["files"].append(
        {
            "path": "tensorrt/engine.rtx.sm86.plan",
            "sha256": hashlib.sha256(engine.read_bytes()).hexdigest(),
            "size_bytes": engine.stat().st_size,
        }
    )
    target["engines"] = ["tensorrt/engine.rtx.sm86.plan"]
    (result / "manifest.json").write_text(json.dumps(document))
    edgekit.deploy(result, to="jetson", out=tmp_path / "bundle")
    assert list((tmp_path / "bundle").rglob("*.plan")) == []
    assert read_manifest(tmp_path / "bundle").target("tensorrt").engines == ()


def test_verify_compares_with_the_host(bundle: Path) -> None:
    done = call(bundle, "verify.sh")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    told = document["targets"]["onnxruntime"]
    assert (told["ran"], told["match"]) == (True, 100.0)
    assert told["layers"].get("int8", 0) + told["layers"].get("float32", 0) == 2
    assert document["files"] == len(contents(bundle)) - 2
    # TensorRT has no engine yet, which is no failure.
    assert document["targets"]["tensorrt"] == {
        "ran": False,
        "reason": "it has no engine yet: run build.sh",
    }


def test_verify_of_a_named_target_without_engine_fails(bundle: Path) -> None:
    done = call(bundle, "verify.sh", 'targets=["tensorrt"]')
    assert done.returncode == 2
    assert "has no engine yet" in done.stderr


def forge(bundle: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change expected outputs, and the hashes with them: as if the device computed otherwise."""
    path = bundle / name
    with np.load(path) as archive:
        arrays = {key: change(archive[key]) for key in archive.files}
    from edgekit.device.commands import write_arrays

    write_arrays(path, arrays)
    _rehash(bundle, name)
    _rehash(bundle, "manifest.json")


def _rehash(bundle: Path, name: str) -> None:
    entry = bundle / name
    digest = hashlib.sha256(entry.read_bytes()).hexdigest()
    sums = bundle / "SHA256SUMS"
    lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {name}")]
    sums.write_text("\n".join([*lines, f"{digest}  {name}"]) + "\n")
    if name != "manifest.json":
        document = json.loads((bundle / "manifest.json").read_text())
        for file in document["files"]:
            if file["path"] == name:
                file |= {"sha256": digest, "size_bytes": entry.stat().st_size}
        (bundle / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda values: -values, "differs from its simulation"),
        (lambda values: values[:, :, ::-1], "differs from its simulation"),
        (lambda values: values[:-1], "in place of"),
    ],
    ids=["negated", "other classes", "fewer samples"],
)
def test_verify_fails_where_the_device_computes_otherwise(
    bundle: Path, change: Callable[[np.ndarray], np.ndarray], told: str
) -> None:
    forge(bundle, "samples/expected_onnxruntime.npz", change)
    done = call(bundle, "verify.sh")
    assert done.returncode == 1, done.stdout
    assert told in done.stderr


@pytest.mark.parametrize("script", ["verify.sh", "build.sh", "run.sh", "bench.sh"])
@pytest.mark.parametrize(
    "damaged", ["runner/edgekit/device/__main__.py", "onnxruntime/model.onnx", "requests/run.json"]
)
def test_nothing_runs_in_a_damaged_bundle(bundle: Path, script: str, damaged: str) -> None:
    with (bundle / damaged).open("ab") as stream:
        stream.write(b"\n")
    # Were Python started at all, this one would leave a trace.
    trace = bundle.parent / "started"
    python = bundle.parent / "python"
    python.write_text(f"#!/bin/sh\ntouch '{trace}'\n")
    python.chmod(0o755)
    done = call(bundle, script, PYTHON=str(python))
    assert done.returncode == 2
    assert damaged in done.stderr
    assert "hint: copy it again" in done.stderr
    assert not trace.exists()


def test_run_takes_other_inputs(bundle: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)
    np.savez(bundle.parent / "mine.npz", x=x)
    done = call(bundle, "run.sh", "inputs=../mine.npz", "outputs=../y.npz", "stacked=false")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == "onnxruntime"
    with np.load(bundle.parent / "y.npz") as archive:
        assert archive["file"].shape == (3, 4)


def test_bench_writes_the_document_of_the_command_line(bundle: Path) -> None:
    options = ("blocks=2", "block_seconds=0.01", "warmup_seconds=0", 'targets=["onnxruntime"]')
    done = call(bundle, "bench.sh", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [lane["precision"] for lane in document["lanes"]] == ["float", "int8"]


def test_build_builds_an_engine(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX, which needs no GPU")
    done = call(bundle, "build.sh")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    engine = bundle / document["engine"]
    assert engine.stat().st_size == document["size_bytes"] > 0
    assert engine.parent.name == "tensorrt"
    # The convolution in INT8, the product as the file has it.
    assert document["layers"]["int8"] == 1
    assert sum(document["layers"].values()) == 2
    assert list(engine.parent.glob(".edgekit-*")) == []
    # Whoever has built an engine means to run it: without its GPU that is an error now.
    verified = call(bundle, "verify.sh")
    if verified.returncode == 0:
        assert json.loads(verified.stdout)["targets"]["tensorrt"]["ran"]
    else:
        assert "error: target 'tensorrt'" in verified.stderr


def test_scripts_are_clean(bundle: Path) -> None:
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed")
    scripts = sorted(map(str, bundle.glob("*.sh")))
    done = subprocess.run([checker, "-x", *scripts], capture_output=True, text=True, timeout=60)
    assert (len(scripts), done.stdout) == (5, "")


def test_equal_results_give_equal_archives(result: Path, tmp_path: Path) -> None:
    archives = [tmp_path / name / "bundle.tar.gz" for name in ("one", "two")]
    for index, path in enumerate(archives):
        mask = os.umask(0o022 if index else 0o077)  # permissions of the maker do not count
        try:
            edgekit.deploy(result, to="jetson", out=path)
        finally:
            os.umask(mask)
    one, two = (path.read_bytes() for path in archives)
    assert one == two
    assert [path.name for path in archives[0].parent.iterdir()] == ["bundle.tar.gz"]


def test_archive_unpacks_to_a_bundle_that_works(result: Path, tmp_path: Path) -> None:
    deployment = edgekit.deploy(result, to="jetson", out=tmp_path / "net.tar.gz")
    with tarfile.open(deployment.path) as archive:
        members = archive.getmembers()
        archive.extractall(
            tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    assert members[0].name == "net"
    assert sum(member.isfile() for member in members) == deployment.files
    done = call(tmp_path / "net", "verify.sh")
    assert done.returncode == 0, done.stderr


def test_result_without_the_target_is_an_error(
    write_jetson_result: Callable[..., Path], tmp_path: Path
) -> None:
    result = write_jetson_result(tmp_path / "out", ("onnxruntime",))
    with pytest.raises(UnsupportedError, match="holds onnxruntime") as caught:
        edgekit.deploy(result, to="jetson", out=tmp_path / "b")
    assert "--targets tensorrt,onnxruntime" in caught.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_fallback_may_be_missing(write_jetson_result: Callable[..., Path], tmp_path: Path) -> None:
    result = write_jetson_result(tmp_path / "out", ("tensorrt",))
    deployment = edgekit.deploy(result, to="jetson", out=tmp_path / "b")
    assert deployment.targets == ("tensorrt",)
    assert any("no onnxruntime artifact" in note for note in deployment.notes)
    done = call(tmp_path / "b", "verify.sh")
    assert done.returncode == 1
    assert "no artifact could be run here" in done.stderr


def test_damaged_result_is_refused(
    write_jetson_result: Callable[..., Path], tmp_path: Path
) -> None:
    result = write_jetson_result(tmp_path / "out")
    with (result / "tensorrt/model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(LoadError, match="bytes, the manifest says"):
        edgekit.deploy(result, to="jetson", out=tmp_path / "new" / "b.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_unknown_device_and_taken_names(result: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown device 'toaster'") as caught:
        edgekit.deploy(result, to="toaster", out=tmp_path / "b")
    assert all(name in caught.value.hint for name in DEVICES)
    for name in ("b", "b.tar.gz"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(OutputError, match="exists already"):
            edgekit.deploy(result, to="jetson", out=tmp_path / name)
        assert (tmp_path / name).read_text() == "precious"


def test_command_says_what_it_made(
    result: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", str(result), "--to", "jetson", "-o", str(tmp_path / "b"), "--json"]) == 0
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert document["targets"] == ["tensorrt", "onnxruntime"]
    assert document["files"] == len(contents(tmp_path / "b"))
    assert main(["deploy", str(result), "-o", str(tmp_path / "c")]) == 0
    assert "build.sh" in capfd.readouterr().out
    assert main(["deploy", str(result), "-o", str(tmp_path / "c")]) == 2


def test_samples_lie_in_the_domain_of_images(made: Path) -> None:
    manifest = read_manifest(made)
    with np.load(made / "samples/inputs.npz") as archive:
        assert archive["x"].shape == (KEPT, 1, 3, 16, 16)
    drawn = draw_feeds(manifest, 50, np.random.default_rng(1))["x"]
    # Preprocessing makes -1 to 1 of a pixel; its spread is that of natural images, 0.27 of the
    # range, less what is clipped (a tenth), give or take what 50 images leave to chance.
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert 0.45 < drawn.std() < 0.58
    repeated = draw_feeds(manifest, 50, np.random.default_rng(1))["x"]
    np.testing.assert_array_equal(drawn, repeated)


def test_classifier_samples_are_the_clearest(made: Path) -> None:
    manifest = read_manifest(made)
    feeds = draw_feeds(manifest, 24, np.random.default_rng(0))["x"]
    with np.load(made / "samples/inputs.npz") as archive:
        kept = [bool((archive["x"] == feed).all(axis=(1, 2, 3, 4)).any()) for feed in feeds]
    import onnxruntime

    path = str(made / "tensorrt/model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    best = np.sort(np.stack([session.run(None, {"x": feed})[0][0] for feed in feeds]), axis=1)
    margin = best[:, -1] - best[:, -2]
    assert sum(kept) == KEPT
    # Integer and float arithmetic differ in the last bits only, far below the gap in margins.
    assert min(margin[kept]) >= max(margin[np.logical_not(kept)]) - 1e-3
