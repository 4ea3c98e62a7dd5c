from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

def version() -> str: ...
def cpu_features() -> dict[str, bool]: ...
def instruction_sets() -> tuple[str, ...]: ...
def instruction_set() -> str: ...

class CancelledError(Exception): ...

class Cancellation:
    def __init__(self) -> None: ...
    def cancel(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...

class Operation:
    kind: str
    def __init__(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: tuple[int, int, int],
        *,
        kernel: tuple[int, int] = (1, 1),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        bias: bool = False,
        epsilon: float = 0.0,
        count_include_pad: bool = True,
        p: float = 0.0,
        rescales: bool = False,
    ) -> None: ...

class Plan:
    def __init__(
        self,
        input_shape: tuple[int, int, int],
        operations: Sequence[Operation],
        filters: Sequence[NDArray[np.int32]],
        group_sizes: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int,
    ) -> None: ...
    def step_bytes(self, kept: NDArray[np.bool_], batch: int) -> int: ...

Tensors: TypeAlias = Sequence[tuple[NDArray[np.float32], ...]]

class Engine:
    def __init__(self, plan: Plan, weights: Tensors, momentum: Tensors, instruction_set: str = "") -> None: ...
    @property
    def instruction_set(self) -> str: ...
    @property
    def arena_bytes(self) -> int: ...
    def step(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        labels: NDArray[np.int64],
        kept: NDArray[np.bool_],
        *,
        corners: NDArray[np.int32] | None,
        flips: NDArray[np.bool_] | None,
        draws: Sequence[NDArray[np.float32]],
        lr: float,
        momentum: float,
        weight_decay: float,
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> float: ...
    def predict(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        scores: NDArray[np.float32],
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> None: ...
    def batch_moments(
        self,
        images: NDArray[np.uint8] | NDArray[np.float32],
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]: ...

Tensors64: TypeAlias = Sequence[tuple[NDArray[np.float64], ...]]

class PlainEngine64:
    def __init__(self, plan: Plan, weights: Tensors64, momentum: Tensors64) -> None: ...
    def step(
        self,
        images: NDArray[np.float64],
        labels: NDArray[np.int64],
        kept: NDArray[np.bool_],
        *,
        corners: NDArray[np.int32] | None,
        flips: NDArray[np.bool_] | None,
        draws: Sequence[NDArray[np.float32]],
        lr: float,
        momentum: float,
        weight_decay: float,
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> float: ...
    def predict(
        self,
        images: NDArray[np.float64],
        scores: NDArray[np.float64],
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> None: ...
    def batch_moments(
        self,
        images: NDArray[np.float64],
        threads: int,
        cancellation: Cancellation | None = None,
    ) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]: ...

def measure_peak(instruction_set: str, seconds: float) -> float: ...
def time_convolution(
    direction: str,
    n: int,
    in_channels: int,
    out_channels: int,
    kept_in: int,
    kept_out: int,
    height: int,
    width: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    repeats: int,
    threads: int = 1,
    instruction_set: str = "",
) -> list[float]: ...
