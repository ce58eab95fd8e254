"""The one page that says what a comparison found (``report.html``), from ``report.json``."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stackmap_testbed.comparison.experiment import BACKENDS
from stackmap_testbed.comparison.summary import describe_load

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2329; max-width: 64rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2rem; }
p.sub { color: #5a626b; margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid #e3e5e8; }
th { font-weight: 600; border-bottom-color: #8a8f98; vertical-align: bottom; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: nowrap; }
td.first { vertical-align: top; border-bottom-color: #8a8f98; }
tr.last td { border-bottom-color: #8a8f98; }
tr.ratio td { background: #f5f7f9; font-weight: 600; } tr.ratio small { font-weight: 400; }
td.better { color: #0a6b3d; } td.worse { color: #a33418; } td.none { color: #8a8f98; }
table.about td { text-align: left; } table.about td:first-child { white-space: nowrap; }
table.runs { font-size: .8rem; } table.runs th, table.runs td { padding: .2rem .4rem; }
small { color: #5a626b; white-space: nowrap; } img { max-width: 100%; }
.note { background: #fdf6e3; border-left: 4px solid #d9a514; padding: .6rem 1rem; }
.bad { background: #fdeceb; border-left: 4px solid #c0392b; padding: .6rem 1rem; }
.good { background: #eaf6ef; border-left: 4px solid #1e8e52; padding: .6rem 1rem; }
"""

#: Figure, heading, and whether more is better.
RATIO_COLUMNS = (
    ("requests_per_cpu_second", "requests per server CPU second", True),
    ("throughput", "requests per second", True),
)
LOAD_COLUMNS = (
    ("p50", "p50", False),
    ("p99", "p99", False),
    ("p999", "p99.9", False),
    ("requests_per_cpu_second", "requests per server CPU second", True),
)
LABELS = {"sockets": "sockets", "stackmap": "rings"}
_ACCELERATORS = {"tcg": "TCG, emulated in software", "kvm": "KVM"}


def verdict(ratio: Mapping[str, float], *, more_is_better: bool) -> str:
    """``better`` or ``worse`` when every round agrees, otherwise nothing."""
    if ratio["min"] > 1:
        return "better" if more_is_better else "worse"
    if ratio["max"] < 1:
        return "worse" if more_is_better else "better"
    return ""


def saturation(side: Mapping[str, Any], rounds: int) -> str:
    """Say in how many rounds a backend did not keep up with an open loop; empty if it did."""
    late = side["saturated_rounds"]
    if not late:
        return ""
    return f"saturated in {late} of {rounds}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _spread(values: Mapping[str, float], form: str, scale: float = 1) -> str:
    low, middle, high = (format(values[at] / scale, form) for at in ("min", "median", "max"))
    return f"{middle}<br><small>{low} to {high}</small>"


def _ratio_cells(
    ratio: Mapping[str, Mapping[str, float]], columns: Sequence[tuple[str, str, bool]]
) -> list[str]:
    return [
        _cell(_spread(ratio[name], ".2f"), verdict(ratio[name], more_is_better=more_is_better))
        for name, _, more_is_better in columns
    ]


def _ratio_table(report: Mapping[str, Any]) -> str:
    rows = (
        [_cell(connections), *_ratio_cells(ratio, RATIO_COLUMNS)]
        for connections, ratio in report["ratio"].items()
    )
    return _table(["connections", *(heading for _, heading, _ in RATIO_COLUMNS)], rows)


def _load_rows(entry: Mapping[str, Any]) -> Iterable[str]:
    """A row for each backend, and one for their ratio."""
    offered = "" if entry["offered"] is None else f"<br><small>{entry['offered']:,.0f} / s</small>"
    yield (
        f'<tr><td class="first" rowspan="3">{entry["connections"]}</td>'
        f'<td class="text first" rowspan="3">{describe_load(entry["load"])}{offered}</td>'
    )
    for backend in BACKENDS:
        side = entry[backend]
        if backend != BACKENDS[0]:
            yield "<tr>"
        yield _cell(LABELS[backend], "text") + _cell(_spread(side["achieved"], ",.0f"))
        if late := saturation(side, entry["rounds"]):
            yield f'<td class="worse" colspan="3">{late} rounds</td>'
        else:
            latency = side["latency_us"]
            yield from (
                _cell(_spread(latency[name], ".2f", 1000)) for name in ("p50", "p99", "p999")
            )
        yield _cell(_spread(side["requests_per_cpu_second"], ",.0f")) + "</tr>"
    yield f'<tr class="last ratio">{_cell("rings / sockets", "text")}<td></td>'
    if entry["ratio"] is None:
        yield '<td class="none" colspan="4">none: not both kept up</td></tr>'
    else:
        # The closed loop's is in a table of its own.
        columns = LOAD_COLUMNS[:-1] if entry["load"] is None else LOAD_COLUMNS
        yield "".join(_ratio_cells(entry["ratio"], columns))
        yield "</tr>" if entry["load"] is not None else "<td></td></tr>"


