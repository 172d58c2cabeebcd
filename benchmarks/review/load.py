"""The review service under load: `make load-review`.

    Postgres (durable) < plumbline review < locust: 50 raters, 100 requests a second

First run: the time to answer. Second run: the service is killed and started again mid-load. In both every answer that a
rater was told is stored is looked for in the database. The last line is one JSON object; the exit code is 1 if a vote
was lost or doubled, if a pair got too many, if the steady run left a request unanswered or refused one or was slower
than 100 requests a second, or if the time to answer missed its target.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.review.stand import count_votes, open_stand, run_raters
from tests.postgres_server import find_postgres, run_postgres

logger = logging.getLogger("load-review")

_RESULTS = Path(__file__).parents[1] / "results"
_P99_TARGET_MS = 100.0
_RATE_TARGET = 100.0
_KILLS = (0.35, 0.65)
"""When the service is killed in the second run, as shares of its time."""


def main(arguments: list[str] | None = None) -> int:
    """Runs both loads; returns the exit code."""
    options = _parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    programs = find_postgres()
    if programs is None:
        logger.error("No Postgres is installed; on Debian: apt-get install postgresql.")
        return 2
    before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="load-review") as name:
        root = Path(name)
        root.chmod(0o755)
        with run_postgres(programs, _made(root / "postgres"), durable=True) as url:
            steady = _run(root / "steady", url, options, kills=())
            killed = _run(root / "killed", url, options, kills=_KILLS)
    report = _report(options, before, steady, killed)
    if options.results:
        _RESULTS.mkdir(exist_ok=True)
        file = _RESULTS / f"review-load-{datetime.now(UTC):%Y-%m-%d}.json"
        file.write_text(json.dumps(report, indent=1) + "\n")
        logger.info("Written: %s", file)
    sys.stdout.write(json.dumps(report["line"]) + "\n")
    return 0 if report["passed"] else 1


def _run(folder: Path, url: str, options: argparse.Namespace, *, kills: tuple[float, ...]) -> dict[str, Any]:
    pairs = int(options.rate * options.seconds / 2 / 3 * 1.2) + options.raters
    with open_stand(folder, url, raters=options.raters, pairs=pairs) as stand:
        moments = tuple(share * options.seconds for share in kills)
        found = run_raters(stand, folder, requests_per_second=options.rate, seconds=options.seconds, kill_after=moments)
        counted = count_votes(stand, folder / "journal.jsonl")
        restarts = stand.service.restarts
    times = [value for name in ("next", "answer") for value in found["seconds"].get(name, [])]
    result = {
        "requests": len(times),
        "requests_per_s": round(len(times) / options.seconds, 1),
        "milliseconds": {name: _quantiles(values) for name, values in found["seconds"].items()}
        | {"next and answer": _quantiles(times)},
        "without_answer": found["without_answer"],
        "votes": asdict(counted),
        "sound": counted.sound,
        "restarts": restarts,
        "pairs": pairs,
        "service_cpu_ms_a_request": _per(found["service_cpu_seconds"], len(times)),
        "load_average_after": found["load_average"],
    }
    logger.info("%s: %s", folder.name, json.dumps(result))
    return result


def _report(
    options: argparse.Namespace, before: tuple[float, ...], steady: dict[str, Any], killed: dict[str, Any]
) -> dict[str, Any]:
    p99 = steady["milliseconds"]["next and answer"]["p99"]
    votes = [run["votes"] for run in (steady, killed)]
    line = {
        "requests_per_s": steady["requests_per_s"],
        "p99_ms": p99,
        "votes_acknowledged": sum(run["acknowledged"] for run in votes),
        "votes_stored": sum(run["stored"] for run in votes),
        "restarts": killed["restarts"],
    }
    sound = steady["sound"] and killed["sound"] and all(run["acknowledged"] > 0 for run in votes)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load_average_before": list(before),
        "raters": options.raters,
        "rate": options.rate,
        "seconds": options.seconds,
        "line": line,
        "passed": sound and _is_undisturbed(steady) and p99 < _P99_TARGET_MS,
        "steady": steady,
        "killed": killed,
    }


def _is_undisturbed(steady: dict[str, Any]) -> bool:
    """Whether the times are those of the load that was promised: errors are fast."""
    unfailing = steady["without_answer"] == 0 and steady["votes"]["refused"] == 0
    return unfailing and steady["requests_per_s"] >= _RATE_TARGET


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {"n": len(seconds)}
    cuts = statistics.quantiles(seconds, n=1000, method="inclusive")
    found = {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "p99.9": cuts[998], "max": max(seconds)}
    return {"n": len(seconds)} | {name: round(value * 1000, 1) for name, value in found.items()}


def _per(seconds: float | None, requests: int) -> float | None:
    return round(1000 * seconds / requests, 2) if seconds is not None and requests else None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument(
        "--rate",
        type=float,
        default=108.0,
        help="Requests a second, of all raters when all are there; they come within 5 s.",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="Of each of the two runs.")
    parser.add_argument("--results", action="store_true", help="Keep the figures in benchmarks/results/.")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
