"""The actor: who asks, with which roles, where."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from ekoyka.identity.tables import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """An account as its access token describes it; every statement compares ``auth_version`` again."""

    account_id: int
    auth_version: int
    superadmin: bool = False
    doctor_of: frozenset[int] = frozenset()
    dispatcher_of: frozenset[int] = frozenset()
    request_id: str | None = None
    # Where the request comes from.
    address: str | None = None
    # Of the sign-in that the token comes from.
    session_id: int | None = field(default=None, compare=False)

    @property
    def roles(self) -> frozenset[Role]:
        """The kinds of roles held anywhere; what may be seen where is the row scopes' business."""
        return _roles(self.superadmin, bool(self.doctor_of), bool(self.dispatcher_of))

    @property
    def acting_as(self) -> Role:
        """The widest of their roles."""
        return next(role for role in Role if role in self.roles)

    @property
    def place(self) -> int | None:
        """The dispensary they work in, where it is one."""
        places = self.doctor_of | self.dispatcher_of
        return next(iter(places)) if len(places) == 1 and not self.superadmin else None

    def works_in(self, dispensary_id: int, roles: Iterable[Role]) -> bool:
        """Whether the actor holds one of the roles over this dispensary."""
        return any(
            self.superadmin
            if role is Role.SUPERADMIN
            else dispensary_id in self.doctor_of
            if role is Role.DOCTOR
            else dispensary_id in self.dispatcher_of
            if role is Role.DISPATCHER
            else False
            for role in roles
        )


@cache
def _roles(superadmin: bool, doctor: bool, dispatcher: bool) -> frozenset[Role]:
    held = {Role.SUPERADMIN: superadmin, Role.DOCTOR: doctor, Role.DISPATCHER: dispatcher, Role.USER: True}
    return frozenset(role for role, holds in held.items() if holds)
