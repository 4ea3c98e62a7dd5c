"""What cannot be traced gives an error that names the operation, its place, and what to do."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

from distreal_edge.errors import NetworkError
from distreal_edge.network import Network

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (3, 8, 8)


def head(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Block(nn.Module):
    def __init__(self, apply: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 1, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.apply_to = apply

    def forward(self, x: Tensor) -> Any:
        return self.apply_to(self, x)


def around(part: nn.Module) -> nn.Module:
    """A network whose value of shape (4, 8, 8) goes through `part`."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), part, head())


def block(apply: Callable[..., Any]) -> nn.Module:
    return around(Block(apply))


def error_of(module: Any, input_shape: Any = SHAPE) -> str:
    with pytest.raises(NetworkError) as caught:
        Network.from_torch(module, input_shape)
    return str(caught.value)


NO = "a plan has no such operation; "

# The module that stands at "1" in an nn.Sequential, and what is said about it.
PARTS: list[tuple[nn.Module, str]] = [
    (nn.GELU(), f"GELU '1': {NO}use ReLU, ReLU6, Hardswish or Sigmoid"),
    (nn.SiLU(), f"SiLU '1': {NO}write x * torch.sigmoid(x), or use Hardswish"),
    (nn.Softmax(1), f"Softmax '1': {NO}remove it: the loss applies it to the class scores"),
    (nn.GroupNorm(2, 4), f"GroupNorm '1': {NO}use BatchNorm2d or BatchNorm1d"),
    (nn.LayerNorm(8), f"LayerNorm '1': {NO}use BatchNorm2d or BatchNorm1d"),
    (nn.SyncBatchNorm(4), f"SyncBatchNorm '1': {NO}use BatchNorm2d or BatchNorm1d"),
    (nn.ConvTranspose2d(4, 4, 2), f"ConvTranspose2d '1': {NO}maps can only stay or shrink"),
    (nn.LSTM(8, 8), f"LSTM '1': {NO}only feed-forward convolutional networks can be traced"),
    (nn.Dropout2d(0.5), f"Dropout2d '1': {NO}remove it: dropping filters is what dropout vectors do"),
    (nn.ChannelShuffle(2), f"ChannelShuffle '1': {NO}channels, height and width stay where they are"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "Conv2d '1': padding_mode 'reflect' is not possible"),
    (nn.Conv2d(4, 4, 2, padding="same"), "Conv2d '1': padding='same' pads a kernel of (2, 2) unevenly"),
    (nn.Conv2d(4, 4, 3, stride=0), "Conv2d '1': a plan cannot hold it: Expected `int` >= 1 - at `$.stride[0]`"),
    (nn.Conv2d(8, 4, 3), "Conv2d '1': it reads 8 channels or features, but is given 4"),
    (nn.Conv2d(4, 4, 9), "Conv2d '1': operation '1' (conv2d) has a window of 9 on a side of 8"),
    (nn.BatchNorm2d(4, affine=False), "BatchNorm2d '1': affine=False is not possible"),
    (nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm2d '1': track_running_stats=False is not possible"),
    (nn.BatchNorm2d(4, momentum=None), "BatchNorm2d '1': momentum=None (a cumulative average) is not possible"),
    (nn.BatchNorm1d(4), "BatchNorm1d '1': it reads features [N, F], but is given (4, 8, 8)"),
    (nn.Linear(8, 8), "Linear '1': it reads features [N, F], but is given (4, 8, 8) for an image; put nn.Flatten()"),
    (nn.MaxPool2d(2, ceil_mode=True), "MaxPool2d '1': ceil_mode=True is not possible; use ceil_mode=False"),
    (nn.MaxPool2d(2, dilation=2), "MaxPool2d '1': a max-pool with dilation is not possible"),
    (nn.MaxPool2d(2, return_indices=True), "MaxPool2d '1': return_indices=True is not possible"),
    (nn.AvgPool2d(2, divisor_override=3), "AvgPool2d '1': divisor_override is not possible"),
    (nn.AdaptiveAvgPool2d(3), "AdaptiveAvgPool2d '1': it divides maps of (8, 8) unevenly into (3, 3)"),
    (nn.Flatten(0), "Flatten '1': it must keep the batch and flatten all the rest"),
    (nn.Dropout(1.0), "Dropout '1': a plan cannot hold it: Expected `float` < 1.0 - at `$.p`"),
    (nn.LazyConv2d(4, 3), "LazyConv2d '1': it has forward hooks, which a plan cannot hold"),
    (nn.Conv2d(4, 4, 1).double(), "'1.weight': it is torch.float64, and weights are float32"),
    (nn.Conv2d(4, 4, 1, device="meta"), "'1.weight': it has no values yet"),
    (nn.Conv2d(4, 4, 1).requires_grad_(requires_grad=False), "'1.weight': it is frozen, but a network trains every"),
    (parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), "'1': its weights are parametrized"),
    (prune.l1_unstructured(nn.Conv2d(4, 4, 1), "weight", 2), "Conv2d '1': it has forward hooks"),
]


