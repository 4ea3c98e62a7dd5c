"""Flower's side of flower.py: FedAvg on PyTorch, as an author would write it. Runs where flwr is, without this project.

    python flower_theirs.py FOLDER             # run the plan in the folder in Flower's simulation
    python flower_theirs.py FOLDER --layouts   # print what the two memory layouts take, and how far rounding parts them

What an author has to choose is what was found fastest: mini-batches are cut from one tensor instead of being collected
image by image, the optimiser is the fused one, batch norms keep no running statistics while they train, and no more
than parameters goes to and fro.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CALIBRATION_BATCH = 64
TURNS = 15
MINI_BATCHES = 4


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, track_running_stats=False)
        self.downsample: nn.Module = nn.Identity()
        if stride == 2:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs, track_running_stats=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return `[N, outputs, H, W]`, half as high and wide where the width changes."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)).add_(self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """ResNet-8 or ResNet-20 (1 or 3 blocks a stage), its tensors named as torchvision names them."""

    def __init__(self, blocks: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16, track_running_stats=False)
        self.layer1 = nn.Sequential(*[Block(16, 16) for _ in range(blocks)])
        self.layer2 = nn.Sequential(Block(16, 32), *[Block(32, 32) for _ in range(blocks - 1)])
        self.layer3 = nn.Sequential(Block(32, 64), *[Block(64, 64) for _ in range(blocks - 1)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `[N, 10]` of images `[N, C, H, W]`."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def layout(plan: dict[str, Any]) -> torch.memory_format:
    """Return the memory layout of images and weights."""
    return torch.channels_last if plan.get("channels_last") else torch.contiguous_format


def make_model(plan: dict[str, Any], weights: dict[str, Tensor]) -> ResNet:
    """Return the network with these weights."""
    model = ResNet(plan["blocks"], plan["channels"])
    model.load_state_dict(weights)
    return model.to(memory_format=layout(plan))


def normalised(plan: dict[str, Any], images: np.ndarray) -> Tensor:
    """Return uint8 images as the network takes them."""
    mean, std = (torch.tensor(plan[key])[:, None, None] for key in ("mean", "std"))
    return torch.from_numpy(images).float().div_(255.0).sub_(mean).div_(std)


def batches(count: int, batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield the indices of mini-batches without end; what an epoch leaves over opens the next one."""
    pending = np.empty(0, np.int64)
    while True:
        if len(pending) < batch:
            pending = np.concatenate([pending, rng.permutation(count)])
        yield torch.from_numpy(pending[:batch])
        pending = pending[batch:]


