"""Datasets, the shards that devices hold, and the mini-batches drawn from them."""

from __future__ import annotations

from distreal_edge.data.batches import Batches
from distreal_edge.data.dataset import Dataset
from distreal_edge.data.load import available_datasets, load_dataset
from distreal_edge.data.shards import shard_indices, split_off

__all__ = ["Batches", "Dataset", "available_datasets", "load_dataset", "shard_indices", "split_off"]
