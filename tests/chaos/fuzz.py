"""Feed what one of our readers reads with bytes that a coverage-guided fuzzer makes: `fuzz.py TARGET SECONDS`.

Whatever the bytes are, a reader takes them or refuses them with an error of ours that a person can read; anything else
ends this process. libFuzzer bounds the memory of the whole process and the time of each input.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import TYPE_CHECKING, Final

import atheris
import numpy as np

from distreal_edge.config import DeviceConfig, FederationConfig, load_config
from distreal_edge.device import Update, UpdateHeader, decode_update, encode_update
from distreal_edge.dropout import Table
from distreal_edge.errors import ConfigError, DistrealError, NetworkError, ProtocolError, TableError
from distreal_edge.network import Network, PlanBuilder
from distreal_edge.search import uniform_table
from distreal_edge.transport import (
    Ack,
    AggregatorHealth,
    AggregatorState,
    BlobReference,
    DeviceHealth,
    DeviceState,
    Manifest,
    PartialBlob,
    Training,
    Want,
    decode,
    encode,
    split,
)
from distreal_edge.transport.chunks import parse_frame

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_MEMORY_MIB: Final = 1024
MOST_SECONDS: Final = 20
MESSAGES: Final = (Manifest, AggregatorHealth, AggregatorState, DeviceHealth, DeviceState, Want, Ack)


def readable(error: DistrealError) -> None:
    """Hold a refusal to what a log and a terminal can show."""
    assert str(error).isprintable(), repr(str(error))
    assert 0 < len(str(error)) < 2000, len(str(error))


def frames(data: bytes) -> bool:
    """Put two frames together, cut apart where the first byte says."""
    blob, received = None, 0
    cut = 2 + int.from_bytes(data[:2], "big")
    for frame in filter(None, (data[2:cut], data[cut:])):
        try:
            said = parse_frame(frame, where="frame")
            if blob is None:  # as if what the first says of the whole had been announced
                blob = PartialBlob(FOLDER / "blob", digest=said.digest, total_bytes=said.total_bytes)
            received += blob.add(frame, where="frame").received
            blob.is_whole()
        except ProtocolError as error:
            readable(error)
    if blob is not None:
        blob.discard()
    return received > 0


def manifests(data: bytes) -> bool:
    """Read a message of the kind that the first byte says; what is taken can be said again."""
    kind = MESSAGES[data[0] % len(MESSAGES)] if data else Manifest
    try:
        message = decode(kind, data[1:], where="message")
    except ProtocolError as error:
        readable(error)
        return False
    assert decode(kind, encode(message), where="message") == message
    return True


def networks(data: bytes) -> bool:
    """Read a network's file; what is taken can be written and read again."""
    try:
        network = Network.from_bytes(data, "network")
    except NetworkError as error:
        readable(error)
        return False
    assert Network.from_bytes(network.to_bytes()).plan == network.plan
    return True


def tables(data: bytes) -> bool:
    """Read a table."""
    try:
        table = Table.from_bytes(data, "table")
    except TableError as error:
        readable(error)
        return False
    assert Table.from_bytes(table.to_bytes(), "table") == table
    return True


def updates(data: bytes) -> bool:
    """Read an update of the small network."""
    try:
        decode_update(data, small_network().plan)
    except ProtocolError as error:
        readable(error)
        return False
    return True


def configurations(data: bytes) -> bool:
    """Read the file of a device and of an aggregator."""
    path = FOLDER / "fuzzed.toml"
    path.write_bytes(data)
    taken = False
    for kind in (DeviceConfig, FederationConfig):
        try:
            load_config(path, kind)
        except ConfigError as error:
            readable(error)
        else:
            taken = True
    return taken


FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=".")).resolve()
"""Below where one stands, as the inputs that libFuzzer leaves when it finds something."""
TARGETS: Final[dict[str, Callable[[bytes], bool]]] = {
    "frames": frames,
    "manifests": manifests,
    "networks": networks,
    "tables": tables,
    "updates": updates,
    "configurations": configurations,
}


def small_network() -> Network:
    """Return a network with an operation of most kinds."""
    builder = PlanBuilder((1, 4, 4))
    stem = builder.conv2d("stem", builder.input, 2, kernel=3, padding=1, bias=False)
    value = builder.relu(builder.batch_norm("bn", stem))
    value = builder.add(builder.conv2d("project", value, 2, kernel=1), stem)
    value = builder.flatten(builder.concat(builder.max_pool(value, kernel=2), builder.avg_pool(value, kernel=2)))
    return Network.initialise(builder.finish(builder.linear("fc", value, 2)), seed=0)


