"""The plan: what a network computes, as data, with everything that follows from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from distreal_edge.errors import NetworkError
from distreal_edge.network.layout import FilterGroup, Layout, find_layout, is_depthwise
from distreal_edge.network.operations import (
    INPUT,
    BatchNorm,
    Conv2d,
    Linear,
    Operation,
    has_weights,
    output_shape,
)
from distreal_edge.network.parameters import Parameter
from distreal_edge.network.preprocessing import Preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distreal_edge import _native
    from distreal_edge.network.operations import Shape

__all__ = ["MAXIMUM_CHANNELS", "MAXIMUM_ELEMENTS", "MAXIMUM_GROUPS", "MAXIMUM_OPERATIONS", "MAXIMUM_SIDE", "Plan"]

MAXIMUM_OPERATIONS = 4096
MAXIMUM_CHANNELS = 2**20
"""Channels and features of all values together."""
MAXIMUM_ELEMENTS = 2**28
"""Elements of one value for one image, and of all weights together."""
MAXIMUM_GROUPS = 4096
"""Filter groups; a dropout vector has a rate for each."""
MAXIMUM_SIDE = 4096
"""Channels, height and width of the network's input."""


@dataclass(frozen=True)
class Plan:
    """Operations in order, the last of which makes the class scores.

    `input_shape` is `(C, H, W)`. With `rescale`, a layer without a following normalisation multiplies what it reads
    from a group by the inverse of the group's surviving share (inverted dropout). Raises `NetworkError` when the
    operations do not fit together.
    """

    input_shape: Shape
    operations: tuple[Operation, ...]
    rescale: bool
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        """Check that shapes, names and sizes are sound."""
        # What is kept is what a file would give back, so that a number written as 1 or 1.0 makes the same digest.
        fields = _parse_fields(self)
        for name in fields.__struct_fields__:
            object.__setattr__(self, name, getattr(fields, name))
        _check_input(self.input_shape, self.preprocessing)
        _check_names(self.operations)
        if len(self.shapes[self.output]) != 1:
            message = (
                f"the last operation {self.output!r} makes maps {self.shapes[self.output]}; it must make class scores"
            )
            raise NetworkError(message)
        if sum(prod(shape) for shape in self.tensors.values()) > MAXIMUM_ELEMENTS:
            message = f"the network has more than {MAXIMUM_ELEMENTS} weights"
            raise NetworkError(message)
        if not self.parameters:
            message = "the network has no weights to train"
            raise NetworkError(message)
        if len(self.groups) > MAXIMUM_GROUPS:
            message = f"the network has {len(self.groups)} filter groups, more than {MAXIMUM_GROUPS}"
            raise NetworkError(message)

    @property
    def output(self) -> str:
        """The name of the value that holds the class scores."""
        return self.operations[-1].name

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""
        return self.shapes[self.output][0]

    @cached_property
    def shapes(self) -> Mapping[str, Shape]:
        """The shape of every value for one image: `(C, H, W)` or `(F,)`."""
        shapes: dict[str, Shape] = {INPUT: self.input_shape}
        channels = 0
        for operation in self.operations:
            for value in operation.inputs:
                if value not in shapes:
                    message = f"operation {operation.name!r} reads {value!r}, which no earlier operation makes"
                    raise NetworkError(message)
            shape = output_shape(operation, tuple(shapes[value] for value in operation.inputs))
            channels += shape[0]
            if prod(shape) > MAXIMUM_ELEMENTS or channels > MAXIMUM_CHANNELS:
                message = f"operation {operation.name!r} makes {shape}: more than {MAXIMUM_ELEMENTS} elements, or "
                raise NetworkError(message + f"over {MAXIMUM_CHANNELS} channels with those before it")
            shapes[operation.name] = shape
        return MappingProxyType(shapes)

    @cached_property
    def layout(self) -> Layout:
        """The filter groups, and the filter behind every channel of every value."""
        return find_layout(self.operations, self.shapes)

    @property
    def groups(self) -> tuple[FilterGroup, ...]:
        """The filter groups, in the order of the operations that make them."""
        return self.layout.groups

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many filters each group has."""
        return tuple(group.filters for group in self.groups)

    @cached_property
    def group_offsets(self) -> tuple[int, ...]:
        """The number of each group's first filter, and at the end the number of filters."""
        return tuple(accumulate(self.sizes, initial=0))

    @property
    def filters(self) -> int:
        """How many filters can be dropped, all groups together."""
        return self.group_offsets[-1]

    @cached_property
    def tensors(self) -> Mapping[str, Shape]:
        """The shape of every tensor in the network's file, trainable ones and statistics."""
        shapes: dict[str, Shape] = {}
        for operation in self.operations:
            first = self.shapes[operation.inputs[0]]
            match operation:
                case Conv2d():
                    shapes[f"{operation.name}.weight"] = (
                        operation.out_channels,
                        first[0] // operation.groups,
                        *operation.kernel,
                    )
                case Linear():
                    shapes[f"{operation.name}.weight"] = (operation.out_features, first[0])
                case BatchNorm():
                    for tensor in ("weight", "bias", "running_mean", "running_var"):
                        shapes[f"{operation.name}.{tensor}"] = (first[0],)
            if isinstance(operation, (Conv2d, Linear)) and operation.bias:
                shapes[f"{operation.name}.bias"] = (self.shapes[operation.name][0],)
        return MappingProxyType(shapes)

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The trainable tensors, in plan order, with the filters behind their elements."""
        found: dict[str, Parameter] = {}
        for operation in filter(has_weights, self.operations):
            rows = self.layout.of[operation.name]
            read = self.layout.of[operation.inputs[0]]
            groups = operation.groups if isinstance(operation, Conv2d) else 1
            for tensor in ("weight", "bias"):
                name = f"{operation.name}.{tensor}"
                if name in self.tensors:
                    matrix = tensor == "weight" and not isinstance(operation, BatchNorm)
                    columns = read.reshape(groups, -1) if matrix else None
                    found[name] = Parameter(self.tensors[name], rows.reshape(groups, -1), columns)
        return MappingProxyType(found)

    @cached_property
    def statistics(self) -> Mapping[str, Shape]:
        """The shapes of the batch-norm statistics, which are measured and never trained."""
        return MappingProxyType({name: shape for name, shape in self.tensors.items() if name not in self.parameters})

    @cached_property
    def readers(self) -> Mapping[str, tuple[Operation, ...]]:
        """The operations that read each value."""
        found: dict[str, list[Operation]] = {value: [] for value in self.shapes}
        for operation in self.operations:
            for value in dict.fromkeys(operation.inputs):
                found[value].append(operation)
        return MappingProxyType({value: tuple(operations) for value, operations in found.items()})

    @cached_property
    def differentiable(self) -> frozenset[str]:
        """The values that depend on a trainable tensor: those whose gradient a training step must compute."""
        found: set[str] = set()
        for operation in self.operations:
            if has_weights(operation) or any(value in found for value in operation.inputs):
                found.add(operation.name)
        return frozenset(found)

    def rescales(self, operation: Operation) -> bool:
        """Return whether this operation multiplies what it reads by the inverse of the surviving share.

        True, in a network that rescales, for convolutions and linear layers that no normalisation follows. A depthwise
        convolution sums over no filters, so that there is nothing to make up for.
        """
        if not self.rescale or not isinstance(operation, (Conv2d, Linear)):
            return False
        if isinstance(operation, Conv2d) and is_depthwise(operation, self.shapes[operation.inputs[0]][0]):
            return False
        readers = self.readers[operation.name]
        return not readers or not all(isinstance(reader, BatchNorm) for reader in readers)

    @cached_property
    def native(self) -> _native.Plan:
        """The same plan as the compiled engine reads it, made when it is first asked for."""
        from distreal_edge.network.native_plan import lower_plan  # noqa: PLC0415 - it needs the plan's type

        return lower_plan(self)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the plan in its canonical form."""
        return _sha256(self._structure | {"preprocessing": self.preprocessing})

    @cached_property
    def structure(self) -> str:
        """The SHA-256 of the plan without its preprocessing: what a table belongs to.

        How images are normalised and augmented changes neither the filter groups nor what a row costs, so that a table
        found with one preprocessing serves the same network with another.
        """
        return _sha256(self._structure)

    @property
    def _structure(self) -> dict[str, object]:
        return {"input_shape": self.input_shape, "operations": self.operations, "rescale": self.rescale}