@pytest.mark.parametrize(("part", "message"), PARTS, ids=[message[:40] for _, message in PARTS])
def test_a_module_that_a_plan_cannot_hold_is_named_with_its_path(part: nn.Module, message: str) -> None:
    assert f"cannot trace {message}" in error_of(around(part)).replace("ParametrizedConv2d ", "")


def data_dependent(m: Block, x: Tensor) -> Tensor:
    return m.conv(x) if x.mean() > 0 else x


def shape_dependent(m: Block, x: Tensor) -> Tensor:
    assert x.shape[1] == 4
    return x


def loop_over_batch(m: Block, x: Tensor) -> Tensor:
    return torch.cat([m.conv(x) for _ in range(x.shape[0])], 1)


def without_gradient(m: Block, x: Tensor) -> Tensor:
    with torch.no_grad():
        return m.conv(x)


def write_into_a_view(m: Block, x: Tensor) -> Tensor:
    functional.relu_(x.flatten(1))
    return x


def channel_shuffle(m: Block, x: Tensor) -> Tensor:
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)


def linear_squeeze_excite(m: Block, x: Tensor) -> Tensor:
    return x * x.mean((2, 3)).view(x.size(0), 4, 1, 1)


# What forward of the module at "1" does, and what is said about it; the line is this file's.
HERE = r"\(test_tracing_errors\.py:\d+, in '1'\): "
CALLS: list[tuple[Callable[..., Any], str]] = [
    (lambda m, x: functional.gelu(x), rf"gelu\(\) {HERE}a plan has no such operation; use ReLU"),
    (lambda m, x: functional.softmax(x, 1), rf"softmax\(\) {HERE}a plan has no such operation; remove it: the loss"),
    (lambda m, x: x.tanh(), rf"Tensor.tanh\(\) {HERE}a plan has no such operation; use ReLU"),
    (
        lambda m, x: functional.conv2d(x, m.conv.weight),
        rf"the tensor '1.conv.weight' {HERE}a plan has no loose tensors",
    ),
    (lambda m, x: x * m.scale, rf"the tensor '1.scale' {HERE}a plan has no loose tensors; weights belong to Conv2d"),
    (lambda m, x: x * torch.ones(1), rf"a constant tensor {HERE}a plan has no loose tensors"),
    (lambda m, x: x + 1, rf"add\(\) {HERE}it adds a constant, which is not possible"),
    (lambda m, x: sum([x, m.conv(x)]), rf"add\(\) {HERE}it adds a constant.*write a \+ b"),
    (lambda m, x: 0.5 * x, rf"mul\(\) {HERE}it multiplies by a constant"),
    (lambda m, x: x / 2, rf"truediv\(\) {HERE}a plan has no such operation; docs/tracing.md lists"),
    (lambda m, x: x - m.conv(x), rf"sub\(\) {HERE}a plan has no such operation; use \+"),
    (lambda m, x: torch.add(x, x, alpha=2), rf"add\(\) {HERE}an addition with alpha=2 is not possible"),
    (lambda m, x: torch.add(x, x, out=x), rf"add\(\) {HERE}a plan cannot hold how it is called: .*'out'"),
    (lambda m, x: x + m.one(x), rf"add\(\) {HERE}it adds .*\(4, 8, 8\) and \(1, 8, 8\) by broadcasting"),
    (lambda m, x: x * m.one(x), rf"mul\(\) {HERE}operation 'multiply' .*multiplies shapes"),
    (lambda m, x: torch.cat([x, x], dim=2), rf"cat\(\) {HERE}it joins along dim=2; .*torch.cat\(values, dim=1\)"),
    (lambda m, x: torch.cat([x, x]), rf"cat\(\) {HERE}it joins along dim=0"),
    (lambda m, x: torch.stack([x, x], 1), rf"stack\(\) {HERE}a plan has no such operation; use torch.cat"),
    (lambda m, x: x[:, :2], rf"getitem\(\) {HERE}a plan cannot take parts of a value"),
    (lambda m, x: x.chunk(2, 1)[0], rf"Tensor.chunk\(\) {HERE}a plan has no such operation; give each part"),
    (lambda m, x: x.detach(), rf"Tensor.detach\(\) {HERE}a plan has no such operation; gradients flow"),
    (lambda m, x: x.T, r"getattr.*a plan has no use for the attribute 'T'"),
    (lambda m, x: x.mean(), rf"Tensor.mean\(\) {HERE}a mean over dim=None is not possible.*x.mean\(\(2, 3\)\)"),
    (lambda m, x: torch.flatten(x), rf"flatten\(\) {HERE}it must keep the batch.*torch.flatten\(x, 1\)"),
    (lambda m, x: x.view(32, -1), rf"Tensor.view\(\) {HERE}it makes the shape \(32, -1\)"),
    (lambda m, x: functional.max_pool2d(x, 2, ceil_mode=True), rf"max_pool2d\(\) {HERE}ceil_mode=True is not possible"),
    (lambda m, x: functional.max_pool2d(x, m.scale), rf"the tensor '1.scale' {HERE}a plan has no loose tensors"),
    (lambda m, x: functional.max_pool2d(x, 2.0), rf"max_pool2d\(\) {HERE}kernel_size must be one whole number or two"),
    (lambda m, x: functional.dropout2d(x), r".*remove it: dropping filters is what dropout vectors do"),
    (channel_shuffle, rf"Tensor.view\(\) {HERE}it makes the shape \(the batch size, 2, 2, 8, 8\)"),
    (linear_squeeze_excite, rf"Tensor.view\(\) {HERE}.*A squeeze-excite needs no reshaping when its layers are 1x1"),
    (without_gradient, r"Conv2d '1.conv' \(test_tracing_errors\.py:\d+\): it stands under torch.no_grad\(\)"),
    (write_into_a_view, r".* is a view of a value that is changed in place; do not use inplace=True"),
    (data_dependent, r"forward of Sequential \(test_tracing_errors\.py:\d+\): an if, a loop or an assertion depends"),
    (shape_dependent, r"forward of Sequential \(test_tracing_errors\.py:\d+\): an if, a loop or an assertion depends"),
    (loop_over_batch, r"forward of Sequential \(test_tracing_errors\.py:\d+\): it cannot be followed .*TypeError"),
    (lambda m, x: m.missing(x), r"forward of .*'Block' object has no attribute 'missing'"),
    (lambda m, x: nn.Conv2d(4, 4, 1)(x), r"forward of .*: it calls a Conv2d that is no part of the module; make it in"),
    (lambda m, x: m.conv(m.conv(x)), r"'1.conv': forward uses it more than once \(.*\).*give each use a module"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:30] for _, message in CALLS])
