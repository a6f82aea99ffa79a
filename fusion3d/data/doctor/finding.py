"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One check of one subject."""

    check: str  # name of the check, as ``examine`` takes it in ``only``, e.g. "mounting"
    subject: str  # e.g. "CAM_FRONT"
    passed: bool | None  # None: there is not enough to check it with; ``detail`` says what is missing
    detail: str  # the figure that was found, and what was expected

    def __str__(self) -> str:
        word = {True: "ok", False: "FAIL", None: "skip"}[self.passed]
        return f"{word:4} {self.check:20} {self.subject:18} {self.detail}"
