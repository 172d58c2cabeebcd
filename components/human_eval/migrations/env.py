"""Alembic environment: runs on the connection, and in the transaction, that `components.human_eval.database` opened."""

from __future__ import annotations

from alembic import context

from components.human_eval.schema import VERSION_TABLE, EvidenceBase

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=EvidenceBase.metadata,
    version_table=VERSION_TABLE,
    include_name=lambda name, kind, _parents: kind != "table" or name in EvidenceBase.metadata.tables,
)
with context.begin_transaction():
    context.run_migrations()
