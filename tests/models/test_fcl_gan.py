"""FCL-GAN's networks against the figures of the paper's sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgekit.architecture import parse_arch  # noqa: E402
from edgekit.capture import CapturedModel, capture  # noqa: E402
from edgekit.loading import load  # noqa: E402
from edgekit.models.batchnorm import recalibrate  # noqa: E402
from edgekit.models.fcl_gan import (  # noqa: E402
    Generator,
    PatchDiscriminator,
    fcl_gan,
    fcl_gan_small,
    start_as_identity,
)
from edgekit.types import InputSpec, Task  # noqa: E402
from edgekit.work import multiplications  # noqa: E402
from edgekit.zoo import list_models, save_model  # noqa: E402


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def of_type(module: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())


def test_size_is_the_papers() -> None:
    with torch.device("meta"):
        generator = fcl_gan()
        discriminator = PatchDiscriminator()
    assert parameters(generator) == 2_772_483
    assert parameters(discriminator) == 391_657
    assert of_type(generator, nn.Conv2d, nn.ConvTranspose2d) == 80
    assert of_type(generator, nn.ConvTranspose2d) == 2
    assert of_type(generator, nn.BatchNorm2d) == 79


@pytest.fixture(scope="module")
def network() -> Generator:
    torch.manual_seed(0)
    return Generator(8, 1).eval()


@pytest.fixture(scope="module")
def captured(network: Generator) -> CapturedModel:
    spec = InputSpec("image", (1, 3, 16, 16), variable_axes=(2, 3), multiple=4)
    return capture(network, [spec], task=Task.IMAGE_TO_IMAGE)


def products(network: Generator, side: int) -> int:
    """Count by the definition: each position times the weight, of the output, or of the input."""
    counts: list[int] = []

    def count(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        positions = args[0] if isinstance(module, nn.ConvTranspose2d) else output
        counts.append(positions[0, 0].numel() * module.weight.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(count)
    network(torch.empty(1, 3, side, side, device="meta"))
    return sum(counts)


def test_products_of_a_pixel(captured: CapturedModel) -> None:
    with torch.device("meta"):
        assert products(fcl_gan(), 16) == 391_248 * 16 * 16
        assert products(fcl_gan_small(), 16) == 35_936 * 16 * 16
        small = products(Generator(8, 1), 16)
    assert multiplications(captured.graph) == small


def test_small_one_fits_the_package() -> None:
    network = fcl_gan_small()
    assert sum(value.nbytes for value in network.state_dict().values()) <= 2_000_000


def test_discriminator_scores_patches() -> None:
    assert PatchDiscriminator()(torch.rand(2, 3, 256, 256)).shape == (2, 1, 16, 16)
    assert PatchDiscriminator()(torch.rand(2, 3, 64, 64)).shape == (2, 1, 4, 4)


def test_zero_head_gives_the_sigmoid_of_the_picture() -> None:
    network = Generator(8, 1).eval()
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    image = torch.rand(1, 3, 16, 20)
    torch.testing.assert_close(network(image)["restored"], torch.sigmoid(image))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (36, 20), (64, 100)])
def test_captured_network_takes_any_multiple_of_four(
    height: int, width: int, network: Generator, captured: CapturedModel
) -> None:
    assert [spec.name for spec in captured.outputs] == ["restored"]
    assert captured.outputs[0].shape == (1, 3, -1, -1)
    assert captured.batch
    assert captured.notes == ()
    image = torch.rand(2, 3, height, width)
    (restored,) = captured(image)
    with torch.no_grad():
        expected = network.restore(image)
    # the same kernels in the same order: what differs is the last bits of a fused product
    torch.testing.assert_close(restored, expected, rtol=1e-5, atol=1e-6)


def test_recalibrated_statistics_are_those_of_the_inputs() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    batches = [torch.rand(4, 3, 8, 8) + index for index in range(3)]
    recalibrate(network, batches)
    means = np.stack([batch.numpy().mean((0, 2, 3)) for batch in batches]).mean(0)
    variances = np.stack([batch.numpy().var((0, 2, 3), ddof=1) for batch in batches]).mean(0)
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # float32 sums of 256 values
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), variances, rtol=1e-4)
    assert norm.momentum == 0.1
    assert not network.training


def test_identity_start_hands_pictures_back() -> None:
    torch.manual_seed(0)
    network = Generator(8, 1)
    ramp = torch.linspace(0.1, 0.9, 32)
    pictures = torch.stack(
        [torch.stack((ramp * s, ramp.flip(0) * s, ramp * 0 + s)) for s in (0.3, 0.6, 0.9)]
    )[..., None, :].expand(3, 3, 32, 32)
    with torch.no_grad():
        fresh = (network.eval().restore(pictures) - pictures).square().mean()
    start_as_identity(network, pictures)
    with torch.no_grad():
        error = (network.restore(pictures) - pictures).square().mean()
    # 20 dB: a linear head on features behind clamps; fresh weights are more than ten times off
    assert float(error) < 1e-2
    assert float(error) < 0.1 * float(fresh)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("fcl_gan", tmp_path_factory.mktemp("zoo") / "fcl_gan.pt")


def test_seeded_checkpoint_says_what_it_is(saved: Path) -> None:
    (entry,) = (model for model in list_models() if model["name"] == "fcl_gan")
    assert (entry["weights"], entry["weights_available"]) == ("seeded", True)
    assert "random weights" in entry["description"]
    loaded = load(saved)
    assert loaded.task is Task.IMAGE_TO_IMAGE
    assert loaded.inputs[0].variable_axes == (2, 3)


def test_seeded_network_runs_in_the_range_of_pictures(saved: Path) -> None:
    module = load(saved).module
    assert isinstance(module, Generator)
    generator = torch.Generator().manual_seed(1)
    smooth = torch.rand((2, 3, 8, 8), generator=generator)
    image = nn.functional.interpolate(smooth, (64, 64), mode="bilinear")
    with torch.no_grad():
        restored = module.restore(image)
    # between black, white and grey lie 10 dB or less; measured 20 to 25
    assert float((restored - image).square().mean()) < 10**-1.5


def test_seeded_weights_are_the_same_again(saved: Path) -> None:
    again = parse_arch("zoo:fcl_gan").zoo_model().weights
    assert again is not None
    state = load(saved).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again().items())
