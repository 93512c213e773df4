"""Who may do what: the sets of roles that fields and mutations name, and the rows that each role sees.

A query field, mutation or subscription without roles does not get into the schema. Row scopes are SQL and
part of every statement, so that no edge of the graph leads around them.
"""

from collections.abc import Mapping
from typing import Final

from ekoyka.graph.model import ANONYMOUS, Names, RowSql
from ekoyka.identity.tables import Role
from ekoyka.inpatient.queries import patient_in_dispensaries
from ekoyka.outpatient.queries import is_free

ANYONE: Final = frozenset({ANONYMOUS, Role.USER})
SIGNED_IN: Final = frozenset({Role.USER})
ADMIN: Final = frozenset({Role.SUPERADMIN})
CLINICAL: Final = frozenset({Role.SUPERADMIN, Role.DOCTOR})
STAFF: Final = frozenset({Role.SUPERADMIN, Role.DOCTOR, Role.DISPATCHER})
# A patient sees their own record, once it is linked to their account.
CLINICAL_OR_OWN: Final = CLINICAL | {Role.USER}

Scope = Mapping[str, RowSql]


def everywhere(row: str, names: Names) -> str:
    """Every row."""
    return "true"


def _in(value: str) -> RowSql:
    def rule(row: str, names: Names) -> str:
        return f"{value.format(row=row)} = ANY({names.actor('doctor_of')})"

    return rule


def _in_dispatch(value: str) -> RowSql:
    def rule(row: str, names: Names) -> str:
        return f"{value.format(row=row)} = ANY({names.actor('dispatcher_of')})"

    return rule


def _own_patient(patient_id: str) -> RowSql:
    def rule(row: str, names: Names) -> str:
        return (
            f"EXISTS (SELECT FROM patient own WHERE own.id = {patient_id.format(row=row)} "
            f"AND own.account_id = {names.actor('account')})"
        )

    return rule


def staff_of(dispensary: str = "{row}.dispensary_id") -> Scope:
    """Rows of a dispensary, for those who work there."""
    return {
        Role.SUPERADMIN: everywhere,
        Role.DOCTOR: _in(dispensary),
        Role.DISPATCHER: _in_dispatch(dispensary),
    }


def clinicians_of(dispensary: str = "{row}.dispensary_id") -> Scope:
    """Clinical rows of a dispensary, for its doctors."""
    return {Role.SUPERADMIN: everywhere, Role.DOCTOR: _in(dispensary)}


def clinicians_and_patient(patient_id: str) -> Scope:
    """Clinical rows of a dispensary, for its doctors and for the patient themself."""
    return {**clinicians_of(), Role.USER: _own_patient(patient_id)}


def _visible_patient(row: str, names: Names) -> str:
    return patient_in_dispensaries(row, names.actor("doctor_of"))


def _treated_there(row: str, names: Names) -> str:
    return (
        f"EXISTS (SELECT FROM patient own WHERE own.account_id = {names.actor('account')} AND ("
        f"EXISTS (SELECT FROM stay there WHERE there.patient_id = own.id AND there.dispensary_id = {row}.id) OR "
        "EXISTS (SELECT FROM appointment there "
        f"WHERE there.patient_id = own.id AND there.dispensary_id = {row}.id)))"
    )


PATIENTS: Final[Scope] = {
    Role.SUPERADMIN: everywhere,
    Role.DOCTOR: _visible_patient,
    Role.USER: lambda row, names: f"{row}.account_id = {names.actor('account')}",
}
DISPENSARIES: Final[Scope] = {**staff_of("{row}.id"), Role.USER: _treated_there}
# Who has a slot that is not free is nobody's business but the dispensary's doctors'.
SLOTS: Final[Scope] = {**clinicians_of(), Role.USER: lambda row, names: is_free(row)}
# What is told to an account is told to nobody else.
NOTIFICATIONS: Final[Scope] = {
    Role.USER: lambda row, names: f"{row}.account_id = {names.actor('account')}",
}
ACCOUNTS: Final[Scope] = {
    Role.SUPERADMIN: everywhere,
    Role.USER: lambda row, names: f"{row}.id = {names.actor('account')}",
}


def _about_own(row: str, names: Names) -> str:
    own = f"ARRAY(SELECT own.id FROM patient own WHERE own.account_id = {names.actor('account')})"
    return (
        f"({row}.patient_id = ANY({own}) OR {row}.patients = ANY(ARRAY("
        f"SELECT q.digest FROM access_set q WHERE q.patients && {own})))"
    )


# A patient is told who has read their record; a doctor, not who else has.
ACCESS: Final[Scope] = {Role.SUPERADMIN: everywhere, Role.USER: _about_own}
