"""The access log: one entry for every change of a person's record, written with the change."""

from typing import Any

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


def entry(action: str, object_type: str, row: str) -> str:
    """SQL that writes the entry of a change of a CTE's row (id, patient_id, dispensary_id); see `bound`."""
    return (
        "INSERT INTO access_entry "
        "(account_id, action, patient_id, dispensary_id, object_type, object_id, request_id) "
        f"SELECT CAST(:account AS bigint), '{action}', patient_id, dispensary_id, '{object_type}', id, "
        f"CAST(:request AS text) FROM {row}"
    )


def bound(actor: Actor) -> dict[str, Any]:
    """The parameters of `entry`."""
    return {"account": actor.account_id, "request": actor.request_id}
