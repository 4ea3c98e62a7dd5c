"""Build a plan operation by operation, naming what has no weights as the file format does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from distreal_edge.errors import NetworkError
from distreal_edge.network.operations import (
    INPUT,
    Add,
    AvgPool,
    BatchNorm,
    Concat,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Hardswish,
    Linear,
    MaxPool,
    Multiply,
    Relu,
    Relu6,
    Sigmoid,
)
from distreal_edge.network.plan import Plan
from distreal_edge.network.preprocessing import Preprocessing

if TYPE_CHECKING:
    from distreal_edge.network.operations import Operation, Shape

__all__ = ["PlanBuilder"]

Extent = int | tuple[int, int]


def _pair(extent: Extent) -> tuple[int, int]:
    return (extent, extent) if isinstance(extent, int) else extent


class PlanBuilder:
    """Collect operations; every method adds one and returns the name of the value that it makes.

    Convolutions, batch norms and linear layers are named by the caller, after the module's path in PyTorch. The others
    are named by kind and number: `relu#0`, `add#1`.
    """

    input = INPUT

    def __init__(self, input_shape: Shape) -> None:
        """Start a plan for images of shape `(C, H, W)`."""
        self._input_shape = input_shape
        self._operations: list[Operation] = []
        self._numbers: Counter[str] = Counter()

    def conv2d(
        self,
        name: str,
        value: str,
        out_channels: int,
        *,
        kernel: Extent,
        stride: Extent = 1,
        padding: Extent = 0,
        dilation: Extent = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> str:
        """Add a convolution."""
        return self._append(
            Conv2d(
                name=name,
                inputs=(value,),
                out_channels=out_channels,
                kernel=_pair(kernel),
                stride=_pair(stride),
                padding=_pair(padding),
                dilation=_pair(dilation),
                groups=groups,
                bias=bias,
            )
        )

    def batch_norm(self, name: str, value: str, *, epsilon: float = 1e-5, momentum: float = 0.1) -> str:
        """Add a batch norm."""
        return self._append(BatchNorm(name=name, inputs=(value,), epsilon=epsilon, momentum=momentum))

    def linear(self, name: str, value: str, out_features: int, *, bias: bool = True) -> str:
        """Add a linear layer."""
        return self._append(Linear(name=name, inputs=(value,), out_features=out_features, bias=bias))

    def relu(self, value: str) -> str:
        """Add a ReLU."""
        return self._numbered(Relu, value)

    def relu6(self, value: str) -> str:
        """Add a ReLU that is capped at 6."""
        return self._numbered(Relu6, value)

    def hardswish(self, value: str) -> str:
        """Add a hardswish."""
        return self._numbered(Hardswish, value)

    def sigmoid(self, value: str) -> str:
        """Add a sigmoid."""
        return self._numbered(Sigmoid, value)

    def max_pool(self, value: str, *, kernel: Extent, stride: Extent | None = None, padding: Extent = 0) -> str:
        """Add a max-pool; the stride is the kernel unless given."""
        sides = _pair(kernel)
        return self._numbered(
            MaxPool, value, kernel=sides, stride=sides if stride is None else _pair(stride), padding=_pair(padding)
        )

    def avg_pool(
        self,
        value: str,
        *,
        kernel: Extent,
        stride: Extent | None = None,
        padding: Extent = 0,
        count_include_pad: bool = True,
    ) -> str:
        """Add an average-pool; the stride is the kernel unless given."""
        sides = _pair(kernel)
        return self._numbered(
            AvgPool,
            value,
            kernel=sides,
            stride=sides if stride is None else _pair(stride),
            padding=_pair(padding),
            count_include_pad=count_include_pad,
        )

    def global_avg_pool(self, value: str) -> str:
        """Add a mean over height and width."""
        return self._numbered(GlobalAvgPool, value)

    def add(self, left: str, right: str) -> str:
        """Add an addition."""
        return self._numbered(Add, left, right)

    def multiply(self, left: str, right: str) -> str:
        """Add a product, such as a squeeze-excite's."""
        return self._numbered(Multiply, left, right)

    def concat(self, *values: str) -> str:
        """Add a concatenation along the channels."""
        return self._numbered(Concat, *values)

    def flatten(self, value: str) -> str:
        """Add a flatten."""
        return self._numbered(Flatten, value)

    def dropout(self, value: str, p: float) -> str:
        """Add element-wise dropout."""
        return self._numbered(Dropout, value, p=p)

    def finish(self, output: str, *, rescale: bool | None = None, preprocessing: Preprocessing | None = None) -> Plan:
        """Return the checked plan, whose class scores are `output`, the value that was added last.

        `rescale` None means: on exactly when the network has no batch norm.
        """
        if not self._operations or output != self._operations[-1].name:
            message = f"the class scores {output!r} must be the value that was added last"
            raise NetworkError(message)
        if rescale is None:
            rescale = not any(isinstance(operation, BatchNorm) for operation in self._operations)
        return Plan(self._input_shape, tuple(self._operations), rescale, preprocessing or Preprocessing())

    def _numbered(self, make: Any, *values: str, **settings: Any) -> str:
        kind = make.__struct_config__.tag
        name = f"{kind}#{self._numbers[kind]}"
        self._numbers[kind] += 1
        return self._append(make(name=name, inputs=values, **settings))

    def _append(self, operation: Operation) -> str:
        self._operations.append(operation)
        return operation.name
