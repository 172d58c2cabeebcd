"""Brings the database of evidence and ledger up to date: what `plumbline migrate` does before a new version serves.

The tables are migrated under a lock of the database, so that two migrations at once wait for each other and the second
finds nothing to do. A database that is not up yet is waited for; one that refuses (password, no such database) is not.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from sqlalchemy import Engine, text
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from components.shared.errors import InputError
from components.shared.ledger_table import DATABASE_VARIABLE, database_url, open_engine

__all__ = ["Migration", "migrate"]

_logger = logging.getLogger(__name__)

_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Migration:
    """What became of the tables.

    Attributes:
        before: Version of the evidence tables that was found; None if there were none.
        after: Version that they have now.
    """

    before: str | None
    after: str

    @property
    def message(self) -> str:
        """In words."""
        if self.before == self.after:
            return f"The tables are at {self.after} already."
        return f"The tables were brought from {self.before or 'nothing'} to {self.after}."


def migrate(*, wait_seconds: float = 0.0) -> Migration:
    """Migrates the evidence tables and makes the ledger's.

    Args:
        wait_seconds: How long a database that does not answer is waited for.

    Raises:
        InputError: No database is named, it does not answer in time, it refuses, or it is of a newer Plumbline.
    """
    from components.human_eval.database import open_database
    from components.release_gate.ledger import open_ledger

    url = database_url()
    engine = open_engine(url)
    _await(engine, wait_seconds)
    before = _version(engine)
    open_database(url)
    open_ledger()
    after = _version(engine)
    assert after is not None  # just migrated
    return Migration(before, after)


def _await(engine: Engine, seconds: float) -> None:
    """Returns when the database answers."""
    until = time.monotonic() + seconds
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            return
        except (InterfaceError, OperationalError) as error:
            if time.monotonic() >= until:
                raise _no_answer(error, f"Start it, or give it longer than {seconds:.0f} s with --wait.") from error
            _logger.warning("The database does not answer yet: %s", _first_line(error))
            time.sleep(min(_PAUSE_SECONDS, max(0.0, until - time.monotonic())))
        except SQLAlchemyError as error:
            raise _no_answer(
                error, "Check user, password and the database's name; a file must be an SQLite database."
            ) from error


def _version(engine: Engine) -> str | None:
    from alembic.migration import MigrationContext

    from components.human_eval.schema import VERSION_TABLE

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def _no_answer(error: Exception, hint: str) -> InputError:
    return InputError(f"the database does not let us in: {_first_line(error)}.", where=DATABASE_VARIABLE, hint=hint)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
