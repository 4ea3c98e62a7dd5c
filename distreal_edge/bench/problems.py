"""Problem strings: what to time, in one grammar for tests, the command line and the benchmarks.

`n32 c16>16 k3 s1 32x32 keep.5` is a convolution, `resnet20 n32 keep.5` a whole training step of a network of the zoo.
`docs/bench.md` explains every token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, TypeAlias

from distreal_edge.errors import ConfigError
from distreal_edge.zoo import NETWORKS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DIRECTIONS", "Convolution", "Problem", "Step", "kept_channels", "parse_problem", "taps_inside"]

DIRECTIONS: Final = ("forward", "backward_data", "backward_weights")
_MOST: Final = 4096
"""Images, channels and sides."""
_MOST_EXTENT: Final = 256
"""Kernels, strides, paddings and dilations."""
_MOST_ELEMENTS: Final = 2**27
"""Of one value for all images, and of the weights."""

Pair: TypeAlias = tuple[int, int]


def kept_channels(keep: float, channels: int) -> int:
    """Return how many of `channels` survive when the share `keep` does: `max(1, round(keep * channels))`."""
    return max(1, round(keep * channels))


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of which the first channels survive, the share `keep` of its inputs and of its outputs.

    Pairs are (vertical, horizontal). `groups` equal to `in_channels`, and over 1, is depthwise.
    """

    images: int
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    sides: Pair
    keep: float

    @property
    def depthwise(self) -> bool:
        """Whether every output reads a single input."""
        return self.groups == self.in_channels > 1

    @property
    def kept_in(self) -> int:
        """The surviving inputs."""
        return kept_channels(self.keep, self.in_channels)

    @property
    def kept_out(self) -> int:
        """The surviving outputs: of a depthwise convolution, those of the inputs that survive."""
        if self.depthwise:
            return self.kept_in * (self.out_channels // self.in_channels)
        return kept_channels(self.keep, self.out_channels)

    @property
    def out_sides(self) -> Pair:
        """Height and width of what it makes."""
        return self._along(0), self._along(1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one direction for all images; windows over padding count in full, as in `Cost`."""
        return self._pairs() * prod(self.kernel) * prod(self.out_sides) * self.images

    @property
    def macs_inside(self) -> int:
        """As `macs`, without those on padding: what kernels really compute, and what a peak can be compared with."""
        taps = [taps_inside(*axis) for axis in zip(self.sides, self.out_sides, *self._window(), strict=True)]
        return self._pairs() * prod(taps) * self.images

    def __str__(self) -> str:
        tokens = [f"n{self.images}", f"c{self.in_channels}>{self.out_channels}", f"k{_spelled(self.kernel)}"]
        tokens.append(f"s{_spelled(self.stride)}")
        if self.padding != _same_padding(self.kernel, self.dilation):
            tokens.append(f"p{_spelled(self.padding)}")
        if self.dilation != (1, 1):
            tokens.append(f"d{_spelled(self.dilation)}")
        if self.groups > 1:
            tokens.append("gD" if self.depthwise else f"g{self.groups}")
        tokens.append("{}x{}".format(*self.sides))
        return " ".join([*tokens, _spelled_keep(self.keep)])

    def _window(self) -> tuple[Pair, Pair, Pair, Pair]:
        return self.kernel, self.stride, self.padding, self.dilation

    def _along(self, axis: int) -> int:
        room = self.sides[axis] + 2 * self.padding[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        return room // self.stride[axis] + 1

    def _pairs(self) -> int:
        # Pairs of a surviving input and a surviving output in the same conv-group.
        if self.depthwise:
            return self.kept_out
        inputs, outputs = self.in_channels // self.groups, self.out_channels // self.groups
        return sum(
            min(max(self.kept_in - group * inputs, 0), inputs) * min(max(self.kept_out - group * outputs, 0), outputs)
            for group in range(self.groups)
        )


@dataclass(frozen=True, slots=True)
class Step:
    """A whole training step of a network of the zoo, every filter group of which keeps the share `keep`.

    `input_shape` is `(C, H, W)`, None for the network's usual one.
    """

    network: str
    images: int
    keep: float
    input_shape: tuple[int, int, int] | None

    def __str__(self) -> str:
        shape = [] if self.input_shape is None else ["{}x{}x{}".format(*self.input_shape)]
        return " ".join([self.network, f"n{self.images}", *shape, _spelled_keep(self.keep)])


Problem: TypeAlias = Convolution | Step


def taps_inside(side: int, out_side: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return, along one axis, how many taps of all windows together do not fall on padding."""
    firsts = [out * stride - padding for out in range(out_side)]
    return sum(0 <= first + tap * dilation < side for first in firsts for tap in range(kernel))


def parse_problem(text: str) -> Problem:
    """Read a problem string; raise `ConfigError` that names the token that is wrong and what is allowed."""
    tokens = text.split()
    if not tokens:
        raise ConfigError(f"a problem is empty; write one like {_EXAMPLES}")
    if _kind_of(tokens[0], _CONVOLUTION) is not None:
        return _parse_convolution(text, tokens)
    if tokens[0] not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise _fault(text, f"{tokens[0]!r} is neither a network ({known}) nor one of {_forms(_CONVOLUTION)}")
    return _parse_step(text, tokens)


_EXAMPLES: Final = "'n32 c16>16 k3 s1 32x32 keep.5' or 'resnet20 n32 keep.5'"
_NUMBER: Final = r"(\d{1,6})"
_ONE_OR_TWO: Final = rf"{_NUMBER}(?:x{_NUMBER})?"
_KEEP: Final = r"keep(\d{0,6}\.?\d{0,9})"

# By what a token says: how it looks, and an example for messages.
_CONVOLUTION: Final[Mapping[str, tuple[str, str]]] = {
    "images": (rf"n{_NUMBER}", "n32"),
    "channels": (rf"c{_NUMBER}>{_NUMBER}", "c16>32"),
    "kernel": (rf"k{_ONE_OR_TWO}", "k3 or k3x5"),
    "stride": (rf"s{_ONE_OR_TWO}", "s2"),
    "padding": (rf"p{_ONE_OR_TWO}", "p1"),
    "dilation": (rf"d{_ONE_OR_TWO}", "d2"),
    "groups": (r"g(\d{1,6}|D)", "g4 or gD"),
    "sides": (rf"{_NUMBER}x{_NUMBER}", "32x32"),
    "keep": (_KEEP, "keep.5"),
}
_STEP: Final[Mapping[str, tuple[str, str]]] = {
    "images": (rf"n{_NUMBER}", "n32"),
    "input shape": (rf"{_NUMBER}x{_NUMBER}x{_NUMBER}", "3x32x32"),
    "keep": (_KEEP, "keep.5"),
}


def _parse_convolution(text: str, tokens: list[str]) -> Convolution:
    given = _sort_out(text, tokens, _CONVOLUTION)
    for needed in ("channels", "sides"):
        if needed not in given:
            raise _fault(text, f"the {needed} are missing; add {_CONVOLUTION[needed][1]}, and quote every problem")
    in_channels, out_channels = (_bounded(text, "channels", number) for number in given["channels"])
    kernel = _pair(text, "kernel", given.get("kernel", ("3", None)), 1)
    dilation = _pair(text, "dilation", given.get("dilation", ("1", None)), 1)
    groups = given.get("groups", ("1",))[0]
    convolution = Convolution(
        images=_images(text, given),
        in_channels=in_channels,
        out_channels=out_channels,
        kernel=kernel,
        stride=_pair(text, "stride", given.get("stride", ("1", None)), 1),
        padding=_pair(text, "padding", given["padding"], 0) if "padding" in given else _same_padding(kernel, dilation),
        dilation=dilation,
        groups=in_channels if groups == "D" else _bounded(text, "groups", groups),
        sides=(_bounded(text, "sides", given["sides"][0]), _bounded(text, "sides", given["sides"][1])),
        keep=_keep(text, given),
    )
    if in_channels % convolution.groups or out_channels % convolution.groups:
        fault = f"{convolution.groups} groups do not divide {in_channels} inputs and {out_channels} outputs"
        raise _fault(text, fault)
    if min(convolution.out_sides) < 1:
        raise _fault(text, "the window is larger than the padded maps")
    largest = max(in_channels * prod(convolution.sides), out_channels * prod(convolution.out_sides))
    weights = in_channels // convolution.groups * out_channels * prod(kernel)
    if max(largest * (convolution.images + 16), in_channels * out_channels * prod(kernel), weights) > _MOST_ELEMENTS:
        raise _fault(text, f"the maps of all images, or the weights, have more than {_MOST_ELEMENTS} elements")
    return convolution


def _parse_step(text: str, tokens: list[str]) -> Step:
    given = _sort_out(text, tokens[1:], _STEP)
    shape: tuple[int, int, int] | None = None
    if "input shape" in given:
        channels, height, width = (_bounded(text, "input shape", number) for number in given["input shape"])
        if height != width:
            raise _fault(text, f"the networks of the zoo take square images, not {height}x{width}")
        shape = (channels, height, width)
    return Step(tokens[0], _images(text, given), _keep(text, given), shape)


Given: TypeAlias = "dict[str, tuple[str | None, ...]]"


def _sort_out(text: str, tokens: list[str], forms: Mapping[str, tuple[str, str]]) -> Given:
    given: Given = {}
    for token in tokens:
        kind = _kind_of(token, forms)
        if kind is None:
            raise _fault(text, f"{token!r} is none of {_forms(forms)}")
        if kind in given:
            raise _fault(text, f"{token!r} says the {kind} a second time; give it once, and quote every problem")
        match = re.fullmatch(forms[kind][0], token, re.ASCII)
        assert match is not None
        given[kind] = match.groups()
    return given


def _kind_of(token: str, forms: Mapping[str, tuple[str, str]]) -> str | None:
    return next((kind for kind, (form, _) in forms.items() if re.fullmatch(form, token, re.ASCII)), None)


def _forms(forms: Mapping[str, tuple[str, str]]) -> str:
    return ", ".join(example for _, example in forms.values())


def _images(text: str, given: Given) -> int:
    return _bounded(text, "images", given.get("images", ("32",))[0])


def _keep(text: str, given: Given) -> float:
    share = given.get("keep", ("1",))[0]
    try:
        keep = float(share or "")
    except ValueError:
        keep = 0.0
    if not 0.0 < keep <= 1.0:
        raise _fault(text, f"'keep{share}' is no share over 0 and up to 1; write keep.5 or keep1")
    return keep


def _pair(text: str, kind: str, numbers: tuple[str | None, ...], least: int) -> Pair:
    vertical, horizontal = numbers
    first = _bounded(text, kind, vertical, least, _MOST_EXTENT)
    return first, first if horizontal is None else _bounded(text, kind, horizontal, least, _MOST_EXTENT)


def _bounded(text: str, kind: str, number: str | None, least: int = 1, most: int = _MOST) -> int:
    value = int(number or 0)
    if not least <= value <= most:
        raise _fault(text, f"{kind}: {value} is not within {least}..{most}")
    return value


def _same_padding(kernel: Pair, dilation: Pair) -> Pair:
    return kernel[0] // 2 * dilation[0], kernel[1] // 2 * dilation[1]


def _spelled(pair: Pair) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _spelled_keep(keep: float) -> str:
    return "keep" + f"{keep:.9f}".strip("0").removesuffix(".")


def _fault(text: str, complaint: str) -> ConfigError:
    return ConfigError(f"problem {text!r}: {complaint}")
