"""The architectures of the compatibility suite, as data: tests and a benchmark quantize each."""

from __future__ import annotations

from architectures.case import IMAGE, Case
from edgekit.types import Task

SEQUENCE = ("1x12x8",)
# Why some layers stay in float; each is a regular expression for what the report says.
RECURRENT = {
    "onnxruntime": {"recurrent": "runs recurrent layers in float32"},
    "openvino": {"recurrent": "runs recurrent layers in float"},
    "tensorrt": {"recurrent": "loops of FP16 products"},
}
TRANSPOSED = {"onnxruntime": {"up": "no INT8 kernel for transposed convolutions"}}

CASES: tuple[Case, ...] = (
    Case("VGG", "classic", "classic:Vgg", engine=True),
    Case("ResNet", "classic", "classic:ResNet"),
    Case("DenseNet", "classic", "classic:DenseNet"),
    Case("RegNet", "classic", "classic:RegNet"),
    Case("MobileNetV1", "mobile", "mobile:MobileNetV1"),
    Case("MobileNetV2", "mobile", "mobile:MobileNetV2"),
    Case("MobileNetV3", "mobile", "mobile:MobileNetV3", engine=True),
    Case("ShuffleNet", "mobile", "mobile:ShuffleNet"),
    Case("ConvNeXt", "attention", "attention:ConvNext"),
    Case("ViT", "attention", "attention:Vit", engine=True),
    Case("Transformer encoder", "attention", "attention:TransformerEncoder", ("1x10x32",)),
    Case(
        "U-Net",
        "pixels",
        "pixels:UNet",
        task=Task.IMAGE_TO_IMAGE,
        in_float=TRANSPOSED,
        engine=True,
    ),
    Case(
        "U-Net of variable size",
        "pixels",
        "pixels:UNet",
        ("1x3x32~x32~",),
        task=Task.IMAGE_TO_IMAGE,
        in_float=TRANSPOSED,
    ),
    Case("YOLO", "pixels", "pixels:Yolo", task=Task.OTHER, least_sqnr_db=22.0),
    Case("GroupNorm", "normalization", "odd:GroupNormNet"),
    Case(
        "InstanceNorm",
        "normalization",
        "odd:InstanceNormNet",
        task=Task.IMAGE_TO_IMAGE,
        engine=True,
    ),
    Case("BatchNorm behind pooling", "normalization", "odd:NormBehindPooling"),
    Case("BatchNorm behind a sum", "normalization", "odd:NormBehindSum"),
    Case("PReLU and LeakyReLU", "form", "odd:LeakyNet"),
    Case("shared weights", "form", "odd:SharedWeights", engine=True),
    Case("functional forms", "form", "odd:Functional"),
    Case("Conv1d", "sequence", "sequences:TemporalConvolutions", ("1x8x64",)),
    Case("GRU", "sequence", "sequences:Gru", SEQUENCE, in_float=RECURRENT, engine=True),
    Case("LSTM", "sequence", "sequences:Lstm", SEQUENCE, in_float=RECURRENT),
    Case("MLP", "table", "tables:Mlp", ("1x16",)),
    Case("embedding", "table", "tables:Words", ("ids:1x6:int64",)),
    Case("embedding bag", "table", "tables:Bag", ("ids:1x6:int64",)),
    Case(
        "two inputs",
        "table",
        "tables:ImageAndNumbers",
        (f"image:{IMAGE}", "numbers:1x4"),
        engine=True,
    ),
)

__all__ = ["CASES", "Case"]
