from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distreal_edge.config import (
    CeilingStep,
    DeviceConfig,
    Evaluation,
    FederationConfig,
    NetworkChoice,
    Resources,
    Rounds,
    Shard,
    TableChoice,
    Training,
    find_role,
    load_config,
)
from distreal_edge.errors import ConfigError
from distreal_edge.search import shipped_tables
from distreal_edge.transport import TlsFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEVICE = """\
federation = "farm"
device = "pi-1"
state = "state"

[data]
name = "mnist"
"""
SHIPPED = shipped_tables()[0]
FEDERATION = """\
federation = "farm"
state = "state"

[network]
zoo = "resnet8"
"""


def _every_key(kind: Any) -> Iterator[str]:
    for key, annotation in get_type_hints(kind, include_extras=True).items():
        yield key
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from _every_key(part)


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    def read(text: str, kind: Any) -> Any:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, kind)

    return read


@pytest.fixture
def complaint(load: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
    """Return what is said of a wrong file, without the folder it lies in."""

    def read(text: str, kind: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load(text, kind)
        return str(caught.value).removeprefix(f"{tmp_path}/")

    return read


def test_the_shortest_files_are_sound(load: Callable[..., Any]) -> None:
    device = load(DEVICE, DeviceConfig)
    assert (device.device, device.data.name, device.broker.tcp_port, device.log_steps) == ("pi-1", "mnist", 1883, False)
    federation = load(FEDERATION, FederationConfig)
    assert federation.ceiling == (CeilingStep(from_share=0.0, ceiling=1.0),)
    assert federation.network.zoo == "resnet8"


def test_whole_numbers_stand_for_real_ones_and_arrays_of_tables_are_read(load: Callable[..., Any]) -> None:
    text = FEDERATION + "[[ceiling]]\nfrom_share = 0\nceiling = 0.25\n[[ceiling]]\nfrom_share = 0.5\nceiling = 1\n"
    assert load(text + "[rounds]\nseconds = 8\n", FederationConfig).rounds.seconds == 8.0
    assert [step.ceiling for step in load(text, FederationConfig).ceiling] == [0.25, 1.0]


@pytest.mark.parametrize(
    ("added", "line", "said"),
    [
        ("[rounds]\nsecond = 5\n", 7, "unknown key rounds.second; did you mean 'seconds'?"),
        ("[rounds]\n\n# five\nseconds = 'five'\n", 9, "rounds.seconds: expected a number, got text; write it without"),
        ("[roundz]\nseconds = 5\n", 6, "unknown key roundz; did you mean 'rounds'?"),
        ("[broker]\nxyz = 1\n", 7, "unknown key broker.xyz; known here: host, port, ca, certificate, key, allow_plain"),
        ("rounds.seconds = true\n", 6, "network.rounds"),
        ("[training]\nbatch = 1.5\n", 7, "training.batch: expected a whole number, got a real number"),
        ("[training]\nbatch = 0\n", 7, "training.batch: expected a whole number of at least 1, got 0"),
        ("[training]\nlr = nan\n", 7, "training.lr: expected a number above 0, got nan"),
        ("[training]\nlr = inf\n", 7, "training.lr: expected a number of at most 1000, got inf"),
        ("[training]\naverage = 'mean'\n", 7, 'training.average: "mean" is not known; did you mean \'median\''),
        ("[training]\nclip_norm = 'large'\n", 7, 'training.clip_norm: "large" is not known; choose one of median'),
        ("[training]\nhostile_share = 0.5\n", 7, "training.hostile_share"),
        ("[training]\nhostile_share = 0.1\n", 7, "training.hostile_share: the average 'touch' does not ask for it"),
        ("[table]\ndraw = 'lottery'\n", 7, "table.draw: no policy is called 'lottery'; choose one of ordered"),
        ("training = { batch = 8, lr = 2000 }\n", 6, "network.training"),
        ("[training]\nstatistics_images = -1\n", 7, "statistics_images: expected a whole number of at least 0"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n\n[[ceiling]]\nfrom_share = 0.5\nceiling = 1.5\n", 12,
         "ceiling[1].ceiling: expected a number of at most 1, got 1.5"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n[[ceiling]]\nfrom_share = 0.5\n", 9,
         "key ceiling[1].ceiling is missing"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n[[ceiling]]\nfrom_share = 0.5\nceilin = 1\n", 11,
         "unknown key ceiling[1].ceilin; did you mean 'ceiling'?"),
        ("[[ceiling]]\nfrom_share = 0.1\nceiling = 0.3\n", 6, "ceiling: the first step must have from_share = 0.0"),
        ("[rounds]\nseconds = 5\nupload_seconds = 5\n", 8,
         "rounds.upload_seconds: 5 leaves no time to train in rounds of 5 s"),
        ("[rounds]\nseconds = 4\n", 6, "rounds.upload_seconds: 5 leaves no time to train in rounds of 4 s"),
        ("[rounds]\nover_selection = 1.3\n", 7, "rounds.over_selection: needs devices_per_round as well"),
        ("[rounds]\nquorum = 0.0\n", 7, "rounds.quorum: "),
        ("[keep]\nnewest_models = 0\n", 7, "keep.newest_models: "),
        ("[training]\nepochs = 2\nmost_epochs = 1.5\n", 8, "training.most_epochs: 1.5 is less than epochs, 2"),
        ("mean = [\n  0.1,\n  0.2,\n  0.3,\n]\n", 6, "network.mean: normalising needs std as well"),
        ("in_channels = 1\nmean = [0.1, 0.2]\nstd = [1, 1]\n", 7, "network.mean: give 1 numbers, one per channel"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 0]\n", 7, "network.std[2]: expected a number of at least 1e-06, got 0"),
        ("file = 'x'\n", 6, "network.file: give either a file or a name in the zoo, not both"),
        ("[table]\nfile = 'x'\nrows = 3\n", 8, "table.rows: leave it out beside file"),
        ("[table]\nname = 'RESNET'\n", 7, "table.name: no table of the package is called 'RESNET'; there are "),
        (f"[table]\nrows = 8\nname = '{SHIPPED}x'\n", 8, f"'{SHIPPED}x'; did you mean {SHIPPED!r}? there are "),
        (f"[table]\nfile = 'x'\nname = '{SHIPPED}'\n", 8, "table.name: give either a file or the name of a table"),
        (f"[table]\nname = '{SHIPPED}'\ndraw = 'random'\n", 8, "table.draw: leave it out beside name"),
        (f"[table]\nname = '{SHIPPED}'\nrows = 3\n", 8, "table.rows: leave it out beside name"),
        ("[table]\nname = ''\n", 7, "table.name: must not be empty"),
        ("[evaluation]\nimages = 500\n", 7, "evaluation.images: needs the dataset's name as well"),
        ("[evaluation]\nname = 'mnist'\ncalibration_images = 1\n", 8, "evaluation.calibration_images: one image"),
        ("[broker]\nhost = ''\n", 7, "broker.host: must not be empty"),
        ('[broker]\nhost = "a\\u0000b"\n', 7, "broker.host: control characters cannot stand here"),
        ('[broker]\n"port" = 0\n', 7, "broker.port: expected a whole number of at least 1, got 0"),
        ("[broker]\nport = 2020-01-01\n", 7, "broker.port: expected a whole number, got a date"),
        ("state = 'again'\n", None, "network.state"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_federation_is_named_with_its_line(
    complaint: Callable[..., str], added: str, line: int | None, said: str
) -> None:
    text = complaint(FEDERATION + added, FederationConfig)
    assert said in text
    if line is not None:
        assert text.startswith(f"config.toml:{line}: ")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (DEVICE.replace('device = "pi-1"\n', ""), 1, "key device is missing"),
        (DEVICE.replace('name = "mnist"\n', ""), 5, "key data.name is missing"),
        (DEVICE.replace("pi-1", "pi 1"), 2, "device: use 1 to 64 of the characters A-Z a-z 0-9 _ -"),
        (DEVICE.replace('"pi-1"', '"pi-1\\n"'), 2, "device: use 1 to 64 of the characters A-Z a-z 0-9 _ -"),
        (DEVICE + "shard = { kind = 'iid', shards = 4, index = 4 }\n", 7,
         "data.shard.index: 4 is too large, 4 shards are counted from 0"),
        (DEVICE + "[data.shard]\nkind = 'iid'\nshards = 4\n\nindex = 9\n", 11, "data.shard.index: 9 is too large"),
        (DEVICE + "[data.shard]\nkind = 'sorted'\nshards = 4\nindex = 1\n", 8, 'shard.kind: "sorted" is not known'),
        (DEVICE + "shard.kind = 'iid'\nshard.shards = 0\nshard.index = 0\n", 8, "data.shard.shards: expected"),
        (DEVICE + "[resources]\nmost_cores = 2\ntrace = 't.csv'\n", 8,
         "resources.most_cores: leave it out beside trace"),
        (DEVICE + "[resources]\ncore_speed = 0\n", 8, "resources.core_speed: expected a number above 0, got 0"),
        ("log_steps = 1\n" + DEVICE, 1, "log_steps: expected true or false, got a whole number"),
        ("data = 3\n" + DEVICE.partition("[data]")[0], 1, "data: expected a section, got a whole number"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_device_is_named_with_its_line(
    complaint: Callable[..., str], text: str, line: int, said: str
) -> None:
    found = complaint(text, DeviceConfig)
    assert found.startswith(f"config.toml:{line}: ")
    assert said in found


def test_a_key_that_looks_like_another_inside_a_text_does_not_mislead(complaint: Callable[..., str]) -> None:
    misleading = 'state = """\\\nport = -1\\\n[broker]"""\n'
    text = misleading + DEVICE.replace('state = "state"\n', "") + "[broker]\nport = -1\n"
    assert complaint(text, DeviceConfig) == "config.toml:10: broker.port: expected a whole number of at least 1, got -1"


@pytest.mark.timeout(30)
def test_a_mistake_is_found_in_thousands_of_lines(complaint: Callable[..., str]) -> None:
    remarks = "# text\n" * 8000
    text = DEVICE + remarks + "[broker]\nhots = 1\n" + remarks
    assert complaint(text, DeviceConfig).startswith(f"config.toml:{DEVICE.count(chr(10)) + 8002}: unknown key ")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("\n[", 2, ""),
        ("a = ", 1, "put texts in quotes"),
        ("a = 1\n\n\nb = True\nc = 3\n", 4, "Invalid value at column 5; put texts in quotes, and write true"),
        ("a = 1\na = 2\n\n", 2, "this stands here for the second time"),
        ("[a]\nb = 1\n[a]\nc = 1\n", 3, "this section stands here for the second time"),
        ("host = 127.0.0.1\n", 1, "what follows the value does not belong there; put texts in quotes"),
        ("host: pi\n", 1, "write key = value, and sections in [brackets]"),
        ("a = [1,\n2\n", 2, "the list needs its closing ]"),
        ("a = 'x\x00'", 1, ""),
    ],
)
def test_what_is_not_toml_is_said_so_with_its_line(
    complaint: Callable[..., str], text: str, line: int, said: str
) -> None:
    found = complaint(text, DeviceConfig)
    assert found.startswith(f"config.toml:{line}: not TOML: ")
    assert said in found
    assert "\n" not in found


def test_what_is_nested_too_deeply_is_no_configuration(complaint: Callable[..., str]) -> None:
    assert complaint("a = " + "[" * 2000, DeviceConfig).startswith("config.toml: not TOML: nested too deeply")


def test_the_mark_that_some_editors_put_first_does_not_matter(load: Callable[..., Any]) -> None:
    assert load(f"\ufeff{DEVICE}", DeviceConfig).device == "pi-1"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("name = 'mnist'\n", "unknown key name; it belongs below [data]"),
        ("[shard]\nkind = 'iid'\n", "unknown key shard; it belongs below [data]"),
        (
            "[network]\nzoo = 'resnet8'\n",
            "unknown key network; that is a key of federation.toml, and this file is read as device.toml",
        ),
        (
            "[broker]\nfederation = 'x'\n",
            "unknown key broker.federation; it belongs at the top, before the first section",
        ),
        ("[broker]\nname = 'x'\n", "unknown key broker.name; it belongs below [data]"),
        (
            "[broker]\nresources = 1\n",
            "unknown key broker.resources; known here: host, port, ca, certificate, key, allow_plaintext",
        ),
        ("[broker]\nHOST = 'x'\n", "unknown key broker.HOST; did you mean 'host'?"),
        ("[broker]\nhostname = 'x'\n", "unknown key broker.hostname; did you mean 'host'?"),
        ("[broker]\nallow = true\n", "unknown key broker.allow; did you mean 'allow_plaintext'?"),
        ("[resources]\nquiet_hours = '22:00-07:00'\n", 'quiet_hours: expected a list, got text; write ["22:00-07:00"]'),
        ("[resources]\non_battery = false\n", "expected text, got true or false; choose one of pause, train"),
        (
            "[resources]\non_battery = 'Train'\n",
            "\"Train\" is not known; did you mean 'train'? choose one of pause, train",
        ),
        ("[resources]\nmost_memory = 5\n", "most_memory: expected text, got a whole number; put it in quotes"),
        ("[broker]\nhost = 'mqtt://pi.lan'\n", "broker.host: 'mqtt://pi.lan' is more than a name or an address"),
        ("[broker]\nhost = '127.0.0.1:1883'\n", "broker.host: '127.0.0.1:1883' is more than a name or an address"),
        ("[broker]\nhost = ' pi.lan'\n", "broker.host: ' pi.lan' is more than a name or an address"),
        ("[broker]\nhost = 'pi.lan'\n", "broker.host: broker pi.lan: without TLS anybody on the network can read"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(complaint: Callable[..., str], added: str, said: str) -> None:
    text = complaint(added + DEVICE if not added.startswith("[") else DEVICE + added, DeviceConfig)
    assert said in text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_this_machine_has_several_names(load: Callable[..., Any], host: str) -> None:
    assert load(f"{DEVICE}[broker]\nhost = '{host}'\n", DeviceConfig).broker.host == host


TLS = "ca = 'tls/ca.pem'\ncertificate = '/etc/ssl/pi-1.pem'\nkey = 'pi-1.key'\n"


def test_with_certificates_the_broker_may_be_anywhere_and_files_are_beside_the_configuration(
    load: Callable[..., Any], tmp_path: Path
) -> None:
    broker = load(f"{DEVICE}[broker]\nhost = 'pi.lan'\n{TLS}", DeviceConfig).broker
    assert broker.tcp_port == 8883
    assert broker.tls == TlsFiles(tmp_path / "tls" / "ca.pem", Path("/etc/ssl/pi-1.pem"), tmp_path / "pi-1.key")
    assert load(f"{DEVICE}[broker]\nport = 1\n{TLS}", DeviceConfig).broker.tcp_port == 1
    assert load(DEVICE, DeviceConfig).broker.tls is None


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("ca = 'ca.pem'\n", "broker.ca: TLS needs certificate and key as well"),
        ("certificate = 'a'\nkey = 'b'\n", "broker.certificate: TLS needs ca as well"),
        (f"allow_plaintext = true\n{TLS}", "broker.allow_plaintext: leave it out beside ca, certificate and key"),
        ("ca = 'ca.pem'\ncertificate = 'c.pem'\nkey = '~nobody-here/x'\n", "broker.key: '~nobody-here/x' is in a home"),
    ],
)
def test_certificates_are_given_all_or_none(complaint: Callable[..., str], added: str, said: str) -> None:
    assert said in complaint(f"{DEVICE}[broker]\n{added}", DeviceConfig)


@pytest.mark.parametrize("host", ["pi.lan", "192.168.1.9", "2001:db8::7", "fe80::1%eth0"])
def test_another_machine_is_a_broker_when_its_owner_says_so(load: Callable[..., Any], host: str) -> None:
    text = f"{DEVICE}[broker]\nhost = '{host}'\nallow_plaintext = true\n"
    assert load(text, DeviceConfig).broker.host == host


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (DeviceConfig, DEVICE.replace('"state"', '"~nobody-of-this-name/x"'), "state: "),
        (DeviceConfig, DEVICE + "root = '~nobody-of-this-name/x'\n", "data.root: "),
        (DeviceConfig, DEVICE + "[resources]\ntrace = '~nobody-of-this-name/x'\n", "resources.trace: "),
        (DeviceConfig, DEVICE + "[resources]\nprofile = '~nobody-of-this-name/x'\n", "resources.profile: "),
        (FederationConfig, FEDERATION.replace('"state"', '"~nobody-of-this-name/x"'), "state: "),
        (FederationConfig, FEDERATION.replace('zoo = "resnet8"', "file = '~nobody-of-this-name/x'"), "network.file: "),
        (FederationConfig, FEDERATION + "[table]\nfile = '~nobody-of-this-name/x'\n", "table.file: "),
        (FederationConfig, FEDERATION + "[evaluation]\nname = 'npz'\nroot = '~nobody-of-this-name/x'\n",
         "evaluation.root: "),
    ],
)  # fmt: skip
def test_a_home_folder_that_nobody_knows_is_found_before_anything_starts(
    complaint: Callable[..., str], kind: Any, text: str, said: str
) -> None:
    assert f"{said}'~nobody-of-this-name/x' is in a home folder that is not known" in complaint(text, kind)


@pytest.mark.parametrize(
    ("name", "said"),
    [("fasion-mnist", "did you mean 'fashion-mnist'? choose one of fashion-mnist, mnist, cifar10"),
     ("CIFAR-10", "did you mean 'cifar10'?"), ("imagenet", "no dataset is called 'imagenet'; choose one of"),
     ("npz", "npz needs root as well"), ("folder", "folder needs root as well")],
)  # fmt: skip
def test_a_dataset_that_cannot_be_found_is_told_with_its_line(
    complaint: Callable[..., str], name: str, said: str
) -> None:
    text = complaint(DEVICE.replace("mnist", name), DeviceConfig)
    assert text.startswith("config.toml:6: data.name: ")
    assert said in text
    assert said in complaint(FEDERATION + f"[evaluation]\nname = '{name}'\n", FederationConfig)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"device = '\xe9'")
    (tmp_path / "huge.toml").write_bytes(b"#" * (256 * 1024 + 1))
    cases = {
        tmp_path / "missing.toml": "cannot read the configuration: No such file or directory",
        tmp_path: "cannot read the configuration: Is a directory",
        tmp_path / "latin.toml": "cannot read the configuration: byte 10 is not UTF-8 text",
        tmp_path / "huge.toml": "more than the 262144 bytes",
    }
    for path, said in cases.items():
        for read in (lambda path: load_config(path, DeviceConfig), find_role):
            with pytest.raises(ConfigError) as caught:
                read(path)
            assert str(caught.value).startswith(f"{path}: ")
            assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(DEVICE, DeviceConfig), (FEDERATION, FederationConfig), ("[network]\nbroken = 1\n", FederationConfig),
     ("log_steps = true\n", DeviceConfig)],
)  # fmt: skip
def test_the_role_is_found_by_the_keys_that_only_one_has(tmp_path: Path, text: str, kind: Any) -> None:
    (tmp_path / "c.toml").write_text(text)
    assert find_role(tmp_path / "c.toml") is kind


