from __future__ import annotations

from distreal_edge.aggregator.outbound import GATHER_S, GATHER_S_PER_DEVICE, Outbound
from distreal_edge.transport import Delivery


class Broker:
    """Takes every chunk at once, and notes it."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str, int]] = []

    def __call__(self, digest: str, index: int, _frame: bytes) -> Delivery:
        self.chunks.append((digest, index))
        delivery = Delivery("a chunk")
        delivery.settle()
        return delivery


def test_a_chunk_is_published_once_for_all_who_ask_while_it_is_gathered() -> None:
    outbound, broker = Outbound(), Broker()
    (blob,) = outbound.offer(b"a model")
    for now in (0.0, 0.5 * GATHER_S, 0.9 * GATHER_S):
        outbound.want(blob.digest, (0, 7), now)
        outbound.advance(broker, now)
    assert broker.chunks == []
    outbound.advance(broker, GATHER_S)
    outbound.advance(broker, 2 * GATHER_S)
    assert broker.chunks == [(blob.digest, 0)]
    assert not outbound.busy


def test_of_many_devices_it_is_awaited_for_longer_what_they_want() -> None:
    outbound, broker = Outbound(), Broker()
    (blob,) = outbound.offer(b"a model")
    outbound.expect(1000)
    for number in range(1000):  # they ask over most of a second, and each would have had it all sent again
        now = number * 0.9 * GATHER_S_PER_DEVICE
        outbound.want(blob.digest, (0,), now)
        outbound.advance(broker, now)
    assert broker.chunks == []
    outbound.advance(broker, GATHER_S + 1000 * GATHER_S_PER_DEVICE)
    assert broker.chunks == [(blob.digest, 0)]
