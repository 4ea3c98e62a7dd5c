"""Who gets past a real mosquitto that has exactly the files that `distreal-edge keys` gives it."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from distreal_edge.errors import TransportError
from distreal_edge.identity import KeyFolder, read_enrolment
from distreal_edge.transport import Message, Session, TlsFiles
from distreal_edge.transport.inbox import Disconnected
from distreal_edge.transport.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 30.0
PREFIX = "distreal/1/garden"

pytestmark = [pytest.mark.chaos]


def installed(path: Path, folder: Path, now: datetime) -> TlsFiles:
    """Lay the parts of an enrolment file out."""
    enrolment = read_enrolment(path, now)
    folder.mkdir(parents=True)
    files = TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    files.ca.write_text(enrolment.authority)
    files.certificate.write_text(enrolment.certificate)
    files.key.write_text(enrolment.key)
    return files


@dataclass(frozen=True)
class Federation:
    """A broker, and what members and strangers could show it."""

    port: int
    files: dict[str, TlsFiles]

    def session(self, name: str, **arguments: Any) -> Session:
        given: dict[str, Any] = {"host": "127.0.0.1", "client_id": name, "port": self.port, "tls": self.files[name]}
        return Session(**given | arguments)


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory, mosquitto_with: Any) -> Iterator[Federation]:
    root = tmp_path_factory.mktemp("access")
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=400)
    keys = KeyFolder.create(root / "keys", "garden", ("127.0.0.1",), 8883, long_ago)
    keys.add(["expired"], long_ago, days=30)
    keys.add(["pi-1", "pi-2", "revoked"], now)
    files = {
        name: installed(
            root / "keys" / "enrolment" / f"{name}.enrolment", root / name, long_ago if name == "expired" else now
        )
        for name in ("expired", "pi-1", "pi-2", "revoked", "aggregator")
    }
    keys.revoke(["revoked"], now)
    stranger = KeyFolder.create(root / "stranger", "garden", ("127.0.0.1",), 8883, now)
    theirs = installed(stranger.add(["pi-1"], now)[0], root / "theirs", now)
    files["foreign"] = replace(theirs, ca=files["pi-1"].ca)
    files["broker"] = TlsFiles(
        files["pi-1"].ca, root / "keys" / "broker" / "broker.pem", root / "keys" / "broker" / "broker.key"
    )
    with mosquitto_with(root / "keys", root / "run") as port:
        yield Federation(port, files)


# -- who gets in ---------------------------------------------------------------------------------------------------

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
REFUSALS = {
    "foreign": "does not know the authority of our certificate",
    "expired": "has run out",
    "revoked": "our certificate was revoked",
    "broker": "which is not a client's",
}


@pytest.mark.parametrize("who", REFUSALS)
@pytest.mark.parametrize("version", VERSIONS)
def test_whose_certificate_is_not_good_is_out_at_once_and_told_why(
    garden: Federation,
    monkeypatch: pytest.MonkeyPatch,
    times: Callable[[int, int], int],
    figure: Callable[[str, str, str], None],
    who: str,
    version: ssl.TLSVersion,
) -> None:
    def limited(files: TlsFiles) -> ssl.SSLContext:
        context = tls_context(files)
        context.maximum_version = version
        return context

    monkeypatch.setattr("distreal_edge.transport.session.tls_context", limited)
    attempts = times(3, 100)
    for _ in range(attempts):
        with garden.session(who) as session:
            with pytest.raises(TransportError, match=REFUSALS[who]):
                session.wait_connected(WAIT_S)
            assert session.failure is not None
    with garden.session("pi-1") as session:
        session.wait_connected(WAIT_S)
    figure(f"connect with a certificate: {who}, {version.name}", f"{attempts} of {attempts} refused", "all refused")


def gets_in(garden: Federation, context: ssl.SSLContext | None, *names: str) -> bool:
    """Say CONNECT in MQTT 5, with a user's name and password if given, and return whether the broker agrees."""
    texts = [b"x", *(name.encode() for name in names)]
    rest = b"\0\4MQTT\5" + bytes([(0, 0x82, 0xC2)[len(names)], 0, 30, 0])
    rest += b"".join(len(text).to_bytes(2, "big") + text for text in texts)
    with contextlib.ExitStack() as opened:
        way: socket.socket = opened.enter_context(socket.create_connection(("127.0.0.1", garden.port), WAIT_S))
        try:
            if context is not None:
                way = opened.enter_context(context.wrap_socket(way, server_hostname="127.0.0.1"))
            way.sendall(bytes([0x10, len(rest)]) + rest)
            answer = way.recv(4)
        except OSError:
            return False
    return len(answer) == 4 and answer[0] == 0x20 and answer[3] == 0


