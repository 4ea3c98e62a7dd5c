"""Plain PyTorch to hold the engine against: a plan as a module of modules, and executors in float64."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distreal_edge import Network, Plan, PlanBuilder, Subset
from distreal_edge.engine import BACKENDS
from distreal_edge.network.operations import OPERATION_TYPES, Operation
from distreal_edge.network.reference import ReferenceExecutor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# Layers by the operation's class name: `nn` knows everything else about them.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "Conv2d": lambda o, c: nn.Conv2d(
        c, o.out_channels, o.kernel, o.stride, o.padding, o.dilation, o.groups, bias=o.bias
    ),
    "Linear": lambda o, c: nn.Linear(c, o.out_features, bias=o.bias),
    "Relu": lambda o, c: nn.ReLU(),
    "Relu6": lambda o, c: nn.ReLU6(),
    "Hardswish": lambda o, c: nn.Hardswish(),
    "Sigmoid": lambda o, c: nn.Sigmoid(),
    "MaxPool": lambda o, c: nn.MaxPool2d(o.kernel, o.stride, o.padding),
    "AvgPool": lambda o, c: nn.AvgPool2d(o.kernel, o.stride, o.padding, count_include_pad=o.count_include_pad),
    "GlobalAvgPool": lambda o, c: nn.AdaptiveAvgPool2d(1),
    "Flatten": lambda o, c: nn.Flatten(),
    "Dropout": lambda o, c: nn.Dropout(o.p),
}


class PlanModule(nn.Module):
    """A full-width network of PyTorch's own layers, which keep their own weights, statistics and modes."""

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.operations = network.plan.operations
        self.layers = nn.ModuleDict()
        for operation in self.operations:
            shape = network.plan.shapes[operation.inputs[0]]
            kind = type(operation).__name__
            if kind == "BatchNorm":
                norm = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
                layer: nn.Module = norm(shape[0], operation.epsilon, operation.momentum)
            elif kind in LAYERS:
                layer = LAYERS[kind](operation, shape[0])
            else:
                continue
            self.layers[_key(operation.name)] = layer
        self.to(dtype)
        with torch.no_grad():
            for name, array in network.weights.items():
                self.tensor(name).copy_(torch.from_numpy(array))

    def tensor(self, name: str) -> Tensor:
        """Return the parameter or statistic of this name in the network's file."""
        operation, _, which = name.rpartition(".")
        found = getattr(self.layers[_key(operation)], which)
        assert isinstance(found, Tensor)
        return found

    def forward(self, images: Tensor) -> Tensor:
        values = {"input": images}
        for operation in self.operations:
            read = [values[value] for value in operation.inputs]
            values[operation.name] = self._made(operation, read)
        return values[self.operations[-1].name]

    def _made(self, operation: Operation, read: list[Tensor]) -> Tensor:
        match type(operation).__name__:
            case "Add":
                return torch.add(*read)
            case "Multiply":
                return torch.mul(*read)
            case "Concat":
                return torch.concat(read, 1)
        made: Tensor = self.layers[_key(operation.name)](read[0])
        return made


def _beside(name: str) -> ModuleType:
    """Return a module that lies beside this file; test folders are no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _key(name: str) -> str:
    return name.replace(".", "/")  # a module's name must not contain dots


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute with one thread: the tensors are tiny, and the number is the process's."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Name each backend in turn: what is asked of one is asked of all."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def plan_module() -> Callable[..., PlanModule]:
    """Make a `PlanModule` of a network, float64 unless told."""
    return lambda network, dtype=torch.float64: PlanModule(network, dtype)


@pytest.fixture(scope="session")
def executor64() -> Callable[[Network], ReferenceExecutor]:
    """Make the reference executor of a network in float64; its weights are copies."""
    return lambda network: ReferenceExecutor(network.plan, network.weights, torch.float64)


@pytest.fixture(scope="session")
def random_networks() -> Any:
    """Return the module that makes random networks, subsets and batches."""
    return _beside("random_networks")


@pytest.fixture(scope="session")
def comparing() -> Any:
    """Return the module that does one step with several engines."""
    return _beside("comparing")


@pytest.fixture(scope="session")
def shuffled(random_networks: Any) -> Callable[[Plan, int], Network]:
    """Make a network of a plan whose every tensor is random, batch norms and statistics too."""
    made: Callable[[Plan, int], Network] = random_networks.random_weights
    return made


@pytest.fixture(scope="session")
def every_operation() -> Plan:
    """Return a small plan with each kind of operation at least once, on images of 2x9x8."""
    b = PlanBuilder((2, 9, 8))
    stem = b.relu(b.batch_norm("stem.bn", b.conv2d("stem", b.input, 6, kernel=3, stride=(2, 1), padding=1, bias=False)))
    deep = b.relu6(b.batch_norm("deep.bn", b.conv2d("deep", stem, 6, kernel=3, padding=1, groups=6)))
    squeezed = b.hardswish(b.conv2d("squeeze", b.global_avg_pool(deep), 3, kernel=1))
    excited = b.sigmoid(b.conv2d("excite", squeezed, 6, kernel=1))
    stream = b.add(stem, b.multiply(deep, excited))
    grouped = b.conv2d("grouped", stream, 8, kernel=(3, 1), padding=(2, 0), dilation=(2, 1), groups=2)
    joined = b.concat(stream, grouped, stem)
    pooled = b.avg_pool(b.max_pool(joined, kernel=3, stride=2, padding=1), kernel=2, padding=1, count_include_pad=False)
    hidden = b.linear("hidden", b.dropout(b.flatten(pooled), 0.25), 7)
    hidden = b.batch_norm("hidden.bn", hidden, epsilon=1e-3)
    plan = b.finish(b.linear("head", b.relu(hidden), 4, bias=False), rescale=True)
    assert {type(operation) for operation in plan.operations} == set(OPERATION_TYPES)
    return plan


@pytest.fixture(scope="session")
def draw_batch() -> Callable[..., tuple[Any, Any]]:
    """Draw float32 images and int64 labels that suit a plan."""

    def draw(plan: Plan, count: int, seed: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        images = rng.random((count, *plan.input_shape), dtype=np.float32)
        return images, rng.integers(0, plan.classes, count)

    return draw


@pytest.fixture(scope="session")
def draw_subset() -> Callable[[Plan, np.random.Generator], Subset]:
    """Draw any number of survivors of each group, at least one, uniformly."""

    def draw(plan: Plan, rng: np.random.Generator) -> Subset:
        return Subset(
            tuple(np.sort(rng.permutation(size)[: rng.integers(1, size, endpoint=True)]) for size in plan.sizes)
        )

    return draw