def test_a_call_that_a_plan_cannot_hold_is_named_with_its_line(call: Callable[..., Any], message: str) -> None:
    assert re.search(f"^cannot trace {message}", error_of(block(call)))


def test_the_line_is_the_one_that_makes_the_call() -> None:
    def call(m: Block, x: Tensor) -> Tensor:
        x = m.conv(x)
        line.append(sys._getframe().f_lineno + 1)
        return functional.gelu(x)

    line: list[int] = []
    message = error_of(block(call))
    assert f"gelu() (test_tracing_errors.py:{line[0]}, in '1')" in message


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class OptionalTensor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = head(3)

    def forward(self, x: Tensor, scale: Tensor = torch.ones(1)) -> Tensor:  # noqa: B008 - as authors do
        return self.head(x * scale)


class Returns(nn.Module):
    def __init__(self, result: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.head = head(3)
        self.result = result

    def forward(self, x: Tensor) -> Any:
        return self.result(self.head(x))


def test_a_network_has_one_input() -> None:
    assert "its forward takes (x: 'Tensor', y: 'Tensor'), and a network has exactly one input" in error_of(TwoInputs())
    assert "it uses its argument 'scale', and a network has exactly one input" in error_of(OptionalTensor())


def test_a_network_has_one_output() -> None:
    assert "returns a collection of 2 values" in error_of(Returns(lambda x: (x, x)))
    assert "returns a collection of 1 value" in error_of(Returns(lambda x: {"out": x}))
    assert "it returns None; it must return the class scores" in error_of(Returns(lambda x: None))
    assert "it returns maps (4, 8, 8); it must return class scores" in error_of(around(nn.Identity())[:2])
    assert "it returns the images that it was given" in error_of(nn.Sequential(nn.Identity()))


def test_a_softmax_at_the_end_is_to_be_removed() -> None:
    message = error_of(nn.Sequential(head(3), nn.Softmax(dim=1)))
    assert "Softmax '1'" in message
    assert "remove it: the loss applies it" in message
    assert "log_softmax()" in error_of(Returns(lambda x: functional.log_softmax(x, dim=1)))


def test_a_network_has_weights() -> None:
    assert "the network has no weights to train" in error_of(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_tensors_are_not_shared_between_modules() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), head(3))
    module[1].weight = module[0].weight
    assert "'1.weight': it is the same tensor as '0.weight'" in error_of(module)