def _load_table(report: Mapping[str, Any]) -> str:
    head = ["connections", "load, requests offered", "server", "requests / s achieved", "p50, ms",
            "p99, ms", "p99.9, ms", "requests per server CPU s"]  # fmt: skip
    rows = "".join("".join(_load_rows(entry)) for entry in report["loads"])
    top = "".join(
        f'<th class="text">{cell}</th>' if at in (1, 2) else f"<th>{cell}</th>"
        for at, cell in enumerate(head)
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"


def _run_table(report: Mapping[str, Any]) -> str:
    rows = []
    for run in report["runs"]:
        latency = run["latency_us"]
        before, after = run["load_average"]
        offered = "closed" if run["offered"] is None else f"{run['offered']:,.0f}"
        rows.append(
            [
                _cell(LABELS[run["backend"]]),
                _cell(str(run["connections"])),
                _cell(offered),
                _cell(str(run["round"] + 1)),
                _cell(f"{run['requests']:,}"),
                _cell(str(run["errors"]), "worse" if run["errors"] else ""),
                _cell(f"{run['requests_per_second']:,.0f}"),
                *(_cell(f"{latency[name] / 1000:.2f}") for name in ("p50", "p90", "p99", "p999")),
                *(
                    _cell(f"{run[f'{host}_cpu_seconds'] / run['observed_seconds']:.0%}")
                    for host in ("server", "client")
                ),
                _cell(f"{before:.1f}, {after:.1f}"),
            ]
        )
    return _table(
        ["server", "conn.", "offered / s", "round", "requests", "errors", "requests / s",
         "p50, ms", "p90, ms", "p99, ms", "p99.9, ms", "server CPU", "client CPU",
         "load average"],
        rows,
        "runs",
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
        ("payload received through rings, bytes", path["rx_bytes"]),
        ("payload sent through rings, bytes", path["tx_bytes"]),
        ("payload received through sockets, bytes", path["socket_rx_bytes"]),
        ("payload sent through sockets, bytes", path["socket_tx_bytes"]),
        ("transmit buffers handed to TCP and pinned", pin["slots_sent"]),
        ("of these released when the peer acknowledged them", pin["slots_released_ack"]),
        ("still pinned after the clients had finished", pin["bufs_pinned_at_end"]),
    ]
    return _table(
        ["in the runs on rings", ""],
        ([_cell(label), _cell(f"{value:,}")] for label, value in rows),
    )


def _about(report: Mapping[str, Any]) -> str:
    machine, module = report["machine"], report["module"]
    loads = [load for run in report["runs"] for load in run["load_average"]]
    rows = [
        ("date", machine["date"]),
        ("commit", machine["commit"]),
        ("module", f"{module['version']}, source version {module['srcversion']}"),
        ("kernel of both hosts", report["kernel"]),
        ("virtual machines", f"QEMU {machine['qemu']}; {_ACCELERATORS[report['accel']]}"),
        ("processor", f"{machine['processor']}, {machine['cores']} cores"),
        ("memory", f"{machine['memory_gib']} GiB"),
        ("Python", machine["python"]),
        ("load average when it began", machine["load_average_at_start"]),
        ("load average during the runs", f"{min(loads):.1f} to {max(loads):.1f}"),
    ]
    return _table(
        ["machine", ""], ([_cell(name), _cell(html.escape(str(value)))] for name, value in rows),
        "about",
    )  # fmt: skip


def render_html(report: Mapping[str, Any], picture: bytes) -> str:
    """The page, with everything it needs inside."""
    plan, machine = report["plan"], report["machine"]
    image = base64.b64encode(picture).decode()
    caveats = "<br>".join(html.escape(caveat) for caveat in report["caveats"])
    method = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in report["method"])
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>stackmap: rings against sockets</title>
<style>{_STYLE}</style></head><body>
<h1>The same server, on rings and on sockets</h1>
<p class="sub">memcached protocol, GETs of {plan["value_size"]} bytes, Linux
{html.escape(report["kernel"])}, {html.escape(report["accel"].upper())}; commit
{html.escape(machine["commit"])}, {html.escape(machine["date"])}</p>
{_problems(report)}
<p class="note">{caveats}</p>
<h2>At the peak: rings over sockets, closed loop</h2>
{_ratio_table(report)}
<p><small>Median of {plan["rounds"]} rounds, with the smallest and the largest. 1 is equal;
coloured where every round agrees.</small></p>
<h2>Latency at a stated load</h2>
{_load_table(report)}
<p><small>Open loop: median of {plan["open_rounds"]} rounds with their extremes, latency since a
request was due. The closed loop is given beside it.</small></p>
<p><img alt="latency by percentile and by load, rings and sockets"
 src="data:image/png;base64,{image}"></p>
<h2>Which way the bytes went</h2>
{_paths(report)}
<h2>What was run</h2>
{method}
{_about(report)}
<h2>Every run</h2>
{_run_table(report)}
<p><small>CPU: how much of the measured time a host's virtual processor ran. Load average: of this
machine over the last minute, when the run began and when it ended.</small></p>
</body></html>
"""


def write_html(report: Mapping[str, Any], picture: Path, target: Path) -> None:
    """Write the page."""
    target.write_text(render_html(report, picture.read_bytes()), encoding="utf-8")
