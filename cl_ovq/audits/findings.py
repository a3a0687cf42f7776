"""What an audit has found: a verdict on each question, and the numbers behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from cl_ovq.errors import unknown
from cl_ovq.report.table import Column, Table, Text

SOUND, FAULTY, NOT_APPLICABLE = "sound", "faulty", "not applicable"
STYLES = {SOUND: "green", FAULTY: "bold red", NOT_APPLICABLE: "dim"}

Measured = dict[str, int | float | None]


@dataclass(frozen=True)
class Finding:
    """The answer to one question.

    Attributes:
        verdict: `sound`, `faulty` or `not applicable`.
        reason: in a line, why.
        measured: numbers by name; None where one is not known.
        check: its name.
    """

    verdict: str
    reason: str
    measured: Measured
    check: str = ""


def sound(reason: str, **measured: float | None) -> Finding:
    """Return the finding that all is well."""
    return Finding(SOUND, reason, measured)


def faulty(reason: str, **measured: float | None) -> Finding:
    """Return the finding that something is wrong."""
    return Finding(FAULTY, reason, measured)


def not_applicable(reason: str, **measured: float | None) -> Finding:
    """Return the finding that the question does not arise, or cannot be answered."""
    return Finding(NOT_APPLICABLE, reason, measured)


def judged(fault: bool, bad: str, good: str, **measured: float | None) -> Finding:
    """Return `faulty` with the one reason, or `sound` with the other."""
    return faulty(bad, **measured) if fault else sound(good, **measured)


@dataclass(frozen=True)
class Audit:
    """An audit that has ended.

    Attributes:
        name: of what was audited: model, strategy and seed in words.
        shrunk: what the audited runs had less of than the configuration asks for, and why that changes no verdict.
        findings: one for each check, in their order.
    """

    name: str
    shrunk: Sequence[str]
    findings: Sequence[Finding]

    @property
    def sound(self) -> bool:
        """Whether nothing is faulty."""
        return all(finding.verdict != FAULTY for finding in self.findings)

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check, by its name.

        Raises:
            UserError: there is none of that name.
        """
        found = {finding.check: finding for finding in self.findings}
        if check not in found:
            raise unknown("check", check, found)
        return found[check]

    def to_table(self) -> Table:
        """Return a row per check."""
        columns = (Column(heading, right=False) for heading in ("verdict", "measured", "why"))
        caption = f"Audited on a smaller run: {'; '.join(self.shrunk)}." if self.shrunk else ""
        table = Table("check", *columns, title=f"audit of {self.name}", caption=caption)
        for finding in self.findings:
            numbers = tuple(f"{_words(name)} {_written(value)}" for name, value in finding.measured.items())
            verdict = Text(finding.verdict, STYLES[finding.verdict])
            table.add(_words(finding.check), verdict, numbers or "", finding.reason)
        return table

    def to_json(self) -> str:
        """Return everything as JSON."""
        findings = {finding.check: asdict(finding) for finding in self.findings}
        for finding in findings.values():
            del finding["check"]
        tree = {"audited": self.name, "sound": self.sound, "shrunk": [*self.shrunk], "findings": findings}
        return json.dumps(tree, indent=2, allow_nan=False)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _written(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2g}"