def test_a_module_may_not_bear_the_name_of_the_input() -> None:
    module = nn.Sequential()
    module.add_module("input", nn.Conv2d(3, 4, 1))
    module.add_module("head", head())
    assert "a module is named 'input'" in error_of(module)


def test_a_name_that_the_file_could_not_hold_is_refused() -> None:
    module = nn.Sequential()
    module.add_module("first layer", nn.Conv2d(3, 4, 1))
    module.add_module("head", head())
    assert "Conv2d 'first layer': a plan cannot hold it" in error_of(module)


def test_hooks_are_not_lost_silently() -> None:
    module = around(nn.Identity())
    module[0].register_forward_hook(lambda *_: None)
    assert "Conv2d '0': it has forward hooks" in error_of(module)
    module = around(nn.Identity())
    module.register_forward_pre_hook(lambda *_: None)
    assert "Sequential: it has forward hooks" in error_of(module)


def test_what_is_no_plain_module_is_refused() -> None:
    assert "cannot trace a int: from_torch takes a torch.nn.Module" in error_of(3)
    assert "a bare Linear: put it into an nn.Sequential" in error_of(nn.Linear(3, 3))
    assert "DataParallel: it is a wrapper" in error_of(nn.DataParallel(head(3)))


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (3, 8), (3, 8, 0), (3, 8, 8.0), 8, None])
def test_the_input_shape_is_that_of_one_image(shape: Any) -> None:
    assert "input_shape must be (channels, height, width) of one image" in error_of(head(3), shape)


def test_an_input_shape_that_does_not_fit_the_module_is_named_where_it_hurts() -> None:
    assert "Conv2d '0': it reads 3 channels or features, but is given 1" in error_of(around(nn.Identity()), (1, 8, 8))


def test_an_error_leaves_the_module_as_it_was() -> None:
    module = block(lambda m, x: x + torch.ones(1))
    module.eval()
    attributes = [(part, dict(vars(part))) for part in module.modules()]
    error_of(module)
    assert [(part, dict(vars(part))) for part in module.modules()] == attributes


def test_without_pytorch_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module = head(3)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'distreal-edge[torch]'" in error_of(module)