def _sha256(document: dict[str, object]) -> str:
    return hashlib.sha256(msgspec.json.encode(document, order="sorted")).hexdigest()


class _Fields(msgspec.Struct, frozen=True):
    input_shape: tuple[int, ...]
    operations: tuple[Operation, ...]
    rescale: bool
    preprocessing: Preprocessing


def _parse_fields(plan: Plan) -> _Fields:
    if not 1 <= len(plan.operations) <= MAXIMUM_OPERATIONS:
        message = f"a plan has 1 to {MAXIMUM_OPERATIONS} operations, got {len(plan.operations)}"
        raise NetworkError(message)
    given = {name: getattr(plan, name) for name in _Fields.__struct_fields__}
    try:  # structs check their fields only when they are parsed
        return msgspec.convert(msgspec.to_builtins(given, enc_hook=_plain_number), type=_Fields)
    except (msgspec.ValidationError, TypeError) as error:
        message = f"the plan is not valid: {error}"
        raise NetworkError(message) from None


def _plain_number(number: object) -> object:
    if isinstance(number, np.generic):
        return number.item()
    message = f"{number!r} is neither a number, a text nor an operation"
    raise TypeError(message)


def _check_input(shape: Shape, preprocessing: Preprocessing) -> None:
    if len(shape) != 3 or not all(1 <= side <= MAXIMUM_SIDE for side in shape):
        message = f"the input shape must be (channels, height, width), each 1..{MAXIMUM_SIDE}; got {shape}"
        raise NetworkError(message)
    if prod(shape) > MAXIMUM_ELEMENTS:
        message = f"the input {shape} has more than {MAXIMUM_ELEMENTS} elements"
        raise NetworkError(message)
    for what, numbers in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(numbers) not in {0, shape[0]}:
            message = f"preprocessing.{what} has {len(numbers)} numbers for {shape[0]} input channels"
            raise NetworkError(message)


def _check_names(operations: tuple[Operation, ...]) -> None:
    seen = {INPUT}
    for operation in operations:
        if operation.name in seen:
            message = f"two values are named {operation.name!r}; names must be unique"
            raise NetworkError(message)
        seen.add(operation.name)
