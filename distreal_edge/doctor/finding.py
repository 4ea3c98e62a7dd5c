"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table. `remedy` says how to mend what was found, and is None when all is well."""

    check: str
    found: str
    remedy: str | None = None

    @property
    def passed(self) -> bool:
        """Return whether all is well."""
        return self.remedy is None
