"""A small network with one layer on integer kernels and one in float, and its exact arithmetic."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

# Powers of two: every product and sum below is exact in float32, so that the integer layer has
# one right answer, whatever the order of summation.
INPUT_SCALE = 2.0**-6
WEIGHT_SCALE = 2.0**-5
OUTPUT_SCALE = 2.0**-5


@dataclass(frozen=True)
class QdqNetwork:
    """``x [N, 3, 8, 8] -> int8 Conv, Relu -> float Conv -> y [N, 4, 8, 8]`` in ONNX files.

    ``path`` has a dynamic batch, ``static_path`` a batch of 1.
    """

    path: Path
    static_path: Path
    weight_codes: np.ndarray  # [8, 3, 3, 3] int8
    bias: np.ndarray  # [8]
    float_weight: np.ndarray  # [4, 8, 3, 3]

    def inputs(self, count: int) -> np.ndarray:
        """Values on the input's integer grid, and some between and beyond its points."""
        rng = np.random.default_rng(count)
        return rng.uniform(-0.5, 4.5, (count, 3, 8, 8)).astype(np.float32)

    def reference(self, x: np.ndarray) -> np.ndarray:
        """The same arithmetic in float64."""
        codes = np.clip(np.rint(x.astype(np.float64) / INPUT_SCALE), 0, 255)
        summed = conv3x3(codes, self.weight_codes.astype(np.float64))
        real = summed * (INPUT_SCALE * WEIGHT_SCALE) + self.bias[:, None, None]
        hidden = np.clip(np.rint(real / OUTPUT_SCALE), 0, 255) * OUTPUT_SCALE
        return conv3x3(hidden, self.float_weight.astype(np.float64))


def conv3x3(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Convolution with padding 1: ``x [N, C, H, W]``, ``weight [K, C, 3, 3]``."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,kcij->nkhw", windows, weight)


@pytest.fixture(scope="session")
def qdq_network(tmp_path_factory: pytest.TempPathFactory) -> QdqNetwork:
    onnx = pytest.importorskip("onnx", reason="the test networks are built with onnx")
    helper, to_array = onnx.helper, onnx.numpy_helper.from_array
    rng = np.random.default_rng(0)
    # |w| <= 63: pair sums of u8 x s8 fit 16 bits, so CPUs without VNNI give the same answer.
    weight = rng.integers(-63, 64, (8, 3, 3, 3)).astype(np.int8)
    bias = (rng.integers(-200, 200, 8) * INPUT_SCALE * WEIGHT_SCALE).astype(np.float32)
    float_weight = rng.normal(0, 0.2, (4, 8, 3, 3)).astype(np.float32)
    constants = {
        "x_scale": np.float32(INPUT_SCALE),
        "h_scale": np.float32(OUTPUT_SCALE),
        "zero": np.uint8(0),
        "w_codes": weight,
        "w_scale": np.full(8, WEIGHT_SCALE, np.float32),
        "w_zero": np.zeros(8, np.int8),
        "bias": bias,
        "w_float": float_weight,
    }
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_q"], "x_Q"),
        node("DequantizeLinear", ["x_q", "x_scale", "zero"], ["x_dq"], "x_DQ"),
        node("DequantizeLinear", ["w_codes", "w_scale", "w_zero"], ["w"], "w_DQ", axis=0),
        node("Conv", ["x_dq", "w", "bias"], ["c"], "conv_int", pads=[1] * 4),
        node("Relu", ["c"], ["r"], "relu"),
        node("QuantizeLinear", ["r", "h_scale", "zero"], ["h_q"], "h_Q"),
        node("DequantizeLinear", ["h_q", "h_scale", "zero"], ["h"], "h_DQ"),
        node("Conv", ["h", "w_float"], ["y"], "conv_float", pads=[1] * 4),
    ]
    folder = tmp_path_factory.mktemp("qdq")
    paths = []
    for batch in ("batch", 1):
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "qdq",
            [value("x", onnx.TensorProto.FLOAT, [batch, 3, 8, 8])],
            [value("y", onnx.TensorProto.FLOAT, [batch, 4, 8, 8])],
            [to_array(np.asarray(array), name) for name, array in constants.items()],
        )
        opset = [helper.make_opsetid("", 19)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=9)
        onnx.checker.check_model(model)
        paths.append(folder / f"{batch}.onnx")
        onnx.save(model, paths[-1])
    return QdqNetwork(paths[0], paths[1], weight, bias, float_weight)


