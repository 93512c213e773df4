"""Alembic's entry: runs migrations on the connection that `ekoyka.migrate` hands it."""

from alembic import context

from ekoyka.migrate import METADATA, is_ours

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    compare_server_default=False,
    include_name=is_ours,
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