@pytest.mark.parametrize("text", ["", "federation = 'x'\nstate = 's'\n", "[data]\nname = 'x'\n[network]\nzoo = 'x'\n"])
def test_keys_that_do_not_tell_the_role_are_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match="say --role"):
        find_role(tmp_path / "c.toml")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rounds(seconds=3.0),
        lambda: Training(epochs=4.0),
        NetworkChoice,
        lambda: NetworkChoice(file="a", zoo="resnet8"),
        lambda: NetworkChoice(file="a", classes=5),
        lambda: NetworkChoice(zoo="resnet9"),
        lambda: NetworkChoice(zoo="resnet8", std=(1.0, 1.0, 1.0)),
        lambda: TableChoice(file="a", keep_streams=False),
        lambda: TableChoice(draw="x"),
        lambda: TableChoice(name="x"),
        lambda: TableChoice(name=SHIPPED, file="x"),
        lambda: TableChoice(name=SHIPPED, keep_streams=False),
        lambda: Evaluation(root="x"),
        lambda: Evaluation(calibration_images=3),
        lambda: Shard(kind="iid", shards=2, index=2),
        lambda: Resources(trace="x", most_cores=1.0),
        lambda: FederationConfig(
            federation="f", state="s", network=NetworkChoice(zoo="resnet8"),
            ceiling=(CeilingStep(from_share=0.5, ceiling=1.0),),
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_cannot_be_made_in_a_program_either(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


KEYS = sorted({key for kind in (DeviceConfig, FederationConfig) for key in _every_key(kind)} | {"x", "hots", "Port"})
VALUES = [
    "1", "-1", "0.5", "nan", "inf", "true", "'x'", "''", "'a\tb'", "[]", "[1, 'x']", "[[1]]", "{}", "{a = 1}", "'~x/y'",
    "[{from_share = 0, ceiling = 1}]", "2020-01-01", "12:00:00", "9" * 30, "'" + "long" * 2000 + "'",
]  # fmt: skip


@given(
    kind=st.sampled_from([DeviceConfig, FederationConfig]),
    section=st.sampled_from(["", *sorted({"data", "broker", "resources", "network", "table", "rounds", "training"})]),
    entries=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=3),
    doubled=st.booleans(),
)
@settings(max_examples=200)
def test_whatever_is_written_is_sound_or_one_line_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, kind: Any, section: str, entries: dict[str, str], doubled: bool
) -> None:
    lines = [f"{key} = {value}" for key, value in entries.items()]
    header = f"[[{section}]]" if doubled else f"[{section}]"
    base = DEVICE if kind is DeviceConfig else FEDERATION
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join([*lines, base] if not section else [base, header, *lines]))
    try:
        load_config(path, kind)
    except ConfigError as error:
        assert re.match(rf"{re.escape(str(path))}:\d+: \S", str(error))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 9000  # noqa: PT017
