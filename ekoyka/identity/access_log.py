"""The access log's entries of changes, written with the change; those of reads are `readings`' business."""

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
            role=actor.acting_as.value,
            action=action,
            patient_id=patient_id,
            dispensary_id=dispensary_id,
            object_type=object_type,
            object_id=object_id,
            reason=reason,
            request_id=actor.request_id,
            address=actor.address,
        )
    )


def entry(action: str, object_type: str, row: str) -> str:
    """SQL that writes the entry of a change of a CTE's row (id, patient_id, dispensary_id); see `bound`."""
    return (
        "INSERT INTO access_entry "
        "(account_id, role, action, patient_id, dispensary_id, object_type, object_id, request_id, address) "
        f"SELECT CAST(:account AS bigint), CAST(:role AS text), '{action}', patient_id, dispensary_id, "
        f"'{object_type}', id, CAST(:request AS text), CAST(:address AS text) FROM {row}"
    )


def bound(actor: Actor) -> dict[str, Any]:
    """The parameters of `entry`."""
    return {
        "account": actor.account_id,
        "role": actor.acting_as.value,
        "request": actor.request_id,
        "address": actor.address,
    }
