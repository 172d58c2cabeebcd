"""A run's outcome in plain words, for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from pipelines.local import RunResult

__all__ = ["describe"]

_COLOURS = {"PROMOTE": "green", "KEEP": "green", "HOLD": "yellow"}


def describe(result: RunResult, console: Console) -> None:
    """Prints verdict, reasons, champion and paths."""
    summary, run = result.summary, result.run
    if result.failure:
        console.print(f"\n[bold red]FAILED[/] in {result.failure.stage}: {escape(result.failure.cause)}")
    else:
        verdict = summary["verdict"] or "no verdict"
        colour = _COLOURS.get(verdict, "red")
        reasons = "\n".join(f"- {escape(reason)}" for reason in summary["reasons"])
        console.print(Panel(reasons or "No reasons given.", title=f"[bold {colour}]{verdict}[/]", title_align="left"))
    champion = summary["champion"]
    live = f"{champion['name']} version {champion['version']}" if champion["version"] else "none yet"
    console.print(f"champion  {live}", highlight=False)
    console.print(f"report    {run.report}", highlight=False, soft_wrap=True)
    console.print(f"summary   {run.summary}", highlight=False, soft_wrap=True)
    console.print(f"log       {run.log}", highlight=False, soft_wrap=True)
    console.print(f"took      {summary['seconds']['total']:.0f} s", highlight=False)
