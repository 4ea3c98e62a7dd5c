from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from distreal_edge import __version__, zoo
from distreal_edge.cli import cli as group
from distreal_edge.durable import held_folder
from distreal_edge.search import shipped_tables, uniform_table

if TYPE_CHECKING:
    from collections.abc import Callable

Run = "Callable[..., subprocess.CompletedProcess[str]]"

FEDERATION = """
federation = "farm"
state = "state"
[network]
zoo = "resnet8"
"""
DEVICE = """
federation = "farm"
device = "pi-1"
state = "state"
[data]
name = "npz"
root = "{root}"
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    pixels, labels = np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def to_file(text: str) -> str:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return str(path)

    return to_file


def failed(result: Any, code: int, said: str) -> None:
    """Hold that a command ended with this code, and one line that says why."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[-1].startswith("distreal-edge: ")
    assert said in lines[-1]
    assert result.stdout == ""


VERBS = ("aggregate", "bench", "check-config", "demo", "doctor", "profile", "record", "run", "status", "version")


def test_every_verb_is_listed_with_what_it_does() -> None:
    shown = CliRunner().invoke(group, ["--help"])
    assert shown.exit_code == 0
    for verb in VERBS:
        assert any(line.startswith(f"  {verb} ") and len(line.split()) > 3 for line in shown.output.splitlines())


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_explains_itself(verb: str, flag: str) -> None:
    shown = CliRunner().invoke(group, [verb, flag])
    assert shown.exit_code == 0
    assert f"{verb} [OPTIONS]" in shown.output


def test_help_and_import_need_no_pytorch(cli_without: Run) -> None:
    assert cli_without("torch", "--help").returncode == 0
    code = (
        "import sys, distreal_edge, distreal_edge.cli.run, distreal_edge.cli.aggregate, distreal_edge.config, "
        "distreal_edge.aggregator, distreal_edge.device; sys.exit('torch' in sys.modules)"
    )
    where = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=where, timeout=60).returncode == 0


def test_the_version_is_printed_for_people_and_for_programs() -> None:
    plain = CliRunner().invoke(group, ["version"])
    assert plain.output.startswith(f"distreal-edge {__version__} (")
    found = json.loads(CliRunner().invoke(group, ["version", "--json"]).output)
    assert found["version"] == __version__
    assert set(found) == {"version", "native", "instruction_set"}


