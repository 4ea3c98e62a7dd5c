"""Read what an aggregator and its devices wrote down: `rounds.jsonl` and `steps.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from distreal_edge.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["RoundRecord", "Steps", "read_rounds", "read_steps"]

_WHOLE: Final = ("round", "row", "images")
_REAL: Final = ("time_s", "cores", "share", "seconds", "loss")


class RoundRecord(msgspec.Struct, frozen=True):
    """One closed round, as the aggregator wrote it down. Times are Unix seconds.

    `accuracy` and `loss` are those of the model after the round, on `evaluated_images` held-out images; None
    when it was not evaluated. Keys that are not listed here are left aside: the file may say more.
    """

    round: int
    started_s: float
    closed_s: float
    ceiling: float
    selected: tuple[str, ...]
    answered: tuple[str, ...]
    images: int
    mini_batches: int
    accuracy: float | None
    loss: float | None
    evaluated_images: int


# eq=False: comparing arrays gives arrays, so a generated __eq__ could only raise.
@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The mini-batches of one device, in order; every array is [N].

    `time_s` is the Unix time of the decision, `cores` what was available then, `row` the index in the table, `share`
    the row's MACs as a share of the full network's, `seconds` what the mini-batch took.
    """

    time_s: NDArray[np.float64]
    round: NDArray[np.int64]
    cores: NDArray[np.float64]
    row: NDArray[np.int64]
    share: NDArray[np.float64]
    seconds: NDArray[np.float64]
    loss: NDArray[np.float64]
    images: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.time_s)

    def of_round(self, number: int) -> Steps:
        """Return the mini-batches of one round."""
        chosen = self.round == number
        return Steps(**{name: getattr(self, name)[chosen] for name in (*_WHOLE, *_REAL)})


def read_rounds(path: Path) -> tuple[RoundRecord, ...]:
    """Read `rounds.jsonl`, oldest round first; a missing file has no rounds.

    A last line without its line end was cut off by a kill and is left out. Raises StateError for any other damage.
    """
    records = []
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            records.append(msgspec.json.decode(line, type=RoundRecord))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StateError(f"{path}:{number}: not the record of a round: {error}") from None
    return tuple(records)


def read_steps(path: Path) -> Steps:
    """Read `steps.csv`; a missing file has no mini-batches, a last line that was cut off is left out.

    Raises StateError when a column is missing or holds no number.
    """
    table = csv.DictReader(_whole_lines(path))
    columns: dict[str, list[float]] = {name: [] for name in (*_WHOLE, *_REAL)}
    for line in table:
        for name, values in columns.items():
            try:
                values.append(float(line[name]))
            except (KeyError, TypeError, ValueError):
                raise StateError(
                    f"{path}:{table.line_num}: column {name!r} must be a number, not {line.get(name)!r}"
                ) from None
    arrays: dict[str, NDArray[Any]] = {name: np.array(columns[name], np.int64) for name in _WHOLE}
    arrays |= {name: np.array(columns[name], np.float64) for name in _REAL}
    return Steps(**arrays)


def _whole_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeError) as error:
        raise StateError(f"{path}: cannot be read: {error}") from None
    return text[: text.rfind("\n") + 1].splitlines()
