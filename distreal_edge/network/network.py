"""A network: a plan and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distreal_edge.dropout import Subset, draw_subset, filter_counts
from distreal_edge.errors import NetworkError
from distreal_edge.network.cost import Cost, step_cost
from distreal_edge.network.file import MAXIMUM_FILE_BYTES, check_weights, decode_network, encode_network
from distreal_edge.network.initialise import initial_weights
from distreal_edge.network.narrowing import cut_out
from distreal_edge.network.native_plan import MAXIMUM_BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from distreal_edge.network.layout import FilterGroup
    from distreal_edge.network.operations import Shape
    from distreal_edge.network.plan import Plan
    from distreal_edge.network.preprocessing import Preprocessing

__all__ = ["Network"]


class Network:
    """What is trained, as data: a plan and its weights.

    `weights` maps PyTorch's tensor names to float32 arrays, trainable tensors and batch-norm statistics alike.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Put a plan and its weights together; raise `NetworkError` when they do not fit."""
        check_weights(plan, weights)
        self.plan = plan
        self.weights: dict[str, NDArray[np.float32]] = {name: weights[name] for name in plan.tensors}

    @staticmethod
    def initialise(plan: Plan, seed: int = 0) -> Network:
        """Return a network with fresh weights, drawn as PyTorch's layers draw theirs."""
        return Network(plan, initial_weights(plan, seed))

    @staticmethod
    def from_torch(
        module: Any,  # torch.nn.Module, which a device does not have
        input_shape: Shape,
        *,
        rescale: bool | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> Network:
        """Trace a `torch.nn.Module` into a network, weights included.

        `input_shape` is `(C, H, W)`. `rescale` None means: on exactly when the module has no batch norm. Raises
        `NetworkError` that names the operation, and its place in the module, for what cannot be expressed. Needs torch.
        """
        from distreal_edge.network.tracing import trace  # noqa: PLC0415 - torch is not on a device

        return Network(*trace(module, input_shape, rescale=rescale, preprocessing=preprocessing))

    def to_state_dict(self) -> dict[str, Any]:
        """Return the weights as tensors for the module's `load_state_dict`. Needs torch."""
        from distreal_edge.network.tracing import state_dict  # noqa: PLC0415 - torch is not on a device

        tensors: dict[str, Any] = state_dict(self.plan, self.weights)
        return tensors

    @staticmethod
    def load(path: str | Path) -> Network:
        """Read a network's file; raise `NetworkError` that says what is wrong with it."""
        file = Path(path)
        try:
            if file.stat().st_size > MAXIMUM_FILE_BYTES:
                message = f"{path}: more than the {MAXIMUM_FILE_BYTES} bytes that a network file may have"
                raise NetworkError(message)
            data = file.read_bytes()
        except OSError as error:
            message = f"{path}: cannot read the network: {error.strerror}"
            raise NetworkError(message) from None
        return Network.from_bytes(data, str(path))

    @staticmethod
    def from_bytes(data: bytes, where: str = "network") -> Network:
        """Read a network from the bytes of its file; errors name `where`."""
        return Network(*decode_network(data, where))

    def to_bytes(self) -> bytes:
        """Return the bytes of the network's file."""
        return encode_network(self.plan, self.weights)

    def save(self, path: str | Path) -> None:
        """Write the network's file; raise `NetworkError` when that cannot be done."""
        try:
            Path(path).write_bytes(self.to_bytes())
        except OSError as error:
            raise NetworkError(f"{path}: cannot write the network: {error.strerror}") from None

    @property
    def digest(self) -> str:
        """The SHA-256 of the plan, whatever the weights."""
        return self.plan.digest

    @property
    def structure(self) -> str:
        """The SHA-256 of the plan without its preprocessing: what a table belongs to."""
        return self.plan.structure

    @property
    def groups(self) -> tuple[FilterGroup, ...]:
        """The filter groups, in plan order."""
        return self.plan.groups

    def draw(
        self,
        vector: Sequence[float],
        rng: np.random.Generator,
        policy: str = "ordered",
        round_number: int = 0,
    ) -> Subset:
        """Draw the survivors of one mini-batch at the rates of a dropout vector.

        `policy` is one of `distreal_edge.dropout.DRAW_POLICIES`; `round_number` matters to `rolling` only.
        """
        sizes = self.plan.sizes
        return draw_subset(sizes, filter_counts(vector, sizes), rng, policy, round_number)

    def narrowed(self, vector: Sequence[float]) -> Network:
        """Return the smaller network that the ordered draw of a dropout vector trains, as a network of its own.

        It makes the same scores as the full network with the dropped filters left out. Raises `NetworkError` for
        grouped convolutions that are not depthwise.
        """
        sizes = self.plan.sizes
        kept = draw_subset(sizes, filter_counts(vector, sizes), np.random.default_rng(0), "ordered").mask(sizes)
        return Network(*cut_out(self.plan, self.weights, kept))

    def cost(self, dropped: Sequence[float] | Subset, batch: int = 32) -> Cost:
        """Count what a training step costs, for a dropout vector or for the very subset.

        The two differ only in networks with grouped (not depthwise) convolutions, where the MACs depend on which
        filters survive; there a vector is counted with its ordered draw.
        """
        sizes = self.plan.sizes
        if not isinstance(dropped, Subset):
            dropped = draw_subset(sizes, filter_counts(dropped, sizes), np.random.default_rng(0), "ordered")
        if batch < 1:
            message = f"a batch has at least one image, got {batch}"
            raise NetworkError(message)
        if batch > MAXIMUM_BATCH:
            message = f"a batch has at most {MAXIMUM_BATCH} images, got {batch}"
            raise NetworkError(message)
        return step_cost(self.plan, dropped.mask(sizes), batch)
