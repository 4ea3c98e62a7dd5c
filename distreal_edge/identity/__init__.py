"""Who is who: a federation's authority, the certificates of its members, and the files that bring them there.

Nothing that runs for long imports this room: `transport` reads what it has written, with Python's own ssl.
"""

from __future__ import annotations

from distreal_edge.identity.certificates import DAYS, Member, Role
from distreal_edge.identity.enrolment import Enrolment, read_enrolment
from distreal_edge.identity.folder import Issued, KeyFolder

__all__ = ["DAYS", "Enrolment", "Issued", "KeyFolder", "Member", "Role", "read_enrolment"]
