"""The access log in the graph: who has read or changed whose record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.enums import Role
from ekoyka.api.permissions import ACCESS, ADMIN, SIGNED_IN
from ekoyka.graph import declare as graph

if TYPE_CHECKING:
    from ekoyka.api.identity import DispensaryName, Practitioner
    from ekoyka.api.inpatient import Patient
    from ekoyka.api.scalars import DateTime


def about(row: str, patient: str) -> str:
    """SQL of whether an entry is about the patient, given SQL of their key."""
    return (
        f"({row}.patient_id = {patient} OR {row}.patients = ANY(ARRAY("
        f"SELECT q.digest FROM access_set q WHERE q.patients @> ARRAY[{patient}])))"
    )


@graph.type_(
    table="access_entry",
    node=True,
    scope=ACCESS,
    description="An entry of the access log (журнал доступа): a read or change of somebody's record, or of several "
    "in one.",
    where={
        "patient_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Patient",
            description="Only those about this patient, alone or among others.",
            sql=about,
            first=True,
        ),
        "account_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Account",
            description="Only what this account did.",
            sql=lambda row, value: f"{row}.account_id = {value}",
        ),
        "by_others": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="True: only what somebody else did than whom the record is about; false: only they themselves.",
            sql=lambda row, value: (
                f"(NOT EXISTS (SELECT FROM patient o WHERE o.account_id = {row}.account_id "
                f"AND {about(row, 'o.id')})) = {value}"
            ),
        ),
        "action": graph.Filter(
            type="str | None",
            pg="text",
            description="Only of this action, such as read or stay_check_in.",
            sql=lambda row, value: f"{row}.action = {value}",
        ),
        "role": graph.Filter(
            type="Role | None",
            pg="text",
            description="Only by who acted in this role.",
            sql=lambda row, value: f"{row}.role = {value}",
        ),
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only at this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "from_": graph.Filter(
            type="DateTime | None",
            pg="timestamptz",
            description="Only at this instant or later.",
            sql=lambda row, value: f"{row}.at >= {value}",
        ),
        "until": graph.Filter(
            type="DateTime | None",
            pg="timestamptz",
            description="Only before this instant.",
            sql=lambda row, value: f"{row}.at < {value}",
        ),
    },
    orders={"at": graph.Order(sql=lambda row: f"{row}.at", pg="timestamptz", description="When it was.")},
    default_order=(("at", "DESC"),),
)
class AccessEntry:
    """An entry."""

    at: DateTime = graph.column("When.")
    action: str = graph.column("What was done: read, or the change's name, such as stay_check_in.")
    field: str | None = graph.column("The root field that a read was made by, such as patients.")
    account: Practitioner | None = graph.one(
        "account_id", "Who; null for who had not signed in, such as whoever checks a certificate."
    )
    role: Role | None = graph.column("As what they acted: the widest of their roles.")
    dispensary: DispensaryName | None = graph.one(
        "dispensary_id",
        "Whose record was changed; of a read, where the reader works, if that is one dispensary.",
    )
    reason: str | None = graph.column("Why, where a reason is asked for.")
    patient: Patient | None = graph.one("patient_id", "Whose record; null where it was of several at once.")
    patient_count: int = graph.expression(
        lambda row, names: (
            f"CASE WHEN {row}.patients IS NULL THEN ({row}.patient_id IS NOT NULL)::int ELSE "
            f"(SELECT cardinality(q.patients) FROM access_set q WHERE q.digest = {row}.patients) END"
        ),
        "How many patients' records it was about; 0 where nobody was found, or an account was changed.",
    )
    request_id: str | None = graph.column("The request's id, as in the server's log.", roles=ADMIN)
    address: str | None = graph.column("The network address that it came from.", roles=ADMIN)


class Queries:
    """Root fields about the access log."""

    access_entry: AccessEntry | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One entry of the access log.",
        args={"id": graph.key("AccessEntry", "Its id.")},
        roles=SIGNED_IN,
    )
    access_entries: graph.Connection[AccessEntry] = graph.many(
        lambda row, child, names: "true",
        "The access log: for a superadministrator all of it; for a patient, who has read or changed their record.",
        roles=SIGNED_IN,
    )
