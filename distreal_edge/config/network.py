"""The network that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distreal_edge import zoo
from distreal_edge.network import Network, Preprocessing

if TYPE_CHECKING:
    from distreal_edge.config.federation import NetworkChoice

__all__ = ["build_network"]


def build_network(choice: NetworkChoice) -> Network:
    """Return the network that the configuration names; raise `NetworkError` when it cannot be read or made."""
    if choice.file is not None:
        return Network.load(Path(choice.file).expanduser())
    assert choice.zoo is not None
    return zoo.NETWORKS[choice.zoo](
        classes=choice.classes,
        in_channels=choice.in_channels,
        image_size=choice.image_size,
        seed=choice.seed,
        preprocessing=Preprocessing(choice.mean, choice.std, choice.crop_padding, choice.horizontal_flip),
    )