def without_certificate(garden: Federation, version: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(garden.files["pi-1"].ca)
    context.maximum_version = version
    return context


def test_without_a_certificate_nobody_gets_in_by_whatever_name(
    garden: Federation, times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    names: list[tuple[str, ...]] = [(), ("garden/aggregator",), ("garden/device/pi-1", "password")]
    refused = attempts = 0
    for _ in range(times(1, 30)):
        for name in names:
            for way in (*(without_certificate(garden, version) for version in VERSIONS), None):  # None: plain text
                attempts += 1
                refused += not gets_in(garden, way, *name)
    assert refused == attempts
    assert gets_in(garden, tls_context(garden.files["pi-1"]))
    figure(
        "connect without a certificate, anonymous or by name, or in plain text",
        f"{refused} of {attempts} refused",
        "all refused",
    )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_not_spoken(garden: Federation) -> None:
    context = tls_context(garden.files["pi-1"])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", garden.port), WAIT_S) as plain:
        context.wrap_socket(plain, server_hostname="127.0.0.1").recv(1)


def test_a_revocation_list_that_has_run_out_keeps_everybody_out_and_renewing_lets_them_in(
    tmp_path: Path, mosquitto_with: Any
) -> None:
    now = datetime.now(UTC)
    keys = KeyFolder.create(tmp_path / "keys", "garden", ("127.0.0.1",), 8883, now - timedelta(days=2000))
    keys.renew(["broker"], now)
    files = {"pi-1": installed(keys.add(["pi-1"], now)[0], tmp_path / "pi-1", now)}
    with (
        mosquitto_with(keys.path, tmp_path / "run") as port,
        Federation(port, files).session("pi-1") as session,
        pytest.raises(TransportError, match="or its own revocation list, has run out"),
    ):
        session.wait_connected(WAIT_S)
    assert keys.refresh_list(now)
    with mosquitto_with(keys.path, tmp_path / "run") as port, Federation(port, files).session("pi-1") as session:
        session.wait_connected(WAIT_S)


# -- who may do what -----------------------------------------------------------------------------------------------

OTHERS = (
    *(f"{PREFIX}/device/pi-2/{leaf}" for leaf in ("state", "health", "want", "offer", "ack", "update/u/0")),
    *(f"{PREFIX}/{leaf}" for leaf in ("round", "aggregator/state", "aggregator/health", "blob/d/0", "blob/d/0/0")),
    *(f"{PREFIX}/device/pi-1/{leaf}" for leaf in ("ack", "update/u", "update/u/0/1", "state/x", "other", "")),
    *("distreal/1/orchard/device/pi-1/state", "distreal/1/orchard/round", "distreal/2/garden/device/pi-1/state"),
    *(f"{PREFIX}/device/device/pi-1/state", "x", "distreal", "$SYS/broker/uptime", "$CONTROL/dynamic-security/v1"),
)
OWN = ("state", "health", "want", "offer", "update/u/0")


def test_a_device_writes_its_own_topics_and_no_others(
    garden: Federation, times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    attempts = refused = 0
    with garden.session("aggregator") as aggregator, garden.session("pi-1") as pi:
        aggregator.subscribe(*(f"{PREFIX}/device/+/{leaf}" for leaf in (*OWN[:-1], "update/+/+")))
        aggregator.wait_connected(WAIT_S)
        pi.wait_connected(WAIT_S)
        for _ in range(times(1, 20)):
            for topic in OTHERS:
                attempts += 1
                for retain in (True, False):
                    pi.publish(topic, b"forged", qos=0, retain=retain)
                try:
                    pi.publish(topic, b"forged").wait(WAIT_S)
                except TransportError as error:
                    refused += "ot authorized" in str(error)
            for leaf in OWN:
                pi.publish(f"{PREFIX}/device/pi-1/{leaf}", b"mine").wait(WAIT_S)
        seen = {message.topic: message.payload for message in until(aggregator, f"{PREFIX}/device/pi-1/{OWN[-1]}")}
    assert seen == {f"{PREFIX}/device/pi-1/{leaf}": b"mine" for leaf in OWN}
    assert refused == attempts
    figure(
        "write another's topic, another federation's, the aggregator's",
        f"{refused} of {attempts} refused",
        "all refused",
    )


WILDCARDS = (
    *("#", "+/#", "distreal/#", f"{PREFIX}/#", "$SYS/#", "distreal/1/orchard/#"),
    *(f"{PREFIX}/{leaf}" for leaf in ("device/#", "device/+/update/+/+", "device/+/ack", "aggregator/#")),
    *(f"{PREFIX}/device/pi-2/{leaf}" for leaf in ("ack", "state", "want", "update/#")),
    *(f"$share/spies/{PREFIX}/device/+/{leaf}" for leaf in ("update/+/+", "ack")),
)


def test_whatever_a_device_subscribes_to_it_hears_only_what_is_for_it(
    garden: Federation, times: Callable[[int, int], int], figure: Callable[[str, str, str], None]
) -> None:
    rounds = times(1, 50)
    with garden.session("aggregator") as aggregator, garden.session("pi-2") as other, garden.session("pi-1") as spy:
        aggregator.subscribe(f"{PREFIX}/device/+/update/+/+")
        for session in (aggregator, other, spy):
            session.wait_connected(WAIT_S)
        other.publish(f"{PREFIX}/device/pi-2/state", b"secret", retain=True).wait(WAIT_S)
        for topic in WILDCARDS:
            with contextlib.suppress(TransportError):
                spy.subscribe(topic).wait(WAIT_S)
        for number in range(rounds):
            other.publish(f"{PREFIX}/device/pi-2/update/u/{number}", b"secret").wait(WAIT_S)
            other.publish(f"{PREFIX}/device/pi-2/want", b"secret").wait(WAIT_S)
            aggregator.publish(f"{PREFIX}/device/pi-2/ack", b"secret").wait(WAIT_S)
            aggregator.publish(f"{PREFIX}/aggregator/health", b"secret").wait(WAIT_S)
            for topic in (f"{PREFIX}/device/pi-1/ack", f"{PREFIX}/blob/d/0", f"{PREFIX}/aggregator/state"):
                aggregator.publish(topic, b"for all").wait(WAIT_S)
            aggregator.publish(f"{PREFIX}/round", b"for all %d" % number).wait(WAIT_S)
        last = f"{PREFIX}/round", b"for all %d" % (rounds - 1)
        heard = until(spy, *last)
        other.publish(f"{PREFIX}/device/pi-2/state", b"", retain=True).wait(WAIT_S)
        got = until(aggregator, f"{PREFIX}/device/pi-2/update/u/{rounds - 1}")
    allowed = {f"{PREFIX}/{leaf}" for leaf in ("device/pi-1/ack", "blob/d/0", "aggregator/state", "round")}
    assert {message.topic for message in heard} == allowed
    assert b"secret" not in {message.payload for message in heard}
    assert len({message.topic for message in got}) == rounds  # a spy in a shared subscription takes none away
    figure(
        f"subscribe to {len(WILDCARDS)} wildcards and others' topics",
        f"0 of {4 * rounds} messages for others heard",
        "all refused",
    )


def test_a_will_on_anothers_topic_is_never_published(garden: Federation) -> None:
    topic = f"{PREFIX}/device/pi-2/state"
    with garden.session("aggregator") as aggregator:
        aggregator.subscribe(f"{PREFIX}/device/+/state")
        aggregator.wait_connected(WAIT_S)
        with (
            garden.session("pi-1", will_topic=topic, will_payload=b"offline") as pi,
            contextlib.suppress(TransportError),
        ):
            pi.wait_connected(WAIT_S)  # on leaving it publishes its will itself as well
        with garden.session("pi-1") as pi:
            pi.wait_connected(WAIT_S)
            pi.publish(f"{PREFIX}/device/pi-1/state", b"afterwards").wait(WAIT_S)
        seen = until(aggregator, f"{PREFIX}/device/pi-1/state", b"afterwards")
    assert (topic, b"offline") not in {(message.topic, message.payload) for message in seen}


def test_nobody_takes_anothers_place_with_its_client_id(garden: Federation) -> None:
    with garden.session("pi-2", client_id="pi-2") as other:
        other.wait_connected(WAIT_S)
        for name in ("pi-2", "garden/device/pi-2"):
            thief = garden.session("pi-1", client_id="x")
            thief._endpoint = replace(thief._endpoint, client_id=name)  # the name with slashes is none of ours
            with thief:
                thief.wait_connected(WAIT_S)
                thief.publish(f"{PREFIX}/device/pi-1/state", b"here").wait(WAIT_S)
                other.publish(f"{PREFIX}/device/pi-2/state", b"here").wait(WAIT_S)
        while True:
            try:
                assert not isinstance(other.events.get_nowait(), Disconnected)
            except queue.Empty:
                break


def until(session: Session, topic: str, payload: bytes | None = None) -> list[Message]:
    """Take messages up to the first on a topic, with a payload if it is given."""
    taken: list[Message] = []
    give_up_s = time.monotonic() + WAIT_S
    while True:
        event = session.events.get(timeout=max(0.0, give_up_s - time.monotonic()))
        if isinstance(event, Message):
            event.acknowledge()
            taken.append(event)
            if event.topic == topic and payload in {None, event.payload}:
                return taken