@pytest.fixture(scope="session")
def openvino_ir(qdq_network: QdqNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as OpenVINO IR."""
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    path = tmp_path_factory.mktemp("ir") / "model.xml"
    openvino.save_model(openvino.Core().read_model(qdq_network.path), path, compress_to_fp16=False)
    return path


# The driver calls that edgekit makes, on host memory: addresses are ordinary pointers. Allocations,
# events and graphs are counted, and code 2 is what the driver answers when its memory is full. The
# device's clock goes on by COPY_MS with each copy to it, and stands still otherwise. While a stream
# is recorded, copies to the device are kept in the graph, of which there is one at a time.
COPY_MS = 0.25
DRIVER_SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static int live = 0, handles = 0, capturing = 0, recorded = 0;
static float clock_ms = 0;
static struct { void *to; const void *from; size_t size; } graph[16];
#define STREAM ((void *)(intptr_t)77)
int cuInit(unsigned flags) { return getenv("STANDIN_NO_DEVICE") ? 100 : 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &live; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return context == &live ? 0 : 201; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = STREAM; return 0; }
int cuStreamSynchronize(void *stream) { return stream != STREAM ? 400 : capturing ? 900 : 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (size > (1u << 30)) return 2;
    *address = (uint64_t)(uintptr_t)malloc(size);
    live++;
    return 0;
}
int cuMemFree_v2(uint64_t address) { free((void *)(uintptr_t)address); live--; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    if (capturing) {
        graph[recorded].to = (void *)(uintptr_t)to;
        graph[recorded].from = from;
        graph[recorded++].size = size;
        return 0;
    }
    memcpy((void *)(uintptr_t)to, from, size);
    clock_ms += 0.25f;
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    memcpy(to, (void *)(uintptr_t)from, size);
    return 0;
}
int cuEventCreate(void **event, unsigned flags) {
    *event = malloc(sizeof(float)); handles++; return 0;
}
int cuEventRecord(void *event, void *stream) { *(float *)event = clock_ms; return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *begin, void *end) {
    *ms = *(float *)end - *(float *)begin;
    return 0;
}
int cuEventDestroy_v2(void *event) { free(event); handles--; return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; recorded = 0; return 0; }
int cuStreamEndCapture(void *stream, void **made) {
    capturing = 0; *made = graph; handles++; return 0;
}
int cuGraphInstantiateWithFlags(void **made, void *from, unsigned long long flags) {
    *made = from; handles++; return 0;
}
int cuGraphLaunch(void *made, void *stream) {
    for (int i = 0; i < recorded; i++)
        cuMemcpyHtoDAsync_v2((uintptr_t)graph[i].to, graph[i].from, graph[i].size, stream);
    return 0;
}
int cuGraphExecDestroy(void *made) { handles--; return 0; }
int cuGraphDestroy(void *made) { handles--; return 0; }
int cuGetErrorString(int code, const char **text) {
    *text = code == 2 ? "out of memory" : "no device";
    return 0;
}
int standin_live_allocations(void) { return live; }
int standin_live_handles(void) { return handles; }
"""


@pytest.fixture(scope="session")
def driver_library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A stand-in for the CUDA driver library, for machines without a GPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for the CUDA driver")
    folder = tmp_path_factory.mktemp("driver")
    source, library = folder / "driver.c", folder / "libcuda-standin.so"
    source.write_text(DRIVER_SOURCE, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)
