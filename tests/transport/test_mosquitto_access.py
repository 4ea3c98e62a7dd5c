"""What only the real thing can show: TLS with certificates, passwords, and an ACL."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from distreal_edge.errors import ConfigError, TransportError
from distreal_edge.transport import Message, Session, TlsFiles
from distreal_edge.transport.embedded_broker import find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WAIT_S = 15.0

pytestmark = pytest.mark.skipif(
    find_mosquitto() is None or shutil.which("openssl") is None, reason="needs mosquitto and openssl"
)


@contextlib.contextmanager
def mosquitto(folder: Path, port: int, config: str) -> Iterator[None]:
    program = find_mosquitto()
    assert program is not None
    config = f"listener {port} 127.0.0.1\npersistence false\n{config}\n"
    (folder / "mosquitto.conf").write_text(config + ("user root\n" if os.geteuid() == 0 else ""))
    broker = subprocess.Popen([program, "-c", folder / "mosquitto.conf"], stderr=subprocess.DEVNULL)
    try:
        yield  # a session waits for it
    finally:
        broker.terminate()
        broker.wait(WAIT_S)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def certificate(folder: Path, name: str, authority: Path, *, host: str | None = None) -> tuple[Path, Path]:
    """Make a certificate and key signed by the authority in folder `authority`."""
    key, request, signed = folder / f"{name}.key", folder / f"{name}.csr", folder / f"{name}.crt"
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request)  # fmt: skip
    extensions = folder / f"{name}.ext"
    extensions.write_text(f"subjectAltName=IP:{host}\n" if host else "extendedKeyUsage=clientAuth\n")
    openssl("x509", "-req", "-in", request, "-CA", authority / "ca.crt", "-CAkey", authority / "ca.key",
            "-CAcreateserial", "-days", "1", "-extfile", extensions, "-out", signed)  # fmt: skip
    return signed, key


def authority(folder: Path) -> Path:
    folder.mkdir()
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
            "-subj", f"/CN={folder.name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign",
            "-keyout", folder / "ca.key", "-out", folder / "ca.crt")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = authority(tmp_path_factory.mktemp("keys") / "ours")
    certificate(folder, "broker", folder, host="127.0.0.1")
    certificate(folder, "elsewhere", folder, host="10.9.8.7")
    certificate(folder, "pi-1", folder)
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = authority(tmp_path_factory.mktemp("keys") / "strangers")
    certificate(folder, "broker", folder, host="127.0.0.1")
    certificate(folder, "pi-1", folder)
    return folder


def tls_config(folder: Path, *, name: str = "broker", ca: Path | None = None) -> str:
    return (
        f"cafile {(ca or folder) / 'ca.crt'}\ncertfile {folder / f'{name}.crt'}\nkeyfile {folder / f'{name}.key'}\n"
        "require_certificate true\nuse_identity_as_username true\n"
    )


def pi_files(folder: Path, *, ca: Path | None = None) -> TlsFiles:
    return TlsFiles((ca or folder) / "ca.crt", folder / "pi-1.crt", folder / "pi-1.key")


def session(port: int, tls: TlsFiles | None = None, **arguments: str) -> Session:
    return Session(host="127.0.0.1", port=port, client_id="pi-1", tls=tls, **arguments)  # type: ignore[arg-type]


def test_with_the_right_certificates_messages_go_through(
    tmp_path: Path, free_port: int, ours: Path, next_message: Callable[..., Message]
) -> None:
    with mosquitto(tmp_path, free_port, tls_config(ours)), session(free_port, pi_files(ours)) as pi:
        pi.subscribe("f/#")
        pi.wait_connected(WAIT_S)
        payload = os.urandom(300_000)
        pi.publish("f/x", payload).wait()
        assert next_message(pi) == Message("f/x", payload)


def test_a_broker_that_somebody_else_vouches_for_is_refused_for_good(
    tmp_path: Path, free_port: int, ours: Path, strangers: Path
) -> None:
    with (
        mosquitto(tmp_path, free_port, tls_config(strangers, ca=ours)),
        session(free_port, pi_files(ours)) as pi,
        pytest.raises(TransportError, match="another authority than ca vouches for the broker"),
    ):
        pi.wait_connected(WAIT_S)


def test_a_broker_under_another_name_is_refused_for_good(tmp_path: Path, free_port: int, ours: Path) -> None:
    with (
        mosquitto(tmp_path, free_port, tls_config(ours, name="elsewhere")),
        session(free_port, pi_files(ours)) as pi,
        pytest.raises(TransportError, match="IP address mismatch"),
    ):
        pi.wait_connected(WAIT_S)


def test_a_broker_that_refuses_our_certificate_is_not_asked_again(
    tmp_path: Path, free_port: int, ours: Path, strangers: Path
) -> None:
    with (
        mosquitto(tmp_path, free_port, tls_config(ours)),
        session(free_port, pi_files(strangers, ca=ours)) as pi,
    ):
        with pytest.raises(TransportError, match=r"(?i)alert"):
            pi.wait_connected(WAIT_S)
        assert pi.failure is not None


def test_files_that_do_not_belong_together_are_a_config_error(ours: Path, strangers: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        session(8883, TlsFiles(ours / "ca.crt", ours / "pi-1.crt", strangers / "pi-1.key"))
    with pytest.raises(ConfigError, match="nowhere"):
        session(8883, TlsFiles(tmp_path / "nowhere", ours / "pi-1.crt", ours / "pi-1.key"))


def test_a_wrong_password_is_final_and_a_right_one_connects(tmp_path: Path, free_port: int) -> None:
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("needs mosquitto_passwd")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", passwords, "pi-1", "right"], check=True, capture_output=True)
    with mosquitto(tmp_path, free_port, f"password_file {passwords}"):
        with session(free_port, username="pi-1", password="right") as pi:
            pi.wait_connected(WAIT_S)
        with (
            session(free_port, username="pi-1", password="wrong") as pi,
            pytest.raises(TransportError, match="password"),
        ):
            pi.wait_connected(WAIT_S)


def test_what_the_acl_denies_fails_where_somebody_waits_and_is_logged(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "acl").write_text("topic write f/pi-1/#\ntopic read f/#\n")
    with (
        mosquitto(tmp_path, free_port, f"allow_anonymous true\nacl_file {tmp_path / 'acl'}"),
        session(free_port) as pi,
    ):
        pi.wait_connected(WAIT_S)
        pi.publish("f/pi-1/state", b"mine").wait()
        with pytest.raises(
            TransportError, match="publish to f/pi-2/state: refused: Not authorized; check the broker's ACL"
        ):
            pi.publish("f/pi-2/state", b"not mine").wait()
        assert "publish to f/pi-2/state: refused" in caplog.text
        pi.publish("f/pi-1/state", b"still connected").wait()


def test_a_client_whose_own_state_is_refused_ends_at_once(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "acl").write_text("topic readwrite distreal/1/garden/#\n")
    with (
        mosquitto(tmp_path, free_port, f"allow_anonymous true\nacl_file {tmp_path / 'acl'}"),
        session(free_port) as pi,
    ):
        pi.publish_retained("distreal/1/gardn/device/pi-1/state", b"here")
        give_up_s = time.monotonic() + WAIT_S
        while pi.failure is None and time.monotonic() < give_up_s:
            time.sleep(0.01)
        assert "check the broker's ACL, and this client's federation, name and certificate" in str(pi.failure)


def test_plain_text_that_is_allowed_is_named_at_every_start_and_every_connection(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("session", "tls"):  # this machine stands for another one
        monkeypatch.setattr(f"distreal_edge.transport.{room}.is_loopback", lambda _host: False)
    with pytest.raises(ConfigError, match="allow_plaintext"):
        session(free_port)
    named = "in plain text, as allow_plaintext says"
    with session(free_port, allow_plaintext=True) as pi:  # type: ignore[arg-type]
        assert caplog.text.count(named) == 1
        for connections in (1, 2):
            with mosquitto(tmp_path, free_port, "allow_anonymous true"):
                pi.wait_connected(WAIT_S)
                pi.publish("f/x", b"here").wait()
                assert caplog.text.count(named) == 1 + connections


def test_plain_text_to_a_broker_that_wants_tls_says_what_may_be_missing(
    tmp_path: Path, free_port: int, ours: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mosquitto(tmp_path, free_port, tls_config(ours)), session(free_port) as pi:
        with pytest.raises(TransportError, match=r"does it want TLS \(ca, certificate and key\) on this port"):
            pi.wait_connected(3.0)
        assert pi.failure is None  # it may be starting, and is tried again


def test_tls_to_a_broker_that_speaks_plain_text_is_told(tmp_path: Path, free_port: int, ours: Path) -> None:
    with (
        mosquitto(tmp_path, free_port, "allow_anonymous true"),
        session(free_port, pi_files(ours)) as pi,
        pytest.raises(TransportError, match=r"speaks? TLS on this port"),
    ):
        pi.wait_connected(3.0)
