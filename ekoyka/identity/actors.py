"""The actor: who asks, with which roles, where."""

from collections.abc import Iterable
from dataclasses import dataclass

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

    @property
    def roles(self) -> frozenset[Role]:
        """The kinds of roles held anywhere; what may be seen where is the row scopes' business."""
        held = {Role.USER}
        if self.superadmin:
            held.add(Role.SUPERADMIN)
        if self.doctor_of:
            held.add(Role.DOCTOR)
        if self.dispatcher_of:
            held.add(Role.DISPATCHER)
        return frozenset(held)

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