def train(
    plan: dict[str, Any], folder: Path, device: int, number: int, weights: dict[str, Tensor]
) -> tuple[ResNet, int, float]:
    """Train a device's shard in round `number`; return the network, the images and the mean loss."""
    own = plan["devices"][device]
    with np.load(folder / f"shard-{device}.npz") as shard:
        images, labels = normalised(plan, shard["images"]), torch.from_numpy(shard["labels"])
    model = make_model(plan, weights)
    model.train()
    optimiser = torch.optim.SGD(
        model.parameters(), lr=plan["lr"], momentum=plan["momentum"], weight_decay=plan["weight_decay"], fused=True
    )
    order = batches(len(images), own["batch"], np.random.default_rng((plan["seed"], number, own["seed"])))
    loss_sum = 0.0
    for _, chosen in zip(range(own["mini_batches"]), order, strict=False):
        scores = model(images[chosen].contiguous(memory_format=layout(plan)))
        loss = F.cross_entropy(scores, labels[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss_sum += loss.item()
    return model, own["mini_batches"] * own["batch"], loss_sum / own["mini_batches"]


@torch.no_grad()
def measure_statistics(plan: dict[str, Any], model: ResNet, images: Tensor) -> None:
    """Give the batch norms mean and unbiased variance of all that they see while the images pass, as in training."""
    moments: dict[nn.Module, list[tuple[int, Tensor, Tensor]]] = {}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].double(), (0, 2, 3), correction=0)
        moments.setdefault(norm, []).append((inputs[0].numel() // inputs[0].shape[1], mean, variance))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    model.train()
    for batch in torch.tensor_split(images, -(-len(images) // CALIBRATION_BATCH)):
        model(batch.contiguous(memory_format=layout(plan)))
    for hook in hooks:
        hook.remove()
    for norm, seen in moments.items():
        total = sum(count for count, _, _ in seen)
        mean = sum(count * mean for count, mean, _ in seen) / total
        squares = sum(count * (variance + (own - mean) ** 2) for count, own, variance in seen)
        norm.running_mean, norm.running_var = mean.float(), (squares / (total - 1)).float()


@torch.no_grad()
def score(plan: dict[str, Any], folder: Path, weights: dict[str, Tensor]) -> float:
    """Return the accuracy on the test images, statistics measured on the calibration images."""
    with np.load(folder / "held-out.npz") as held_out:
        calibration, test = (normalised(plan, held_out[name]) for name in ("calibration", "images"))
        labels = torch.from_numpy(held_out["labels"])
    model = make_model(plan, weights)
    measure_statistics(plan, model, calibration)
    model.eval()
    scores = torch.cat([model(part.contiguous(memory_format=layout(plan))) for part in test.split(256)])
    return (scores.argmax(1) == labels).double().mean().item()


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights that both sides begin with."""
    with np.load(folder / "weights.npz") as weights:
        return {name: torch.from_numpy(weights[name]) for name in weights}


def simulate(plan: dict[str, Any], folder: Path) -> None:
    """Run the plan in Flower's simulation, an actor for each core; write `theirs.json` and the first round's model."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict  # noqa: PLC0415
    from flwr.clientapp import ClientApp  # noqa: PLC0415
    from flwr.serverapp import Grid, ServerApp  # noqa: PLC0415
    from flwr.serverapp.strategy import FedAvg  # noqa: PLC0415
    from flwr.simulation import run_simulation  # noqa: PLC0415

    client, server = ClientApp(), ServerApp()

    @client.query()
    def tell_partition(message: Message, context: Context) -> Message:
        number = MetricRecord({"partition-id": context.node_config["partition-id"]})
        return Message(RecordDict({"metrics": number}), reply_to=message)

    @client.train()
    def train_partition(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model, images, loss = train(
            plan,
            folder,
            int(context.node_config["partition-id"]),
            int(message.content["config"]["server-round"]),
            message.content["arrays"].to_torch_state_dict(),
        )
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": images, "train_loss": loss}),
        }
        return Message(RecordDict(content), reply_to=message)

    class SameDevices(FedAvg):
        """FedAvg over the devices of the plan; a device that fails ends the run."""

        def __init__(self, nodes: dict[int, int]) -> None:
            super().__init__(fraction_evaluate=0.0)
            self.nodes = nodes
            self.images = 0

        def configure_train(
            self,
            server_round: int,
            arrays: ArrayRecord,
            config: ConfigRecord,
            grid: Grid,  # noqa: ARG002
        ) -> Iterable[Message]:
            config["server-round"] = server_round
            content = RecordDict({"arrays": arrays, "config": config})
            nodes = [self.nodes[device] for device in plan["selected"][server_round - 1]]
            return [Message(content, message_type=MessageType.TRAIN, dst_node_id=node) for node in nodes]

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            replies = list(replies)
            failed = [reply.error.reason for reply in replies if reply.has_error()]
            if failed or len(replies) < len(plan["selected"][server_round - 1]):
                message = f"round {server_round}: {len(replies)} replies, failed: {failed}"
                raise RuntimeError(message)
            self.images += sum(int(reply.content["metrics"]["num-examples"]) for reply in replies)
            arrays, metrics = super().aggregate_train(server_round, replies)
            if server_round == 1 and arrays is not None:
                np.savez(folder / "theirs-first.npz", **{name: array.numpy() for name, array in arrays.items()})
            return arrays, metrics

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001
        while len(nodes := list(grid.get_node_ids())) < len(plan["devices"]):
            time.sleep(0.05)
        # Who holds which shard; it also wakes the actors before the clock runs.
        asked = [Message(RecordDict(), message_type=MessageType.QUERY, dst_node_id=node) for node in nodes]
        told = list(grid.send_and_receive(asked, timeout=300.0))
        if len(told) < len(nodes) or any(one.has_error() for one in told):
            message = f"{len(told)} of {len(nodes)} nodes have answered; what Ray says stands above"
            raise RuntimeError(message)
        by_partition = {int(one.content["metrics"]["partition-id"]): one.metadata.src_node_id for one in told}
        strategy = SameDevices(by_partition)
        began = time.perf_counter()
        result = strategy.start(
            grid, ArrayRecord(read_weights(folder)), num_rounds=len(plan["selected"]), timeout=3600.0
        )
        train_s = time.perf_counter() - began
        torch.set_num_threads(plan["cores"])
        accuracy = score(plan, folder, result.arrays.to_torch_state_dict())
        figures = {"accuracy": accuracy, "images": strategy.images, "train_s": train_s}
        (folder / "theirs.json").write_text(json.dumps(figures), encoding="utf-8")

    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=len(plan["devices"]),
        backend_config={
            "init_args": {"num_cpus": plan["cores"], "log_to_driver": False, "_temp_dir": str(folder / "ray")},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


def try_layouts(plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the median seconds of a mini-batch on one thread in each layout, and how far apart they train a device.

    The latter is after its first round, as a share of how far it has come (L2 norms): what rounding alone does.
    """
    torch.set_num_threads(1)
    device, weights = plan["selected"][0][0], read_weights(folder)
    few = {**plan, "devices": [{**own, "mini_batches": MINI_BATCHES} for own in plan["devices"]]}
    taken: dict[str, list[float]] = {"contiguous": [], "channels_last": []}
    for _ in range(TURNS):
        for name, seconds in taken.items():
            began = time.process_time()
            train({**few, "channels_last": name == "channels_last"}, folder, device, 1, weights)
            seconds.append((time.process_time() - began) / MINI_BATCHES)
    first, second = (
        train({**plan, "channels_last": layout}, folder, device, 1, weights)[0].state_dict() for layout in (False, True)
    )
    apart = sum((first[name] - second[name]).double().square().sum().item() for name in weights)
    moved = sum((first[name] - weights[name]).double().square().sum().item() for name in weights)
    return {
        "seconds": {name: statistics.median(seconds) for name, seconds in taken.items()},
        "apart": math.sqrt(apart / moved),
    }


if __name__ == "__main__":
    where = Path(sys.argv[1])
    read = json.loads((where / "plan.json").read_text(encoding="utf-8"))
    if "--layouts" in sys.argv:
        print(json.dumps(try_layouts(read, where)))
    else:
        simulate(read, where)
