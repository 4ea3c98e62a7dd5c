"""What tracing passes around: values, drafts of operations, and the recorder that collects them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from distreal_edge.errors import NetworkError
from distreal_edge.network.operations import INPUT, output_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from distreal_edge.network.operations import Operation, Shape

__all__ = ["BATCH", "Batch", "Draft", "Recorder", "Refusal", "Value"]


class Batch:
    """The batch size, which forward may pass on but not compute with."""

    def __repr__(self) -> str:
        return "the batch size"


BATCH = Batch()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in forward: the draft that makes it, its shape for one image, and the memory it lies in.

    Values with the same `memory` change together when forward writes in place.
    """

    name: str
    shape: Shape
    memory: int

    @property
    def axes(self) -> int:
        """How many axes the tensor has, the batch included."""
        return 1 + len(self.shape)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What forward has where a plan can hold nothing; an error only if the class scores depend on it."""

    message: str


@dataclass(frozen=True, slots=True)
class Draft:
    """An operation whose values still bear provisional names.

    `label` is the path of its module if it has weights, else its kind; `tensors` are the module's own, by name;
    `place` says where in the author's code it was called.
    """

    operation: Operation
    label: str
    tensors: Mapping[str, Any]
    place: str = ""


@dataclass(slots=True)
class Recorder:
    """Collect drafts in the order of forward; `place` says where the call being read stands."""

    input_shape: Shape
    drafts: list[Draft] = field(default_factory=list)
    place: str = ""
    _memory: Iterable[int] = field(default_factory=lambda: count(1))

    @property
    def input(self) -> Value:
        """The value that stands for the images."""
        return Value(INPUT, self.input_shape, 0)

    def add(
        self,
        make: Any,
        *values: Value,
        label: str | None = None,
        tensors: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Value:
        """Add an operation of the class `make` and return its value; raise `NetworkError` when it cannot be.

        `label` and `tensors` are given for an operation with weights.
        """
        label = label or make.__struct_config__.tag
        draft = make(name=label, inputs=tuple(value.name for value in values), **settings)
        try:  # structs check their fields only when they are parsed
            operation: Operation = msgspec.convert(msgspec.to_builtins(draft), type=make)
        except msgspec.ValidationError as error:
            raise NetworkError(f"a plan cannot hold it: {error}") from None
        shape = output_shape(operation, tuple(value.shape for value in values))
        name = str(len(self.drafts))
        operation = msgspec.structs.replace(operation, name=name)
        self.drafts.append(Draft(operation, label, tensors or {}, self.place))
        return Value(name, shape, self.fresh_memory())

    def copy(self, value: Value) -> Value:
        """Return the same value in memory of its own."""
        return replace(value, memory=self.fresh_memory())

    def fresh_memory(self) -> int:
        """Return the number of memory that no value lies in yet."""
        return next(iter(self._memory))

    def live(self, output: Value) -> list[Draft]:
        """Return the drafts that a value depends on, in order."""
        wanted = {output.name}
        kept: list[Draft] = []
        for draft in reversed(self.drafts):
            if draft.operation.name in wanted:
                wanted.update(draft.operation.inputs)
                kept.append(draft)
        return kept[::-1]
