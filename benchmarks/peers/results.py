"""What was measured, and what is said about it: statistics, tables, the section of a file.

What belongs here: plain functions of samples and text; no library, no process, no clock.
"""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SPIKEBIT = "spikebit"


class Row(NamedTuple):
    """One way of running one library on one network."""

    network: str
    library: str
    variant: str
    cores: int
    wall: list[float]  # [s] a step, one number a round
    cpu: list[float]  # [s] a step, all threads
    facts: dict[str, Any]  # what the worker said when it was ready, or {"error": ...}


def is_good(row: Row) -> bool:
    """Whether the row counts: measured to the end, gradients finite and not zero in any layer."""
    return "error" not in row.facts and not row.facts["problem"] and bool(row.wall)


def fastest(rows: Sequence[Row], library: str, clock: str) -> Row | None:
    """The row of a library with the smallest median on a clock, "wall" or "cpu"."""
    mine = [row for row in rows if row.library == library and is_good(row)]
    return min(mine, key=lambda row: statistics.median(getattr(row, clock)), default=None)


def ratio(rows: Sequence[Row], library: str, clock: str) -> float | None:
    """How many times longer than spikebit a library takes, both in their fastest ways."""
    ours, theirs = fastest(rows, SPIKEBIT, clock), fastest(rows, library, clock)
    if ours is None or theirs is None:
        return None
    return statistics.median(getattr(theirs, clock)) / statistics.median(getattr(ours, clock))


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned; all but the first column to the right."""
    cells = [[c.replace("|", "\\|") for c in line] for line in (header, *lines)]
    widths = [max(3, *(len(line[k]) for line in cells)) for k in range(len(header))]

    def show(line: Sequence[str]) -> str:
        parts = [
            c.rjust(w) if k else c.ljust(w)
            for k, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(parts)} |"

    rule = ["-" * (w - 1) + ":" if k else "-" * w for k, w in enumerate(widths)]
    return "\n".join([show(cells[0]), show(rule), *map(show, cells[1:])])


def summary_table(rows: Sequence[Row]) -> str:
    """One line a library: its fastest medians and how they compare with spikebit's."""
    lines = []
    for library in dict.fromkeys(row.library for row in rows):
        mine = [row for row in rows if row.library == library]
        line = [library]
        for clock in ("wall", "cpu"):
            best, times = fastest(rows, library, clock), ratio(rows, library, clock)
            if best is None:
                reason = mine[0].facts.get("error") or mine[0].facts["problem"]
                line += ["", reason.split(" (")[0] if clock == "wall" else "", ""]
                continue
            line += [
                f"{1e3 * statistics.median(getattr(best, clock)):.1f}",
                way_of(best),
                "" if times is None else f"{times:.2f}",
            ]
        lines.append(line)
    header = ["library", "wall [ms]", "run as", "/ spikebit", "CPU [ms]", "run as", "/ spikebit"]
    return table(header, lines)


def detail_table(rows: Sequence[Row]) -> str:
    """One line a way of running: medians with quartiles, and what was checked."""
    lines = []
    for row in rows:
        if "error" in row.facts:
            lines.append([name_of(row), row.facts["error"].split(" (")[0], *[""] * 4])
            continue
        norms = row.facts["gradient_norms"]
        lines.append(
            [
                name_of(row),
                *(_with_quartiles(samples) for samples in (row.wall, row.cpu)),
                ", ".join(f"{100 * rate:.1f}" for rate in row.facts["firing_rates"]),
                f"{row.facts['loss']:.3f}",
                row.facts["problem"] or ", ".join(f"{k} {norms[k]:.4g}" for k in sorted(norms)),
            ]
        )
    header = ["run", "wall [ms]", "CPU [ms]", "firing rates [%]", "loss", "gradient norms"]
    return table(header, lines)


def _with_quartiles(samples: Sequence[float]) -> str:
    low, median, high = (1e3 * t for t in spread(samples))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def way_of(row: Row) -> str:
    return f"{row.variant}, {row.cores} core{'s' * (row.cores > 1)}"


def name_of(row: Row) -> str:
    return f"{row.library}, {way_of(row)}"


def replace_section(text: str, name: str, body: str) -> str:
    """The text with what stands between the markers of a section replaced, all else untouched.

    Raises:
        ValueError: if the markers are not one begin and, after it, one end; without any, the
            section is added at the end.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n\n{body}\n\n{end}"
    if begin not in text and end not in text:
        return f"{text.rstrip()}\n\n{section}\n" if text.strip() else f"{section}\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found or text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"needs the line {begin} once and after it the line {end} once, or none.")
    return f"{before}{section}{after}"


def write_section(path: Path, name: str, body: str | None) -> None:
    """Replaces a section of a file, or of a new one; None only tries whether that can be done.

    Raises:
        OSError: if the file cannot be read or its folder not be written to.
        ValueError: as in `replace_section`.
    """
    text = path.read_text() if path.exists() else ""
    new = path.with_name(f"{path.name}.new")
    new.write_text(replace_section(text, name, body or ""))
    if body is None:
        new.unlink()
    else:
        new.replace(path)


def writable(path: Path | None, name: str) -> bool:
    """Whether `write_section` will do, or nothing is to be written; else says why not."""
    try:
        if path is not None:
            write_section(path, name, None)
    except (OSError, ValueError) as error:
        print(f"--write {path}: {error}", file=sys.stderr)
        return False
    return True


def as_json(row: Row) -> dict[str, Any]:
    """A row for `--json`: times in ms."""
    value: dict[str, Any] = {**row._asdict(), **row.facts}
    for clock in ("wall", "cpu"):
        samples = value.pop(clock)
        value[f"{clock}_ms"] = 1e3 * statistics.median(samples) if samples else None
        value[f"{clock}_ms_rounds"] = [1e3 * t for t in samples]
    del value["facts"]
    return value