def samples(target: str) -> list[bytes]:
    """Return sound inputs to start from."""
    network = small_network()
    if target == "frames":
        return [(len(frame)).to_bytes(2, "big") + frame for frame in split(b"a blob" * 50)]
    if target == "networks":
        return [network.to_bytes()]
    if target == "tables":
        return [uniform_table(network, rows=3).to_bytes()]
    if target == "updates":
        plan = network.plan
        changes = {name: np.zeros(parameter.shape, np.float32) for name, parameter in plan.parameters.items()}
        kept = np.ones((1, plan.filters + 1), np.bool_)
        header = UpdateHeader(uid="u1", device="pi-1", round=1, model="ab" * 32, images=8, mini_batches=1, loss=1.0)
        return [encode_update(Update(header, changes, {}, kept, np.array([8])))]
    if target == "configurations":
        head = b'federation = "garden"\nstate = "state"\n[broker]\nhost = "127.0.0.1"\n'
        device = b'device = "pi-1"\n' + head + b'[data]\nname = "fashion-mnist"\n[resources]\nmost_cores = 1.5\n'
        aggregator = (
            head + b'[network]\nzoo = "resnet8"\n[rounds]\nnumber = 3\n[[ceiling]]\nfrom_share = 0\nceiling = 1\n'
        )
        return [device + b'quiet_hours = ["22:00-07:00"]\nmost_memory = "1 GiB"\n', aggregator]
    blob = BlobReference("ab" * 32, 10, 1)
    training = Training(
        batch=32, lr=0.1, momentum=0.9, weight_decay=0.0, epochs=1.0, most_epochs=2.0, statistics_images=0
    )
    manifest = Manifest(
        number=1,
        model=blob,
        table=blob,
        ceiling=1.0,
        deadline_s=2.0,
        train_until_s=1.0,
        selected=("pi-1",),
        seed=1,
        draw="ordered",
        training=training,
    )
    rest = [AggregatorState("online", 1, "fed"), Want("ab" * 32, (0, 3)), Ack("u1", "resend", None, (0,))]
    kinds = {kind: number for number, kind in enumerate(MESSAGES)}
    return [bytes([kinds[type(message)]]) + encode(message) for message in (manifest, *rest)]


def words(target: str) -> list[bytes]:
    """Return what the fuzzer may put in: the keys of the sound inputs, which it would take hours to guess."""
    found: set[bytes] = set()
    for sample in samples(target):
        text = sample.decode("ascii", errors="replace")
        found.update(word.encode() for word in text.replace('"', " ").replace("[", " ").split() if word.isidentifier())
    return sorted(found)


def instrument_our_own() -> None:
    """Let the fuzzer see which branches our code takes.

    At import it would leave out a package with a loader of its own, as an editable installation has; and everything
    that is loaded, numpy among it, takes a minute.
    """
    of_ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "distreal_edge"]
    owners = [*of_ours, *(value for module in of_ours for value in vars(module).values() if isinstance(value, type))]
    functions = {value for owner in owners for value in vars(owner).values() if isinstance(value, types.FunctionType)}
    for function in functions:
        if function.__module__.startswith("distreal_edge"):
            atheris.instrument_func(function)


def _nothing(_taken: bool) -> None:
    # libFuzzer takes a result for its own.
    return


def main() -> None:
    """Fuzz one target for so many seconds."""
    target, seconds = sys.argv[1], sys.argv[2]
    logging.disable()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, sample in enumerate(samples(target)):
        assert TARGETS[target](sample), f"sample {number} is refused, so that the rest would prove nothing"
        (corpus / str(number)).write_bytes(sample)
    dictionary = FOLDER / "words"
    dictionary.write_text("".join(f'"{word.decode()}"\n' for word in words(target)), encoding="ascii")
    os.chdir(FOLDER)
    limits = [f"-rss_limit_mb={MOST_MEMORY_MIB}", f"-timeout={MOST_SECONDS}", f"-max_total_time={seconds}"]
    arguments = [sys.argv[0], *limits, "-max_len=8192", "-print_final_stats=1", f"-dict={dictionary}", str(corpus)]
    instrument_our_own()
    atheris.Setup(arguments, lambda data: _nothing(TARGETS[target](data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
