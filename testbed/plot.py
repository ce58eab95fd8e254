"""The picture of a comparison: latency by percentile, rings beside sockets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from hdrh.histogram import HdrHistogram
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from stackmap_testbed.experiment import BACKENDS, Run
from stackmap_testbed.load import LONGEST_NS

COLOURS = {"sockets": "#8a8f98", "stackmap": "#0b6e99"}
LABELS = {"sockets": "plain sockets", "stackmap": "rings (stackmap)"}
_TICKS = (50.0, 90.0, 99.0, 99.9, 99.99)
#: A percentile with fewer slower requests than this is an anecdote.
_ENOUGH = 10


def _curve(histogram: HdrHistogram) -> tuple[list[float], list[float]]:
    """Points (1 / share of slower requests, milliseconds)."""
    x, y = [], []
    last = max(2.0, histogram.get_total_count() / _ENOUGH)
    slower = 1.0
    while slower <= last:
        x.append(slower)
        y.append(histogram.get_value_at_percentile(100 * (1 - 1 / slower)) / 1e6)
        slower *= 1.02
    return x, y


def _merged(runs: Sequence[Run]) -> HdrHistogram:
    merged = HdrHistogram(1, LONGEST_NS, 3)
    for run in runs:
        merged.decode_and_add(run.histogram)
    return merged


def _draw(axes: Axes, runs: Sequence[Run], connections: int) -> None:
    furthest = 2.0
    for backend in BACKENDS:
        chosen = [run for run in runs if (run.backend, run.connections) == (backend, connections)]
        for run in chosen:
            x, y = _curve(HdrHistogram.decode(run.histogram))
            axes.plot(x, y, color=COLOURS[backend], linewidth=0.8, alpha=0.4)
        x, y = _curve(_merged(chosen))
        furthest = max(furthest, x[-1])
        axes.plot(x, y, color=COLOURS[backend], linewidth=2.2, label=LABELS[backend])
    axes.set_xscale("log")
    axes.set_xlim(1, furthest)
    ticks = [tick for tick in _TICKS if 1 / (1 - tick / 100) <= furthest]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - tick / 100) for tick in ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}%" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title(f"{connections} connection{'s' if connections != 1 else ''}", fontsize=11)
    axes.grid(visible=True, color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plot_latency(runs: Sequence[Run], title: str, caveat: str, target: Path) -> None:
    """Write the picture: a panel per connection count, a thin line per run, a bold one for all."""
    counts = list(dict.fromkeys(run.connections for run in runs))
    with mpl.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.0 * len(counts) + 0.4, 4.5), layout="constrained")
        panels = figure.subplots(1, len(counts), squeeze=False)[0]
        for axes, connections in zip(panels, counts, strict=True):
            _draw(axes, runs, connections)
        panels[0].set_ylabel("latency, milliseconds")
        panels[0].legend(loc="upper left", frameon=False)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.supxlabel(
            "requests answered within this time (thin: each run, bold: all rounds)"
            + (f"\n{caveat}" if caveat else ""),
            fontsize=9,
            color="#4a4f57",
        )
        figure.savefig(target, dpi=130)