def test_without_a_verb_the_help_is_shown(cli: Run) -> None:
    shown = cli()
    assert shown.returncode == 2
    assert "Commands:" in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'"),
        (["run"], "Missing option '--config'"),
        (["aggregate", "--confg", "x"], "No such option"),
        (["check-config"], "Missing argument"),
        (["check-config", "x", "--role", "king"], "'king' is not one of"),
        (["version", "--json", "more"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_one_line(cli: Run, arguments: list[str], said: str) -> None:
    failed(cli(*arguments), 2, said)


@pytest.mark.parametrize("verb", [["run", "--config"], ["aggregate", "--config"], ["check-config"]])
def test_a_missing_configuration_is_one_line(cli: Run, verb: list[str]) -> None:
    failed(cli(*verb, "nowhere.toml"), 2, "nowhere.toml: cannot read the configuration: No such file")


def test_a_wrong_configuration_is_one_line_with_its_place(cli: Run, write: Any) -> None:
    path = write(FEDERATION + "[rounds]\nsecods = 3\n")
    for verb in (["aggregate", "--config"], ["check-config"]):
        failed(cli(*verb, path), 2, f"{path}:7: unknown key rounds.secods; did you mean 'seconds'?")


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_a_broker_elsewhere_in_plain_text_must_be_allowed(cli: Run, write: Any, images: Path, verb: str) -> None:
    text = (DEVICE.format(root=images) if verb == "run" else FEDERATION) + '[broker]\nhost = "192.0.2.1"\n'
    for arguments in ([verb, "--config"], ["check-config"]):
        failed(cli(*arguments, write(text)), 2, "broker 192.0.2.1: without TLS anybody on the network can read")


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_a_missing_dataset_is_one_line_that_says_how_to_get_it(cli: Run, write: Any, verb: str, tmp_path: Path) -> None:
    if verb == "run":
        text = DEVICE.format(root=tmp_path / "none").replace("npz", "fashion-mnist")
    else:
        text = FEDERATION + f'[evaluation]\nname = "fashion-mnist"\nroot = "{tmp_path}/none"\n'
    failed(cli(verb, "--config", write(text)), 4, "apt install dataset-fashion-mnist")


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_a_state_folder_in_use_is_one_line(cli: Run, write: Any, verb: str, images: Path, tmp_path: Path) -> None:
    text = DEVICE.format(root=images) if verb == "run" else FEDERATION
    with held_folder(tmp_path / "state"):
        failed(cli(verb, "--config", write(text)), 8, "in use by another distreal-edge")


def test_a_state_folder_that_cannot_be_made_is_one_line(cli: Run, write: Any, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    failed(cli("aggregate", "--config", write(FEDERATION)), 8, "state")


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_programs_that_train_and_evaluate_need_no_pytorch(
    cli_without: Run, write: Any, verb: str, images: Path, tmp_path: Path
) -> None:
    text = DEVICE.format(root=images)
    if verb == "aggregate":
        text = FEDERATION + f'image_size = 8\nclasses = 2\n[evaluation]\nname = "npz"\nroot = "{images}"\n'
    with held_folder(tmp_path / "state"):  # the last thing to be looked at
        result = cli_without("torch", verb, "--config", write(text))
    assert result.returncode == 8
    assert "in use by another distreal-edge" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("verb", ["run", "aggregate"])
def test_an_instruction_set_that_does_not_exist_is_said_before_a_program_starts(
    cli: Run, write: Any, verb: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTREAL_EDGE_INSTRUCTION_SET", "abacus")
    text = DEVICE.format(root=images)
    if verb == "aggregate":
        text = FEDERATION + f'image_size = 8\nclasses = 2\n[evaluation]\nname = "npz"\nroot = "{images}"\n'
    failed(cli(verb, "--config", write(text)), 2, "abacus is not an instruction set")


def test_images_that_do_not_fit_the_network_are_one_line(cli: Run, write: Any, images: Path) -> None:
    text = FEDERATION + f'[evaluation]\nname = "npz"\nroot = "{images}"\n'
    failed(cli("aggregate", "--config", write(text)), 4, "its images are [3, 8, 8], the network takes [3, 32, 32]")


def test_a_trace_that_is_missing_is_one_line(cli: Run, write: Any, images: Path) -> None:
    text = DEVICE.format(root=images) + '[resources]\ntrace = "nowhere.csv"\n'
    for arguments in (["run", "--config"], ["check-config"]):
        said = f"config.toml:{len(text.splitlines())}: resources.trace: nowhere.csv: cannot read the trace"
        failed(cli(*arguments, write(text)), 2, said)


def test_beside_a_trace_of_the_command_line_what_tells_of_this_machine_is_left_alone(
    cli: Run, write: Any, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "trace.csv").write_text("seconds,cores\n0,1\n")
    text = DEVICE.format(root=images) + '[resources]\nprofile = "nowhere.json"\n'
    said = f"config.toml:{len(text.splitlines())}: resources.profile: nowhere.json: cannot read the profile"
    failed(cli("run", "--config", write(text)), 2, said)
    with held_folder(tmp_path / "state"):  # the last thing to be looked at
        result = cli("run", "--config", write(text), "--trace", "trace.csv")
    assert result.returncode == 8
    assert "follows trace.csv; limits and profile of this machine do not count" in caplog.text


def test_check_config_finds_whose_file_it_is(cli: Run, write: Any, images: Path) -> None:
    for text, whose in ((DEVICE.format(root=images), "a device"), (FEDERATION, "the federation")):
        path = write(text)
        shown = cli("check-config", path)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert shown.stdout == f"{path}: a sound configuration of {whose}\n"
    failed(cli("check-config", path, "--role", "device"), 2, "unknown key network")


def test_check_config_reads_the_files_that_are_named(cli: Run, write: Any, tmp_path: Path) -> None:
    network = zoo.resnet8(image_size=8)
    network.save(tmp_path / "net.safetensors")
    uniform_table(network, rows=2).save(tmp_path / "table.json")
    files = FEDERATION.replace('zoo = "resnet8"', 'file = "net.safetensors"') + '[table]\nfile = "table.json"\n'
    assert cli("check-config", write(files)).returncode == 0
    failed(
        cli("check-config", write(files.replace("net.saf", "no.saf"))),
        3,
        "network.file: no.safetensors: cannot read the network",
    )
    failed(
        cli("check-config", write(files.replace("table.json", "no.json"))),
        5,
        "table.file: no.json: cannot read the table",
    )
    other = files.replace('file = "net.safetensors"', 'zoo = "resnet20"')
    failed(cli("check-config", write(other)), 5, "table.file: table.json: the table belongs to the network")
    (tmp_path / "net.safetensors").write_bytes(b"damaged")
    failed(cli("check-config", write(files)), 3, "net.safetensors: ")


def test_check_config_looks_for_images_where_they_are_said_to_be(cli: Run, write: Any, tmp_path: Path) -> None:
    text = DEVICE.format(root=tmp_path / "none.npz")
    failed(cli("check-config", write(text)), 4, f"data.root: there is neither a file nor a folder {tmp_path}/none.npz")
    text = FEDERATION + f'[evaluation]\nname = "npz"\nroot = "{tmp_path}/none.npz"\n'
    failed(cli("check-config", write(text)), 4, "evaluation.root: there is neither a file nor a folder")
    text = DEVICE.format(root=tmp_path / ("a" * 300))
    failed(cli("check-config", write(text)), 4, "cannot be looked for: File name too long")


def test_check_config_holds_a_table_of_the_package_against_the_network(cli: Run, write: Any) -> None:
    name = next(name for name in shipped_tables() if name.startswith("resnet20-cifar10-"))
    sound = f"""\
federation = "farm"
state = "state"
[network]
zoo = "resnet20"
crop_padding = 4
[table]
name = "{name}"
"""
    assert cli("check-config", write(sound)).returncode == 0
    other = sound.replace('"resnet20"', '"resnet8"')
    failed(
        cli("check-config", write(other)), 5, f"config.toml:7: table.name: {name}: the table belongs to the network "
    )
    misspelt = sound.replace(name, f"{name}s")
    failed(cli("check-config", write(misspelt)), 2, "config.toml:7: table.name: no table of the package is called ")


def test_check_config_finds_that_nobody_would_measure_statistics(cli: Run, write: Any) -> None:
    text = FEDERATION + "[training]\nstatistics_images = 0\n"
    failed(cli("check-config", write(text)), 2, "training.statistics_images: 0 leaves nobody to measure")
    network_without_batch_norm = text.replace("resnet8", "femnist_cnn").replace("[train", "image_size = 28\n[train")
    assert cli("check-config", write(network_without_batch_norm)).returncode == 0


def test_a_network_that_cannot_be_is_one_line(cli: Run, write: Any) -> None:
    text = FEDERATION.replace("resnet8", "vgg_small") + "image_size = 1\n"
    failed(cli("check-config", write(text)), 3, "")


@pytest.mark.parametrize(("verb", "text"), [("run", DEVICE), ("aggregate", FEDERATION)])
def test_where_the_log_is_json_so_is_the_line_that_says_why_it_ends(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    write: Callable[[str], str],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    text: str,
) -> None:
    path, root = write(text.format(root=images)), logging.getLogger()
    with held_folder(tmp_path / "state"):
        for named, code, said in [(path, 8, "in use by another distreal-edge"), ("no\nsuch.toml", 2, "no?such.toml: ")]:
            with monkeypatch.context() as patch:  # as in a process of its own, where nobody else logs
                patch.setattr(root, "handlers", [])
                patch.setattr(root, "level", root.level)
                ended = cli(verb, "--log-format", "json", "--config", named)
            lines = [json.loads(line) for line in ended.stderr.splitlines()]
            assert ended.returncode == code
            assert set(lines[-1]) == {"time", "level", "logger", "message"}
            assert (lines[-1]["level"], lines[-1]["logger"]) == ("error", "distreal_edge")
            assert said in lines[-1]["message"]
