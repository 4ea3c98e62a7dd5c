"""The zoo once more, as an author would write it in PyTorch, with every width to choose.

`width(name, filters)` is asked for the filters of every convolution that starts a filter group, by that convolution's
path, so that the very same code also builds the physically smaller networks.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    Width = Callable[[str, int], int]


def full(_name: str, filters: int) -> int:
    return filters


class BasicBlock(nn.Module):
    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, blocks: int, classes: int, in_channels: int, _image_size: int, width: Width = full) -> None:
        super().__init__()
        channels = width("conv1", 16)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        for stage, filters in enumerate((16, 32, 64), start=1):
            # The first convolution of the stage that writes to its residual stream names the stream's group.
            stream = channels if stage == 1 else width(f"layer{stage}.0.conv2", filters)
            layer = []
            for block in range(blocks):
                inner = width(f"layer{stage}.{block}.conv1", filters)
                stride = 2 if stage > 1 and block == 0 else 1
                layer.append(BasicBlock(channels, inner, stream, stride))
                channels = stream
            self.add_module(f"layer{stage}", nn.Sequential(*layer))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


class DenseLayer(nn.Sequential):
    def __init__(self, in_channels: int, bottleneck: int, growth: int) -> None:
        super().__init__()
        self.add_module("norm1", nn.BatchNorm2d(in_channels))
        self.add_module("relu1", nn.ReLU(inplace=True))
        self.add_module("conv1", nn.Conv2d(in_channels, bottleneck, 1, bias=False))
        self.add_module("norm2", nn.BatchNorm2d(bottleneck))
        self.add_module("relu2", nn.ReLU(inplace=True))
        self.add_module("conv2", nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False))

    def forward(self, features: list[Tensor]) -> Tensor:
        return super().forward(torch.cat(features, 1))


class DenseBlock(nn.ModuleDict):
    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self, classes: int, in_channels: int, image_size: int, width: Width = full) -> None:
        super().__init__()
        channels = width("features.conv0", 24)
        nominal = 24
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_channels, channels, 3, padding=1, bias=False))
        for number in (1, 2, 3):
            block = DenseBlock()
            for layer in range(1, 7):
                path = f"features.denseblock{number}.denselayer{layer}"
                growth = width(f"{path}.conv2", 12)
                block[f"denselayer{layer}"] = DenseLayer(channels, width(f"{path}.conv1", 48), growth)
                channels += growth
            self.features.add_module(f"denseblock{number}", block)
            nominal += 6 * 12
            if number < 3:
                nominal //= 2
                kept = width(f"features.transition{number}.conv", nominal)
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(channels))
                transition.add_module("relu", nn.ReLU(inplace=True))
                transition.add_module("conv", nn.Conv2d(channels, kept, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, stride=2))
                self.features.add_module(f"transition{number}", transition)
                channels = kept
        self.features.add_module("norm_final", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        out = functional.relu(features, inplace=True)
        out = functional.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class SmallVgg(nn.Module):
    def __init__(self, classes: int, in_channels: int, image_size: int, width: Width = full) -> None:
        super().__init__()
        layers = []
        channels = in_channels
        for filters in (32, 32, "M", 64, 64, "M", 128, 128, "M"):
            if filters == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                kept = width(f"features.{len(layers)}", filters)
                layers += [nn.Conv2d(channels, kept, 3, padding="same", bias=False), nn.BatchNorm2d(kept), nn.ReLU()]
                channels = kept
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (image_size // 8) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class FemnistCnn(nn.Module):
    def __init__(self, classes: int, in_channels: int, image_size: int, width: Width = full) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width("conv1", 32), 5, padding=2)
        self.conv2 = nn.Conv2d(width("conv1", 32), width("conv2", 64), 5, padding=2)
        self.fc1 = nn.Linear(width("conv2", 64) * (image_size // 4) ** 2, 512)
        self.fc2 = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = functional.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class ConvNormActivation(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, stride: int, *, residual: bool, expand: bool
    ) -> None:
        super().__init__()
        self.use_res_connect = residual
        layers = [ConvNormActivation(in_channels, hidden, 1)] if expand else []
        layers += [
            ConvNormActivation(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, classes: int, in_channels: int, image_size: int, width: Width = full) -> None:
        super().__init__()
        channels = width("features.0.0", 32)
        nominal = 32
        features = [ConvNormActivation(in_channels, channels, 3)]
        for t, c, n, s in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            stream = None
            for block in range(n):
                path = f"features.{len(features)}.conv"
                if stream is None:  # the projection that starts the residual stream names its group
                    stream = width(f"{path}.{1 if t == 1 else 2}", c)
                hidden = channels if t == 1 else width(f"{path}.0.0", nominal * t)
                stride = s if block == 0 else 1
                features.append(InvertedResidual(channels, hidden, stream, stride, residual=block > 0, expand=t > 1))
                channels, nominal = stream, c
        last = width(f"features.{len(features)}.0", 1280)
        features.append(ConvNormActivation(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = functional.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


_TWINS = {
    "densenet40": (DenseNet, (10, 3, 32)),
    "femnist_cnn": (FemnistCnn, (62, 1, 28)),
    "mobilenet_v2": (MobileNetV2, (10, 3, 32)),
    "resnet20": (lambda *args, **kwargs: ResNet(3, *args, **kwargs), (10, 3, 32)),
    "resnet8": (lambda *args, **kwargs: ResNet(1, *args, **kwargs), (10, 3, 32)),
    "vgg_small": (SmallVgg, (10, 3, 32)),
}


def build_twin(
    name: str,
    classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    width: Width = full,
) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the twin of a network of the zoo, and the shape of its images."""
    make, (usual_classes, usual_channels, usual_size) = _TWINS[name]
    classes = usual_classes if classes is None else classes
    in_channels = usual_channels if in_channels is None else in_channels
    image_size = usual_size if image_size is None else image_size
    torch.manual_seed(0)
    return make(classes, in_channels, image_size, width=width), (in_channels, image_size, image_size)


def count_macs(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Return the MACs of a training step for one image, seen from outside while PyTorch runs it.

    Backward-data is counted where the layer's input requires a gradient.
    """
    counted = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        window = layer.weight[0].numel()  # inputs per group, times the kernel
        counted.append(output[0].numel() * window * (3 if inputs[0].requires_grad else 2))

    layers = [part for part in module.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    module(torch.zeros(2, *input_shape))
    for handle in handles:
        handle.remove()
    assert len(counted) == len(layers)
    return sum(counted)


@pytest.fixture
def twins() -> SimpleNamespace:
    return SimpleNamespace(names=tuple(_TWINS), build=build_twin, macs=count_macs)
