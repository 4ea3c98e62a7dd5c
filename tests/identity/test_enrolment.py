"""Enrolment files, and `distreal-edge enroll`: what is installed, and what is refused."""

from __future__ import annotations

import contextlib
import sys
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distreal_edge.cli import main
from distreal_edge.config import DeviceConfig, FederationConfig, load_config
from distreal_edge.errors import ConfigError
from distreal_edge.identity import KeyFolder, read_enrolment
from distreal_edge.transport.tls import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def enroll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `distreal-edge enroll` in an empty folder; return its exit code and all it printed."""
    (tmp_path / "board").mkdir()
    monkeypatch.chdir(tmp_path / "board")

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["distreal-edge", "enroll", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, printed.out + printed.err

    return run


def test_a_device_is_enrolled_by_its_file_alone(made: Path, enroll: Callable[..., tuple[int, str]]) -> None:
    code, said = enroll(made / "enrolment" / "pi-1.enrolment")
    assert code == 0, said
    assert "delete" in said
    config = load_config("device.toml", DeviceConfig)
    assert (config.federation, config.device) == ("garden", "pi-1")
    assert (config.broker.host, config.broker.tcp_port) == ("laptop.lan", 8883)
    assert config.broker.tls is not None
    tls_context(config.broker.tls)  # Python's ssl takes them, and the key belongs to the certificate
    assert {path.stat().st_mode & 0o777 for path in Path("tls").iterdir()} == {0o600}
    assert Path("tls").stat().st_mode & 0o777 == 0o700


def test_the_aggregator_is_enrolled_in_the_same_way(made: Path, enroll: Callable[..., tuple[int, str]]) -> None:
    assert enroll(made / "enrolment" / "aggregator.enrolment")[0] == 0
    config = load_config("federation.toml", FederationConfig)
    assert config.broker.tls is not None
    tls_context(config.broker.tls)


def test_a_configuration_that_is_there_is_left_alone_and_told_which_lines_it_needs(
    made: Path, enroll: Callable[..., tuple[int, str]]
) -> None:
    text = (
        'federation = "garden"\ndevice = "pi-1"\nstate = "s"\n[broker]\nhost = "laptop.lan"\nallow_plaintext = true\n'
    )
    Path("device.toml").write_text(text)
    code, said = enroll(made / "enrolment" / "pi-1.enrolment")
    assert code == 0
    assert Path("device.toml").read_text() == text
    shown = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    assert shown == [
        "port = 8883", 'ca = "tls/ca.pem"', 'certificate = "tls/pi-1.pem"', 'key = "tls/pi-1.key"',
        "(and no allow_plaintext)",
    ]  # fmt: skip


def test_a_second_time_changes_nothing_and_other_keys_need_to_be_asked_for(
    folder: KeyFolder, enroll: Callable[..., tuple[int, str]], now: datetime
) -> None:
    file = folder.path / "enrolment" / "pi-1.enrolment"
    enroll(file)
    before = Path("tls/pi-1.key").read_bytes()
    assert enroll(file)[0] == 0
    folder.renew(["pi-1"], now)
    code, said = enroll(file)
    assert (code, Path("tls/pi-1.key").read_bytes()) == (2, before)
    assert "--replace" in said
    assert enroll(file, "--replace")[0] == 0
    assert Path("tls/pi-1.key").read_bytes() != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('federation = "orchard"\ndevice = "pi-1"\n', "is of the federation 'orchard'"),
        ('federation = "garden"\ndevice = "pi-7"\n', "is of the device 'pi-7'"),
        ('federation = "garden"\n[network]\nzoo = "resnet8"\n', "is of another role"),
        ("federation = garden\n", "is no configuration file"),
    ],
)
def test_an_enrolment_that_is_meant_for_another_installs_nothing(
    made: Path, enroll: Callable[..., tuple[int, str]], text: str, said: str
) -> None:
    Path("device.toml").write_text(text)
    code, told = enroll(made / "enrolment" / "pi-1.enrolment")
    assert code == 2
    assert said in told
    assert not Path("tls").exists()


def test_somebody_elses_authority_is_not_replaced(
    made: Path, enroll: Callable[..., tuple[int, str]], tmp_path: Path, now: datetime
) -> None:
    enroll(made / "enrolment" / "pi-1.enrolment")
    other = KeyFolder.create(tmp_path / "other", "orchard", ("localhost",), 8883, now)
    code, told = enroll(other.path / "enrolment" / "aggregator.enrolment", "--replace")
    assert code == 2
    assert "is another authority's" in told
    assert sorted(path.name for path in Path("tls").iterdir()) == ["ca.pem", "pi-1.key", "pi-1.pem"]


def test_the_authoritys_new_certificate_takes_the_place_of_its_old_one_beside_another_member(
    folder: KeyFolder, enroll: Callable[..., tuple[int, str]], now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("aggregator", "pi-1"):
        enroll(folder.path / "enrolment" / f"{name}.enrolment")
    monkeypatch.setattr("distreal_edge.identity.certificates._AUTHORITY_DAYS", 9000)
    folder._renew_authority(now + timedelta(days=7000))
    (path,) = folder.renew(["pi-1"], now)
    code, told = enroll(path, "--replace")
    assert code == 0, told
    assert Path("tls/ca.pem").read_bytes() == (folder.path / "ca.pem").read_bytes()


def changed(made: Path, tmp_path: Path, change: Callable[[str], str]) -> Path:
    path = tmp_path / "changed.enrolment"
    path.write_text(change((made / "enrolment" / "pi-1.enrolment").read_text()))
    return path


def part(text: str, key: str) -> str:
    value: str = tomllib.loads(text)[key]
    return value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: "", "is no enrolment file"),
        (lambda text: text + "more = 1\n", "is no enrolment file"),
        (lambda text: text.replace("format = 1", "format = 2"), "is no enrolment file"),
        (lambda text: text.replace('"garden"', '"orchard"'), "certificate is another's"),
        (lambda text: text.replace('"pi-1"', '"pi-2"'), "certificate is another's"),
        (lambda text: text.replace('"pi-1"', '"../x"'), "is no enrolment file"),
        (lambda text: text.replace('"laptop.lan"', '"a\\nb"'), "is no enrolment file"),
        (lambda text: text.replace('"device"', '"aggregator"'), "certificate is another's"),
        (lambda text: text.replace("PRIVATE KEY", "SECRET"), "is damaged"),
        (lambda text: text.replace(part(text, "certificate"), part(text, "authority")), "does not belong"),
        (lambda text: text.replace(part(text, "authority"), part(text, "certificate")), "was not signed by"),
        (lambda text: text + "#" * 70_000, "is no enrolment file"),
    ],
)
def test_a_file_that_does_not_fit_together_is_refused(
    made: Path, tmp_path: Path, now: datetime, change: Callable[[str], str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        read_enrolment(changed(made, tmp_path, change), now)
    assert "\n" not in str(caught.value)


def test_another_federations_certificate_or_key_inside_is_refused(made: Path, tmp_path: Path, now: datetime) -> None:
    other = KeyFolder.create(tmp_path / "other", "garden", ("laptop.lan",), 8883, now)
    (foreign,) = other.add(["pi-1"], now)
    theirs = foreign.read_text()
    ours = (made / "enrolment" / "pi-1.enrolment").read_text()
    for key, said in (("authority", "was not signed"), ("key", "does not belong")):
        mixed = tmp_path / "mixed.enrolment"
        mixed.write_text(ours.replace(part(ours, key), part(theirs, key)))
        with pytest.raises(ConfigError, match=said):
            read_enrolment(mixed, now)


def test_the_brokers_certificate_enrols_nobody(made: Path, tmp_path: Path, now: datetime) -> None:
    def change(text: str) -> str:
        text = text.replace(part(text, "certificate"), (made / "broker" / "broker.pem").read_text())
        return text.replace(part(text, "key"), (made / "broker" / "broker.key").read_text())

    with pytest.raises(ConfigError, match="certificate is another's"):
        read_enrolment(changed(made, tmp_path, change), now)


@pytest.mark.parametrize(("days", "said"), [(1826, "not good since .* keys renew pi-1"), (-2, "set the clock right")])
def test_a_file_is_refused_before_and_after_its_time(made: Path, now: datetime, days: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_enrolment(made / "enrolment" / "pi-1.enrolment", now + timedelta(days=days))


def test_a_file_that_is_not_there_is_told(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_enrolment(tmp_path / "none", now)


@given(data=st.data())
def test_a_damaged_file_is_refused_in_one_way_or_still_says_the_same(
    made: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray((made / "enrolment" / "pi-1.enrolment").read_bytes())
    now = datetime.fromtimestamp((made / "ca.pem").stat().st_mtime).astimezone()
    sound = read_enrolment(made / "enrolment" / "pi-1.enrolment", now)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.enrolment"
    path.write_bytes(whole[: data.draw(st.integers(len(whole) - 40, len(whole)))])
    with contextlib.suppress(ConfigError):
        found = read_enrolment(path, now)
        # Damaged in a comment, or in where the broker is: nothing vouches for that.
        assert (found.member, found.key.split(), found.certificate.split()) == (
            sound.member, sound.key.split(), sound.certificate.split(),
        )  # fmt: skip
