"""Judge whether a profile is of this very board, and of the table that it is used with."""

from __future__ import annotations

import queue
import secrets
import time
from typing import TYPE_CHECKING, Final

from distreal_edge.doctor.finding import Finding
from distreal_edge.errors import ProtocolError
from distreal_edge.transport import Manifest, Message, Session, Topics, decode

if TYPE_CHECKING:
    from distreal_edge.dropout import Profile

__all__ = ["judge_profile", "read_table_digest"]

_PATIENCE_S: Final = 3.0


def read_table_digest(federation: str, **broker: object) -> str | None:
    """Return the digest of the table that a federation trains with, as its broker has it; None when nobody says.

    `broker` holds a `Session`'s connection arguments.
    """
    topic = Topics(federation).round
    with Session(client_id=f"doctor-{secrets.token_hex(8)}", **broker) as session:  # type: ignore[arg-type]
        session.subscribe(topic)
        give_up_s = time.monotonic() + _PATIENCE_S
        while (left_s := give_up_s - time.monotonic()) > 0.0:
            try:
                event = session.events.get(timeout=left_s)
                if isinstance(event, Message):
                    return decode(Manifest, event.payload, where=topic).table.digest
            except (queue.Empty, ProtocolError):
                return None
    return None


def judge_profile(profile: Profile, processor: str, measure_again: str, *, table: str | None = None) -> Finding:
    """Say whether a profile holds here; `table` is the digest of the table in use, None when it is not known."""
    found = f"measured on {profile.machine.processor} with {profile.instruction_set} kernels"
    if profile.machine.processor != processor:
        return Finding("profile", f"{found}; this is {processor}", f"measure it on this board: {measure_again}")
    if table is not None and profile.table != table:
        found = f"belongs to the table {profile.table[:12]}, the federation trains with {table[:12]}"
        return Finding("profile", found, f"measure that table: {measure_again}")
    return Finding("profile", found if table is None else f"{found}, and of the federation's table")
