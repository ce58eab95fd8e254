"""The one page that says what a comparison found (``report.html``), from ``report.json``."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2329; max-width: 60rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.sub { color: #5a626b; margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e3e5e8; }
th { font-weight: 600; border-bottom-color: #8a8f98; } th:first-child, td:first-child
{ text-align: left; } td.better { color: #0a6b3d; } td.worse { color: #a33418; }
small { color: #5a626b; } img { max-width: 100%; }
.note { background: #fdf6e3; border-left: 4px solid #d9a514; padding: .6rem 1rem; }
.bad { background: #fdeceb; border-left: 4px solid #c0392b; padding: .6rem 1rem; }
.good { background: #eaf6ef; border-left: 4px solid #1e8e52; padding: .6rem 1rem; }
"""

#: Figure, heading, and whether more is better.
RATIO_COLUMNS = (
    ("requests_per_cpu_second", "requests per server CPU second", True),
    ("throughput", "requests per second", True),
    ("cpu_per_request", "server CPU per request", False),
    ("p99", "p99 latency", False),
)


def verdict(ratio: Mapping[str, float], *, more_is_better: bool) -> str:
    """``better`` or ``worse`` when every round agrees, otherwise nothing."""
    if ratio["min"] > 1:
        return "better" if more_is_better else "worse"
    if ratio["max"] < 1:
        return "worse" if more_is_better else "better"
    return ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _ratio_table(report: Mapping[str, Any]) -> str:
    rows = []
    for connections, ratio in report["ratio"].items():
        row = [_cell(connections)]
        for name, _, more_is_better in RATIO_COLUMNS:
            values = ratio[name]
            row.append(
                _cell(
                    f"{values['median']:.2f}<br><small>{values['min']:.2f} to "
                    f"{values['max']:.2f}</small>",
                    verdict(values, more_is_better=more_is_better),
                )
            )
        rows.append(row)
    return _table(["connections", *(heading for _, heading, _ in RATIO_COLUMNS)], rows)


def _run_table(report: Mapping[str, Any]) -> str:
    rows = []
    for run in report["runs"]:
        latency = run["latency_us"]
        rows.append(
            [
                _cell(run["backend"]),
                _cell(str(run["connections"])),
                _cell(str(run["round"] + 1)),
                _cell(f"{run['requests']:,}"),
                _cell(str(run["errors"]), "worse" if run["errors"] else ""),
                _cell(f"{run['requests_per_second']:,.0f}"),
                _cell(f"{run['server_cpu_us_per_request']:.1f}"),
                *(_cell(f"{latency[name] / 1000:.2f}") for name in ("p50", "p90", "p99", "p999")),
            ]
        )
    return _table(
        ["backend", "conn.", "round", "requests", "errors", "requests/s", "CPU µs/request",
         "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"],
        rows,
    )  # fmt: skip


def _problems(report: Mapping[str, Any]) -> str:
    if report["problems"]:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in report["problems"])
        return f'<div class="bad"><strong>Not all was well.</strong><ul>{items}</ul></div>'
    requests = sum(run["requests"] for run in report["runs"])
    return (
        f'<p class="good">{requests:,} replies, every byte of each compared: none wrong. Both '
        "kernel logs are clean.</p>"
    )


def _paths(report: Mapping[str, Any]) -> str:
    pin, path = report["pin"], report["path"]
    rows = [
        ("payload received through rings, bytes", path["ring_bytes_rx"]),
        ("payload sent through rings, bytes", path["ring_bytes_tx"]),
        ("payload received through sockets, bytes", path["socket_bytes_rx"]),
        ("payload sent through sockets, bytes", path["socket_bytes_tx"]),
        ("transmit buffers handed to TCP and pinned", pin["slots_sent"]),
        ("of these released when the peer acknowledged them", pin["slots_released_by_ack"]),
        ("still pinned after the clients had finished", pin["slots_pinned_at_end"]),
    ]
    return _table(
        ["in the runs on rings", ""],
        ([_cell(label), _cell(f"{value:,}")] for label, value in rows),
    )


def render_html(report: Mapping[str, Any], picture: bytes) -> str:
    """The page, with everything it needs inside."""
    plan, machine = report["plan"], report["machine"]
    image = base64.b64encode(picture).decode()
    caveat = f'<p class="note">{html.escape(report["caveat"])}</p>' if report["caveat"] else ""
    about = [(name.replace("_", " "), html.escape(str(value))) for name, value in machine.items()]
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>stackmap: rings against sockets</title>
<style>{_STYLE}</style></head><body>
<h1>The same server, on rings and on sockets</h1>
<p class="sub">memcached protocol, GETs of {plan["value_size"]} bytes, Linux
{html.escape(report["kernel"])}, {html.escape(report["accel"].upper())}</p>
{_problems(report)}
<h2>Rings over sockets</h2>
{caveat}
{_ratio_table(report)}
<p><small>Median of {plan["rounds"]} rounds, with the smallest and the largest. 1 is equal;
coloured where every round agrees.</small></p>
<p><img alt="latency by percentile, rings and sockets"
 src="data:image/png;base64,{image}"></p>
<h2>Which way the bytes went</h2>
{_paths(report)}
<h2>What was run</h2>
<p>{html.escape(report["method"])}</p>
{_table(["machine", ""], ([_cell(name), _cell(value)] for name, value in about))}
<h2>Every run</h2>
{_run_table(report)}
</body></html>
"""


def write_html(report: Mapping[str, Any], picture: Path, target: Path) -> None:
    """Write the page."""
    target.write_text(render_html(report, picture.read_bytes()), encoding="utf-8")
