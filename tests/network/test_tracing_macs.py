"""MACs, counted one by one in nested loops that really compute the convolution and both of its gradients."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distreal_edge.dropout import Subset
from distreal_edge.network import Network

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


def convolve_in_loops(layer: nn.Conv2d, image: Array, gradient: Array) -> tuple[Array, Array, Array, int]:
    """Return output, gradient of the image, gradient of the weights and the multiplications of each of the three."""
    weight = layer.weight.detach().numpy()
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    padded = np.pad(image, ((0, 0), (pad_y, pad_y), (pad_x, pad_x)))
    output, padded_gradient, weight_gradient = np.zeros_like(gradient), np.zeros_like(padded), np.zeros_like(weight)
    multiplications = 0
    outputs, inputs, height, width = weight.shape
    for o, i, ky, kx in product(range(outputs), range(inputs), range(height), range(width)):
        channel = o // (outputs // layer.groups) * inputs + i
        for y, x in product(range(gradient.shape[1]), range(gradient.shape[2])):
            place = (channel, y * step_y + ky * gap_y, x * step_x + kx * gap_x)
            output[o, y, x] += padded[place] * weight[o, i, ky, kx]
            weight_gradient[o, i, ky, kx] += padded[place] * gradient[o, y, x]
            padded_gradient[place] += weight[o, i, ky, kx] * gradient[o, y, x]
            multiplications += 1
    rows, columns = padded.shape[1] - pad_y, padded.shape[2] - pad_x
    return output, padded_gradient[:, pad_y:rows, pad_x:columns], weight_gradient, multiplications


CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 1, "groups": 4},
]


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_the_macs_of_a_convolution_are_the_multiplications_of_its_loops(settings: dict[str, int]) -> None:
    first = nn.Conv2d(1, 4, 1, bias=False)
    layer = nn.Conv2d(4, 8, bias=False, **settings).double()
    image = torch.randn(1, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    output = layer(image)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    assert image.grad is not None
    assert layer.weight.grad is not None
    looped = convolve_in_loops(layer, image.detach().numpy()[0], gradient.numpy()[0])
    for mine, pytorchs in zip(looped, (output[0].detach(), image.grad[0], layer.weight.grad), strict=False):
        np.testing.assert_allclose(mine, pytorchs.numpy(), atol=1e-12)
    multiplications = looped[3]

    features = output[0].numel()
    module = nn.Sequential(first, layer.float(), nn.Flatten(), nn.Linear(features, 3))
    network = Network.from_torch(module, (1, 5, 5))
    # The images need no gradient; 4 outputs of 25 pixels read them. The classifier multiplies every feature thrice.
    others = 2 * 4 * 25 + 3 * features * 3
    assert network.cost([0.0] * len(network.groups)).macs == others + 3 * multiplications


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.grouped = nn.Conv2d(6, 4, 3, padding=1, groups=2)
        self.squeeze = nn.Conv2d(10, 3, 1)
        self.excite = nn.Conv2d(3, 10, 1)
        self.fc = nn.Linear(10 * 5 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x + self.depthwise(x), self.grouped(x)], 1)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(torch.flatten(x, 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_macs_of_any_subset_are_the_pairs_of_survivors_that_meet(seed: int) -> None:
    network = Network.from_torch(Everything(), (2, 5, 5))
    # The excitation scales, and so shares, what the stem and the grouped convolution make.
    assert [(group.name, group.filters) for group in network.groups] == [("stem", 6), ("grouped", 4), ("squeeze", 3)]
    rng = np.random.default_rng(seed)
    stem, grouped, squeeze = (
        np.sort(rng.choice(filters, size=rng.integers(1, filters + 1), replace=False)) for filters in (6, 4, 3)
    )
    pixels, window = 25, 9
    # Outputs 0 and 1 of the grouped convolution read the stem's first three filters, 2 and 3 the others.
    pairs = sum((output < 2) == (channel < 3) for output in grouped for channel in stem)
    joined = len(stem) + len(grouped)
    macs = (
        2 * len(stem) * 2 * window * pixels  # the images need no gradient
        + 3 * len(stem) * window * pixels
        + 3 * pairs * window * pixels
        + 3 * joined * len(squeeze)
        + 3 * len(squeeze) * joined
        + 3 * joined * pixels * 3
    )
    assert network.cost(Subset((stem, grouped, squeeze))).macs == macs
