"""The picture of profiles: a bar for each server, with its parts on each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from stackmap_testbed.cost.by_part import ALL_PARTS, Profile, heading

#: In the order of the parts, from what is the server's own to what is the kernel's.
_COLOURS = dict(
    zip(
        ALL_PARTS,
        (
            *("#f2c14e", "#f78154", "#d9a5a5", "#0b6e99"),
            *(
                "#b8d8ba",
                "#e4572e",
                "#6a994e",
                "#386641",
                "#a7c957",
                "#9d8189",
                "#5e548e",
                "#be95c4",
            ),
            *("#8d99ae", "#4a4f57", "#adb5bd", "#ced4da", "#000000"),
        ),
        strict=True,
    )
)


def _draw(axes: Axes, profiles: Sequence[Profile]) -> None:
    names = [f"{each.server}\n{each.source}".strip() for each in profiles]
    below = [0.0] * len(profiles)
    for part in ALL_PARTS:
        heights = [each.parts[part] / 1000 for each in profiles]
        axes.bar(range(len(names)), heights, bottom=below, color=_COLOURS[part], label=part)
        below = [bottom + height for bottom, height in zip(below, heights, strict=True)]
    for position, height in enumerate(below):
        axes.annotate(f"{height:.1f}", (position, height), ha="center", va="bottom", fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plot_profiles(groups: Sequence[Sequence[Profile]], title: str, targets: Sequence[Path]) -> None:
    """Write the picture.

    Args:
        groups: the profiles of each size and number of connections, in their order.
        title: above it.
        targets: files, of which the endings say the format.
    """
    bars = [len(group) for group in groups]
    with mpl.rc_context({"font.size": 10, "font.family": "sans-serif"}):
        layout = ConstrainedLayoutEngine(wspace=0.04)
        figure = Figure(figsize=(0.6 * sum(bars) + 0.5 * len(bars) + 3.2, 6.4), layout=layout)
        panels = figure.subplots(
            1, len(groups), sharey=True, squeeze=False, gridspec_kw={"width_ratios": bars}
        )[0]
        for axes, group in zip(panels, groups, strict=True):
            _draw(axes, group)
            axes.set_title(heading(group[0]).replace(", ", ",\n"), fontsize=11)
        panels[0].set_ylabel("thousands of instructions per request")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=9
        )
        figure.suptitle(title, fontsize=13, fontweight="bold")
        for target in targets:
            figure.savefig(target, dpi=130)
