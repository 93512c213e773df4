"""Certificates in the graph."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ekoyka.api.permissions import ANYONE, CLINICAL, CLINICAL_OR_OWN, clinicians_and_patient
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import BadInput
from ekoyka.links import name_sql

if TYPE_CHECKING:
    from ekoyka.api.facilities import Dispensary
    from ekoyka.api.identity import Practitioner
    from ekoyka.api.inpatient import Stay
    from ekoyka.api.scalars import Date, DateTime

_STAY_PATIENT = "(SELECT y.patient_id FROM stay y WHERE y.id = {row}.stay_id)"


def _number(row: str) -> str:
    return f"{row}.number || '/' || {row}.year"


@graph.type_(
    table="certificate",
    node=True,
    scope=clinicians_and_patient(_STAY_PATIENT),
    person=lambda row, names: _STAY_PATIENT.format(row=row),
    person_by="stay",
    description="A certificate of a stay (справка о нахождении на стационарном лечении).",
    where={
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only of this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "annulled": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only annulled ones, or only those in force.",
            sql=lambda row, value: f"({row}.annulled_at IS NOT NULL) = {value}",
        ),
        "year": graph.Filter(
            type="int | None",
            pg="int",
            description="Only of this year's register.",
            sql=lambda row, value: f"{row}.year = {value}",
        ),
    },
    orders={
        "issued_at": graph.Order(
            sql=lambda row: f"{row}.issued_at", pg="timestamptz", description="When it was issued."
        )
    },
    default_order=(("issued_at", "DESC"),),
)
class Certificate:
    """A certificate."""

    number: str = graph.expression(
        lambda row, names: _number(row),
        "Number and year, such as 12/2026; without gaps in a dispensary's year.",
    )
    language: str = graph.column("The language: ru or en.")
    issued_on: Date = graph.column("The day it was issued, in local time.")
    issued_at: DateTime = graph.column("When it was issued.")
    with_diagnosis: bool = graph.column("Whether the diagnosis is printed.")
    neutral_header: bool = graph.column("Whether it bears the dispensary's neutral name.")
    sha256: str | None = graph.column("SHA-256 of the PDF, in hexadecimal; null until it has been made.")
    verification_code: str = graph.column("The code that verifies it; printed on it.")
    download_url: str = graph.expression(
        lambda row, names: (
            f"{names.actor('base_url')} || '/certificates/' || "
            + name_sql(
                f"{row}.id", names.actor("download_ttl_s"), names.actor("pad_in"), names.actor("pad_out")
            )
            + " || '.pdf'"
        ),
        "Where the PDF can be fetched during the next minutes, by whoever has the address.",
    )
    annulled_at: DateTime | None = graph.column("Since when it is annulled.")
    annulment_reason: str | None = graph.column("Why it was annulled.", roles=CLINICAL)
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    stay: Stay = graph.one("stay_id", "The stay it certifies.")
    dispensary: Dispensary = graph.one("dispensary_id", "Who issued it.")
    issued_by: Practitioner = graph.one("issued_by_id", "Who issued it.")
    duplicates: list[CertificateDuplicate] | None = graph.listing(
        lambda row, child, names: f"{child}.certificate_id = {row}.id",
        "When its bytes were handed out again (дубликаты), first to last.",
        order=lambda row, child: f"{child}.issued_at, {child}.id",
        roles=CLINICAL,
    )


@graph.type_(table="certificate_duplicate", description="An entry «Дубликат» of the register.")
class CertificateDuplicate:
    """A duplicate."""

    issued_at: DateTime = graph.column("When.")
    issued_by: Practitioner = graph.one("issued_by_id", "Who handed it out.")
    reason: str | None = graph.column("Why.")


@graph.type_(
    table="certificate",
    person=lambda row, names: f"{row}.patient_id",
    description="What anybody who holds a certificate may check; tells no name and no diagnosis.",
)
class CertificateVerification:
    """A verification."""

    number: str = graph.expression(lambda row, names: _number(row), "Number and year.")
    issued_on: Date = graph.column("The day it was issued.")
    checked_in_on: Date = graph.expression(
        lambda row, names: f"({row}.facts->>'checked_in_on')::date", "First day of the period."
    )
    checked_out_on: Date = graph.expression(
        lambda row, names: f"({row}.facts->>'checked_out_on')::date", "Last day of the period."
    )
    organisation: str = graph.expression(
        lambda row, names: f"{row}.facts->>'organisation'", "The dispensary, by the name printed on it."
    )
    annulled: bool = graph.expression(
        lambda row, names: f"{row}.annulled_at IS NOT NULL",
        "Whether it has been annulled: then it certifies nothing.",
    )


def _code(value: str) -> str:
    code = re.sub(r"[\s-]", "", value).upper()
    if not re.fullmatch(r"[0-9A-Z]{10,64}", code):
        raise BadInput(
            "A verification code is the letters and digits printed beside the certificate's QR code."
        )
    return code


class Queries:
    """Root fields about certificates."""

    certificate: Certificate | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One certificate.",
        args={"id": graph.key("Certificate", "Its id.")},
        roles=CLINICAL_OR_OWN,
    )
    certificates: graph.Connection[Certificate] = graph.many(
        lambda row, child, names: "true", "Certificates.", roles=CLINICAL_OR_OWN
    )
    certificate_verification: CertificateVerification | None = graph.one(
        lambda row, child, names: "true",
        "What the certificate with this code says, or null when there is none.",
        source=lambda row, names: f"certificate_verified({names.arg('code')})",
        args={
            "code": graph.Arg(
                type="str", pg="text", description="The code printed beside the QR code.", decode=_code
            )
        },
        roles=ANYONE,
    )
