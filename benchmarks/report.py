"""The table and the plot of recorded costs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.workloads import WORKLOADS


def ratios(path: Path, column: str) -> dict[str, float]:
    """For each method a quantity as a ratio to that of a dropout step."""
    rows = {row["method"]: row[column] for row in json.loads(path.read_bytes())["rows"]}
    return {method: value / rows["dropout"] for method, value in rows.items()}


def report(folder: Path) -> None:
    """Print the table of time and memory, and draw the plot beside the results."""
    paths = {name: folder / f"{name}.json" for name in WORKLOADS}
    found = {name: path for name, path in paths.items() if path.exists()}
    if not found:
        return
    for column in ("seconds", "wall", "peak"):
        table = {name: ratios(path, column) for name, path in found.items()}
        methods = list(dict.fromkeys(m for line in table.values() for m in line))
        print(f"\n{column}, ratio to a dropout step")
        print(" " * 24 + "".join(f"{name:>17}" for name in found))
        for method in methods:
            cells = (f"{table[n][method]:17.2f}" if method in table[n] else " " * 17 for n in found)
            print(f"{method:24}" + "".join(cells))
    _plot(found, folder / "cost.png")


def _plot(found: dict[str, Path], to: Path) -> None:
    import matplotlib.pyplot as plt

    shown = ("both/central", "both/even_odd", "both/published")
    _, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for axis, column, goal in zip(axes, ("seconds", "peak"), (2.0, 2.2), strict=True):
        for i, path in enumerate(found.values()):
            values = ratios(path, column)
            for method, marker in zip(shown, "os^", strict=True):
                if method in values:
                    axis.plot(values[method], i, marker, color=f"C{shown.index(method)}",
                              label=method.removeprefix("both/") if i == 0 else None)  # fmt: skip
        axis.axvline(goal, color="gray", lw=1)
        axis.set(xscale="log", xlabel=f"{'time' if column == 'seconds' else 'memory'} / dropout")
    axes[0].set_yticks(range(len(found)), list(found))
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].legend(handles, labels)
    plt.savefig(to, dpi=120)
    plt.close()
