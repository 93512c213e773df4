"""Accounts and roles in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.enums import Role
from ekoyka.api.permissions import ACCOUNTS, ADMIN, CLINICAL_OR_OWN, SIGNED_IN, everywhere
from ekoyka.columns import contains, folded
from ekoyka.graph import declare as graph

if TYPE_CHECKING:
    from ekoyka.api.inpatient import Patient
    from ekoyka.api.scalars import ID, DateTime


@graph.type_(
    table="account",
    node=True,
    scope=ACCOUNTS,
    description="Somebody who can sign in (учётная запись).",
    where={
        "search": graph.Filter(
            type="str | None",
            pg="text",
            description="Part of the name or e-mail, in any letter case, ё as е.",
            sql=lambda row, value: f"({contains(f'{row}.name', value)} OR {contains(f'{row}.email', value)})",
            cost=graph.SEARCH_COST,
        ),
        "blocked": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only blocked ones, or only those that are not.",
            sql=lambda row, value: f"({row}.blocked_at IS NOT NULL) = {value}",
        ),
        "role": graph.Filter(
            type="Role | None",
            pg="text",
            description="Only holders of this role.",
            sql=lambda row, value: (
                f"({value} = 'USER' OR EXISTS (SELECT FROM role_grant g "
                f"WHERE g.account_id = {row}.id AND g.role = {value}))"
            ),
        ),
    },
    orders={
        "name": graph.Order(sql=lambda row: folded(f"{row}.name"), pg="text", description="The name."),
        "created_at": graph.Order(
            sql=lambda row: f"{row}.created_at", pg="timestamptz", description="When it was registered."
        ),
    },
    default_order=(("name", "ASC"),),
)
class Account:
    """An account."""

    email: str = graph.column("The e-mail address to sign in with, in lower case.")
    name: str = graph.column("The person's name, 1 to 200 characters.")
    position: str | None = graph.column("Their position (должность), for staff.")
    language: str = graph.column("The language for messages: ru or en.")
    blocked_at: DateTime | None = graph.column("Since when it is blocked.")
    created_at: DateTime = graph.column("When it was registered.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    grants: list[RoleGrant] = graph.listing(
        lambda row, child, names: f"{child}.account_id = {row}.id",
        "Roles held beside USER.",
        order=lambda row, child: f"{child}.id",
    )
    sessions: list[Session] = graph.listing(
        lambda row, child, names: (
            f"{child}.account_id = {row}.id AND {child}.ended_at IS NULL AND {child}.expires_at > now()"
        ),
        "The sessions that are open, the latest used first.",
        order=lambda row, child: f"{child}.last_used_at DESC, {child}.id DESC",
        usual=30,
    )
    patient: Patient | None = graph.one(
        lambda row, child, names: f"{child}.account_id = {row}.id",
        "The patient record linked to it, where the actor may know of it.",
        roles=CLINICAL_OR_OWN,
    )


@graph.type_(
    table="session",
    node=True,
    scope={
        Role.SUPERADMIN: everywhere,
        Role.USER: lambda row, names: f"{row}.account_id = {names.actor('account')}",
    },
    description="A sign-in that lasts (сеанс).",
)
class Session:
    """A session."""

    created_at: DateTime = graph.column("When somebody signed in.")
    last_used_at: DateTime = graph.column("When its tokens were renewed last.")
    expires_at: DateTime = graph.column("When it ends by itself.")
    ended_at: DateTime | None = graph.column("When it was ended.")
    address: str | None = graph.column("The network address that it was used from last.")
    client: str | None = graph.column("What the client called itself (User-Agent), at most 200 characters.")
    current: bool = graph.expression(
        lambda row, names: f"coalesce({row}.id = {names.actor('session')}, false)",
        "Whether it is the one that asks.",
    )


@graph.type_(table="role_grant", description="A role held by an account.")
class RoleGrant:
    """A grant."""

    role: Role = graph.column("The role.")
    granted_at: DateTime = graph.column("Since when.")
    dispensary: DispensaryName | None = graph.one("dispensary_id", "Where; null for the whole network.")


@graph.type_(table="dispensary", description="A dispensary's name, for whoever works there.")
class DispensaryName:
    """A dispensary as a name and key."""

    dispensary_id: ID = graph.key_of("Dispensary", lambda row: f"{row}.id", "Its id.")
    name: str = graph.column("Its name.")


@graph.type_(table="account", description="A member of the staff, as colleagues and patients see them.")
class Practitioner:
    """A practitioner."""

    account_id: ID = graph.key_of(
        "Account", lambda row: f"{row}.id", "The account's id, for naming who attends."
    )
    name: str = graph.column("Their name.")
    position: str | None = graph.column("Their position (должность).")


class Queries:
    """Root fields about accounts."""

    me: Account = graph.one(
        lambda row, child, names: f"{child}.id = {names.actor('account')}",
        "The actor's own account.",
        roles=SIGNED_IN,
    )
    account: Account | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One account.",
        args={"id": graph.key("Account", "Its id.")},
        roles=SIGNED_IN,
    )
    accounts: graph.Connection[Account] = graph.many(
        lambda row, child, names: "true", "Accounts.", roles=ADMIN
    )
