"""What the commands share: options, who acts, and how an answer is printed."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

__all__ = [
    "EXIT_FAILED",
    "actor_option",
    "json_option",
    "print_json",
    "print_table",
    "reason_option",
    "tell",
    "who",
    "workspace_option",
]

EXIT_FAILED = 1
workspace_option = click.option(
    "--workspace", default="runs", show_default=True, help="Folder of local runs.", type=click.Path(file_okay=False)
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
reason_option = click.option("--reason", required=True, help="Why; it stands in the ledger for good.")
actor_option = click.option(
    "--actor",
    default=None,
    help="Who acts; default: PLUMBLINE_ACTOR, else the login name. The ledger says beside it under which account.",
)


def who(actor: str | None) -> str:
    """Who acts: as given, else PLUMBLINE_ACTOR, else the login name."""
    import getpass

    return actor or os.environ.get("PLUMBLINE_ACTOR") or getpass.getuser()


def tell(result: dict[str, Any], as_json: bool, *, text: str | None = None) -> None:
    """Prints an answer; for a person `text`, or the answer's own message."""
    if as_json:
        print_json(result)
    else:
        click.echo(result["message"] if text is None else text)


def print_json(value: Any) -> None:
    """Prints for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: list[str], rows: list[list[Any]]) -> None:
    """Prints rows for a person; as wide as the terminal, or 200 columns where there is none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE)
    for row in rows:  # as text: what a person wrote is not markup
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
