"""The picture of a comparison: latency by percentile and by load, rings beside sockets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, log
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from hdrh.histogram import HdrHistogram
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedFormatter,
    FixedLocator,
    MaxNLocator,
    NullLocator,
    StrMethodFormatter,
)

from stackmap_testbed.comparison.experiment import BACKENDS, Run
from stackmap_testbed.load.generator import LONGEST_NS

COLOURS = {"sockets": "#8a8f98", "stackmap": "#0b6e99"}
LABELS = {"sockets": "plain sockets", "stackmap": "rings (stackmap)"}
_LINES: dict[str, Literal["-", ":"]] = {"p99": "-", "p50": ":"}
_TICKS = (50.0, 90.0, 99.0, 99.9, 99.99)
#: A percentile with fewer slower requests than this is an anecdote.
_ENOUGH = 10


def _curve(histogram: HdrHistogram) -> tuple[list[float], list[float]]:
    """Points (1 / share of slower requests, milliseconds)."""
    last = max(2.0, histogram.get_total_count() / _ENOUGH)
    x = [1.02**step for step in range(ceil(log(last, 1.02)))]
    percentiles = [100 * (1 - 1 / slower) for slower in x]
    values = histogram.get_percentile_to_value_dict(percentiles)
    return x, [values[percentile] / 1e6 for percentile in percentiles]


def _merged(runs: Sequence[Run]) -> HdrHistogram:
    merged = HdrHistogram(1, LONGEST_NS, 3)
    for run in runs:
        merged.decode_and_add(run.histogram)
    return merged


def _draw_percentiles(axes: Axes, runs: Sequence[Run], connections: int) -> None:
    """Plot the closed loop's latencies by percentile."""
    furthest = 2.0
    for backend in BACKENDS:
        chosen = [
            run
            for run in runs
            if (run.backend, run.connections, run.load) == (backend, connections, None)
        ]
        for run in chosen:
            x, y = _curve(HdrHistogram.decode(run.histogram))
            axes.plot(x, y, color=COLOURS[backend], linewidth=0.8, alpha=0.4)
        x, y = _curve(_merged(chosen))
        furthest = max(furthest, x[-1])
        axes.plot(x, y, color=COLOURS[backend], linewidth=2.2)
    axes.set_xscale("log")
    axes.set_xlim(1, furthest)
    ticks = [tick for tick in _TICKS if 1 / (1 - tick / 100) <= furthest]
    axes.xaxis.set_major_locator(FixedLocator([1 / (1 - tick / 100) for tick in ticks]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g} %" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{_connections(connections)}, closed loop", fontsize=11)
    axes.set_xlabel("share of requests answered within this time")
    axes.set_ylabel("latency, ms")
    _tidy(axes)


def _draw_loads(axes: Axes, loads: Sequence[Mapping[str, Any]], connections: int) -> None:
    """Plot the open loop's median and tail at each load at which the server kept up."""
    for backend in BACKENDS:
        for name, style in _LINES.items():
            points = [
                (entry["offered"], entry[backend]["latency_us"][name])
                for entry in loads
                if entry[backend]["latency_us"]
            ]
            axes.errorbar(
                [offered for offered, _ in points],
                [latency["median"] / 1000 for _, latency in points],
                yerr=[
                    [(latency["median"] - latency["min"]) / 1000 for _, latency in points],
                    [(latency["max"] - latency["median"]) / 1000 for _, latency in points],
                ],
                color=COLOURS[backend],
                linestyle=style,
                marker="o",
                markersize=4,
                linewidth=1.6,
                elinewidth=1,
                capsize=3,
            )
    axes.set_xlim(0, max(entry["offered"] for entry in loads) * 1.12)
    _tidy(axes)
    for entry in loads:
        late = [LABELS[name] for name in BACKENDS if entry[name]["saturated_rounds"]]
        if late:
            axes.annotate(
                "saturated:\n" + "\n".join(late),
                (entry["offered"], 0.97),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="top",
                fontsize=8,
                color="#a33418",
            )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    shares = ", ".join(f"{entry['load']:.0%}" for entry in loads)
    axes.set_title(f"{_connections(connections)}, {shares} of the peak", fontsize=11)
    axes.set_xlabel("offered load, requests per second")
    axes.set_ylabel("latency since due, ms")


def _connections(number: int) -> str:
    return f"{number} connection{'s' if number != 1 else ''}"


def _tidy(axes: Axes) -> None:
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(visible=True, color="#e3e5e8", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legends(closed: Axes, opened: Axes | None) -> None:
    sides = [
        Line2D([], [], color=COLOURS[name], linewidth=3, label=LABELS[name]) for name in BACKENDS
    ]
    closed.legend(handles=sides, loc="upper left", frameon=False)
    if opened is not None:
        percentiles = [
            Line2D([], [], color="#4a4f57", linestyle=style, marker="o", markersize=4, label=name)
            for name, style in _LINES.items()
        ]
        opened.legend(handles=percentiles, loc="upper left", frameon=False)


def plot_latency(
    runs: Sequence[Run],
    loads: Sequence[Mapping[str, Any]],
    title: str,
    caveat: str,
    target: Path,
) -> None:
    """Write the picture: above the closed loop, below the open one, a column per connection count.

    Args:
        runs: all.
        loads: what :func:`stackmap_testbed.comparison.summary.loads` makes of them.
        title: above it.
        caveat: below it.
        target: a PNG file.
    """
    counts = list(dict.fromkeys(run.connections for run in runs))
    with mpl.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        layout = ConstrainedLayoutEngine(hspace=0.06, wspace=0.04)
        figure = Figure(figsize=(4.0 * len(counts) + 0.4, 7.8), layout=layout)
        above, below = figure.subplots(2, len(counts), squeeze=False)
        opened: list[Axes] = []
        for column, connections in enumerate(counts):
            _draw_percentiles(above[column], runs, connections)
            stated = [
                entry
                for entry in loads
                if entry["connections"] == connections and entry["load"] is not None
            ]
            if stated:
                _draw_loads(below[column], stated, connections)
                opened.append(below[column])
            else:
                below[column].set_axis_off()
        _legends(above[0], opened[0] if opened else None)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.supxlabel(
            "Closed loop: thin lines are rounds, bold ones all of them. "
            "Open loop: median of rounds and their extremes." + (f"\n{caveat}" if caveat else ""),
            fontsize=9,
            color="#4a4f57",
        )
        figure.savefig(target, dpi=130)
