"""What an actor's roles amount to."""

import pytest

from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role

HERE, THERE = 1, 2


def test_everybody_is_a_user() -> None:
    assert Actor(account_id=1, auth_version=1).roles == {Role.USER}


@pytest.mark.parametrize(
    ("actor", "role", "here", "there"),
    [
        (Actor(account_id=1, auth_version=1), Role.USER, False, False),
        (Actor(account_id=1, auth_version=1, superadmin=True), Role.SUPERADMIN, True, True),
        (Actor(account_id=1, auth_version=1, superadmin=True), Role.DOCTOR, False, False),
        (Actor(account_id=1, auth_version=1, doctor_of=frozenset({HERE})), Role.DOCTOR, True, False),
        (Actor(account_id=1, auth_version=1, doctor_of=frozenset({HERE})), Role.DISPATCHER, False, False),
        (Actor(account_id=1, auth_version=1, doctor_of=frozenset({HERE})), Role.SUPERADMIN, False, False),
        (Actor(account_id=1, auth_version=1, dispatcher_of=frozenset({HERE})), Role.DISPATCHER, True, False),
        (Actor(account_id=1, auth_version=1, dispatcher_of=frozenset({HERE})), Role.DOCTOR, False, False),
    ],
)
def test_a_role_works_where_it_is_held(actor: Actor, role: Role, here: bool, there: bool) -> None:
    assert actor.works_in(HERE, (role,)) is here
    assert actor.works_in(THERE, (role,)) is there


def test_any_of_the_roles_is_enough() -> None:
    actor = Actor(account_id=1, auth_version=1, dispatcher_of=frozenset({HERE}))

    assert actor.works_in(HERE, (Role.SUPERADMIN, Role.DOCTOR, Role.DISPATCHER))
    assert not actor.works_in(HERE, ())
