"""Rows of a sweep as tables: one line per configuration, one column per target."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def cell(row: Row | None, recovery: str | None = None) -> str:
    """``top-1 % / agreement % [params, MACs kept]``; ``~`` where images were left out."""
    if row is None:
        return ""
    if "failed" in row:
        return "cannot"
    found = row["recovered"].get(recovery, {}) if recovery else row
    if not found:
        return ""
    mark = "~" if found.get("examples", 0) < row.get("images", 0) else ""
    kept = f" [{row['params_fraction']:.3f}, {row['macs_fraction']:.3f}]"
    return f"{mark}{100 * found['top1']:.2f} / {100 * found['agreement']:.1f}{kept}"


def pivot(
    rows: Iterable[Row], targets: Sequence[float], recovery: str | None = None
) -> list[tuple[str, list[str]]]:
    """Per label, in the order in which they come, its cells over ``targets`` and a last one with seconds."""
    by_label: dict[str, dict[float, Row]] = {}
    for row in rows:
        by_label.setdefault(row["label"], {})[row["target"]] = row
    lines = []
    for label, found in by_label.items():
        spent = [sum(r["seconds"].values()) for r in found.values() if "seconds" in r]
        seconds = f"{sorted(spent)[len(spent) // 2]:.1f}" if spent else ""
        lines.append((label, [*(cell(found.get(target), recovery) for target in targets), seconds]))
    return lines


def markdown(head: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A Markdown table."""
    body = [f"| {label} | " + " | ".join(cells) + " |" for label, cells in lines]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]) + "\n"


def text(head: Sequence[str], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The same, aligned for a terminal."""
    table = [list(head), *([label, *cells] for label, cells in lines)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    )


def write_csv(rows: Iterable[Row], path: Path) -> None:
    """One line per row, one column per figure; what a recovery reached in columns of its own."""
    flat = []
    for row in rows:
        line = {k: v for k, v in row.items() if not isinstance(v, (dict, list))}
        line["seconds"] = round(sum(row.get("seconds", {}).values()), 3)
        for name, found in row.get("recovered", {}).items():
            line |= {f"{name}_{key}": value for key, value in found.items()}
        flat.append(line)
    columns = list(dict.fromkeys(key for line in flat for key in line))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
