"""What compute-sanitizer prints, read: findings with their place, and whether there is a verdict at all.

Sources: "Compute Sanitizer" of NVIDIA's documentation, the examples of memcheck, racecheck, initcheck and synccheck.
Versions differ in how they name a place: `at kernel+0xec0 in file.py:43`, `at kernel(float *)+0x70`,
`at 0xda0 in file.py:43:kernel`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["DONE", "RAN", "Finding", "Findings", "parse"]

PREFIX = "========="
RAN = "sanitized:"
"""How the watched program begins a line for each call that it has made."""

DONE = "sanitized all"
"""What it prints at its end."""

_HEAD = re.compile(
    r"(?:Error: |Warning: |Fatal: )?"
    r"(Invalid __\w+__ .*|Uninitialized .*|Race reported between .*|Potential \w+ hazard .*|Barrier error .*"
    r"|Malloc/Free error .*)"
)
_PLACE = re.compile(r"\s+(?:at |and \w+ access at )(.+)")
_SUMMARY = re.compile(r"(?:RACECHECK|ERROR) SUMMARY: (\d+) (?:hazards?|errors?)")
_REFUSALS = ("Device not supported", "device is not supported", "No attachable process found", "not supported on this",
             "Unable to find injection library")  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        what: "Invalid __global__ read of size 16 bytes".
        where: "matmul_kernel+0xec0 in matmul.py:43"; "no place given".
    """

    what: str
    where: str


@dataclass(frozen=True)
class Findings:
    """A whole output.

    Attributes:
        findings: those that were printed.
        count: those that the tool counted; the ones printed, where it came to no summary.
        summary: whether it came to one.
        ran: calls that the program told of.
        complete: the program came to its end.
        refusal: why the tool cannot work here, or None.
    """

    findings: tuple[Finding, ...]
    count: int
    summary: bool
    ran: tuple[str, ...]
    complete: bool
    refusal: str | None

    def listed(self) -> list[dict[str, str]]:
        """Ready for JSON; the same finding of many threads once."""
        return [{"what": found.what, "where": found.where} for found in dict.fromkeys(self.findings)]


def parse(output: str) -> Findings:
    """Read everything that the tool and the program printed."""
    findings: list[Finding] = []
    what: str | None = None
    count: int | None = None
    refusal: str | None = None
    for line in output.splitlines():
        if not line.startswith(PREFIX):
            continue
        text = line.removeprefix(PREFIX)
        if found := _SUMMARY.search(text):
            count = int(found[1])
        if refusal is None and any(words in text for words in _REFUSALS):
            refusal = text.strip()[:200]
        if found := _HEAD.match(text.strip()):
            if what is not None:
                findings.append(Finding(what, "no place given"))
            what, race, place = found[1].partition(" at ") if found[1].startswith("Race") else (found[1], "", "")
            if race:
                findings.append(Finding(f"{what} and another", place.strip()))
                what = None
        elif what is not None and (found := _PLACE.match(text)):
            findings.append(Finding(what, found[1].strip()))
            what = None
    if what is not None:
        findings.append(Finding(what, "no place given"))
    lines = [line.strip() for line in output.splitlines()]
    ran = tuple(line.removeprefix(RAN).strip() for line in lines if line.startswith(RAN))
    known = len(findings) if count is None else max(count, len(findings))
    return Findings(tuple(findings), known, count is not None, ran, DONE in lines, refusal)
