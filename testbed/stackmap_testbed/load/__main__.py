"""``python -m stackmap_testbed.load --host H --port P``: load one memcached server with GETs.

And with SETs, if asked; ``--rate`` makes it an open loop (see :mod:`.generator`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from stackmap_testbed.load.counters import settled_counters
from stackmap_testbed.load.generator import LoadPlan, run_load, write_hgrm


def _parse(argv: list[str]) -> tuple[argparse.Namespace, LoadPlan]:
    parser = argparse.ArgumentParser(
        prog="python -m stackmap_testbed.load",
        description="Load a memcached server, check every reply, measure latencies.",
    )
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, default=11211)
    parser.add_argument("--connections", type=int, default=1, metavar="N")
    parser.add_argument("--value-size", type=int, default=64, metavar="BYTES")
    parser.add_argument("--keys", type=int, default=16, metavar="N")
    parser.add_argument(
        "--set-share", type=float, default=0.0, metavar="SHARE", help="of SETs, 0 to 1 (default 0)"
    )
    parser.add_argument(
        "--rate", type=float, metavar="PER_SECOND", help="open loop (default: closed loop)"
    )
    parser.add_argument("--seconds", type=float, help="measure for this long (default 5)")
    parser.add_argument("--requests", type=int, help="measure this many requests")
    parser.add_argument("--warmup", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    parser.add_argument(
        "--counters", action="store_true", help="ask the server for its port's counters at the end"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON")
    parser.add_argument(
        "--hgrm",
        type=Path,
        metavar="FILE",
        help="write the latencies as HdrHistogram's plotters read them",
    )
    args = parser.parse_args(argv)
    for name in ("connections", "keys"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    plan = LoadPlan(
        host=args.host,
        port=args.port,
        connections=args.connections,
        value_size=args.value_size,
        keys=args.keys,
        set_share=args.set_share,
        rate=args.rate,
        seconds=5.0 if args.seconds is None and args.requests is None else args.seconds,
        requests=args.requests,
        warmup=args.warmup,
        timeout=args.timeout,
    )
    return args, plan


def main(argv: list[str] | None = None) -> int:
    """Run one load; the exit code is 1 when there were errors or no replies at all."""
    args, plan = _parse(sys.argv[1:] if argv is None else argv)

    def announce(phase: str) -> None:
        print(phase, flush=True)

    try:
        result = run_load(plan, announce)
        record = dataclasses.asdict(result)
        if args.hgrm:
            write_hgrm(result, args.hgrm)
        if args.counters:
            record["counters"] = settled_counters(plan.host, plan.port)
    except ConnectionRefusedError as error:
        where = f"{plan.host}, port {plan.port}"
        print(
            f"error: {where}: {error.strerror}; is a memcached server running there?",
            file=sys.stderr,
        )
        return 1
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(record), flush=True)
    else:
        latencies = "  ".join(f"{name} {us:.1f} us" for name, us in result.latency_us.items())
        print(f"{result.requests_per_second:.0f} requests/s over {result.seconds:.2f} s")
        print(latencies)
        print(f"{result.errors} errors" + (f" ({result.first_wrong})" if result.wrong else ""))
    return 0 if result.requests and not result.errors else 1


if __name__ == "__main__":
    sys.exit(main())
