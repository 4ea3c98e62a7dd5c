from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

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

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

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
    assert (device.device, device.data.name, device.broker.port, device.log_steps) == ("pi-1", "mnist", 1883, False)
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
        ("[rounds]\n\n# five\nseconds = 'five'\n", 9, "rounds.seconds: expected `float`, got `str`"),
        ("[roundz]\nseconds = 5\n", 6, "unknown key roundz; did you mean 'rounds'?"),
        ("[broker]\nxyz = 1\n", 7, "unknown key broker.xyz; known here: host, port, allow_plaintext"),
        ("rounds.seconds = true\n", 6, "network.rounds"),
        ("[training]\nbatch = 1.5\n", 7, "training.batch: expected `int`, got `float`"),
        ("[training]\nbatch = 0\n", 7, "training.batch: expected `int` >= 1"),
        ("[training]\nlr = nan\n", 7, "training.lr: expected `float` > 0.0"),
        ("[training]\nlr = inf\n", 7, "training.lr: expected `float` <= 1000.0"),
        ("[training]\naverage = 'median'\n", 7, "training.average: invalid enum value 'median'"),
        ("[table]\ndraw = 'lottery'\n", 7, "table.draw: no policy is called 'lottery'; choose one of ordered"),
        ("training = { batch = 8, lr = 2000 }\n", 6, "network.training"),
        ("[training]\nstatistics_images = -1\n", 7, "training.statistics_images: expected `int` >= 0"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n\n[[ceiling]]\nfrom_share = 0.5\nceiling = 1.5\n", 12,
         "ceiling[1].ceiling: expected `float` <= 1.0"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n[[ceiling]]\nfrom_share = 0.5\n", 9,
         "key ceiling[1].ceiling is missing"),
        ("[[ceiling]]\nfrom_share = 0.0\nceiling = 0.3\n[[ceiling]]\nfrom_share = 0.5\nceilin = 1\n", 11,
         "unknown key ceiling[1].ceilin; did you mean 'ceiling'?"),
        ("[[ceiling]]\nfrom_share = 0.1\nceiling = 0.3\n", 6, "ceiling: the first step must have from_share = 0.0"),
        ("[rounds]\nseconds = 5\nupload_seconds = 5\n", 8,
         "rounds.upload_seconds: 5 leaves no time to train in rounds of 5 seconds"),
        ("[rounds]\nseconds = 4\n", 6, "rounds.upload_seconds: 5 leaves no time to train in rounds of 4 seconds"),
        ("[training]\nepochs = 2\nmost_epochs = 1.5\n", 8, "training.most_epochs: 1.5 is less than epochs, 2"),
        ("mean = [\n  0.1,\n  0.2,\n  0.3,\n]\n", 6, "network.mean: normalising needs std as well"),
        ("in_channels = 1\nmean = [0.1, 0.2]\nstd = [1, 1]\n", 7, "network.mean: give 1 numbers, one per channel"),
        ("mean = [0, 0, 0]\nstd = [1, 1, 0]\n", 7, "network.std[2]: expected `float` >= 1e-06"),
        ("file = 'x'\n", 6, "network.file: give either a file or a name in the zoo, not both"),
        ("[table]\nfile = 'x'\nrows = 3\n", 8, "table.rows: leave it out beside file"),
        ("[table]\nname = 'RESNET'\n", 7, "table.name: no table of the package is called 'RESNET'; there are "),
        (f"[table]\nrows = 8\nname = '{SHIPPED}x'\n", 8, f"'{SHIPPED}x'; did you mean {SHIPPED!r}? there are "),
        (f"[table]\nfile = 'x'\nname = '{SHIPPED}'\n", 8, "table.name: give either a file or the name of a table"),
        (f"[table]\nname = '{SHIPPED}'\ndraw = 'random'\n", 8, "table.draw: leave it out beside name"),
        (f"[table]\nname = '{SHIPPED}'\nrows = 3\n", 8, "table.rows: leave it out beside name"),
        ("[table]\nname = ''\n", 7, "table.name: expected `str` of length >= 1"),
        ("[evaluation]\nimages = 500\n", 7, "evaluation.images: needs the dataset's name as well"),
        ("[evaluation]\nname = 'mnist'\ncalibration_images = 1\n", 8, "evaluation.calibration_images: one image"),
        ("[broker]\nhost = ''\n", 7, "broker.host: expected `str` of length >= 1"),
        ('[broker]\nhost = "a\\u0000b"\n', 7, "broker.host: control characters cannot stand here"),
        ('[broker]\n"port" = 0\n', 7, "broker.port: expected `int` >= 1"),
        ("[broker]\nport = 2020-01-01\n", 7, "broker.port: expected `int`, got `date`"),
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
        (DEVICE + "[data.shard]\nkind = 'sorted'\nshards = 4\nindex = 1\n", 8, "data.shard.kind: invalid enum value"),
        (DEVICE + "shard.kind = 'iid'\nshard.shards = 0\nshard.index = 0\n", 8, "data.shard.shards: expected"),
        (DEVICE + "[resources]\nmost_cores = 2\ntrace = 't.csv'\n", 8,
         "resources.most_cores: leave it out beside trace"),
        (DEVICE + "[resources]\ncore_speed = 0\n", 8, "resources.core_speed: expected `float` > 0.0"),
        ("log_steps = 1\n" + DEVICE, 1, "log_steps: expected `bool`, got `int`"),
        ("data = 3\n" + DEVICE.partition("[data]")[0], 1, "data: expected `object`, got `int`"),
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
    assert complaint(text, DeviceConfig) == "config.toml:10: broker.port: expected `int` >= 1"


@pytest.mark.parametrize("text", ["[", "a = ", "a = 1\na = 2", "\ufeffa = 1", "a = 'x\x00'", "a = " + "[" * 2000])
def test_what_is_not_toml_is_said_so(complaint: Callable[..., str], text: str) -> None:
    assert complaint(text, DeviceConfig).startswith("config.toml: not TOML: ")


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
