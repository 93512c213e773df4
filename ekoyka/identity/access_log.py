"""The access log: one entry for every change of a person's record, written with the change."""

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import AccessEntry


def record(
    session: AsyncSession,
    actor: Actor,
    action: str,
    object_type: str,
    object_id: int,
    *,
    patient_id: int | None = None,
    dispensary_id: int | None = None,
    reason: str | None = None,
) -> None:
    """The change stands in the log once the session's transaction commits."""
    session.add(
        AccessEntry(
            account_id=actor.account_id,
            action=action,
            patient_id=patient_id,
            dispensary_id=dispensary_id,
            object_type=object_type,
            object_id=object_id,
            reason=reason,
            request_id=actor.request_id,
        )
    )
