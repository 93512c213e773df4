"""One's own account, roles and blocking."""

from __future__ import annotations

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run
from ekoyka.api.enums import Role
from ekoyka.api.mutations import VERSION_TEXT, given, key, mutation
from ekoyka.api.permissions import ADMIN, SIGNED_IN
from ekoyka.identity import operations
from ekoyka.identity.operations import LastSuperadmin, OwnAccount, RoleHeld
from ekoyka.outpatient import slots

field = strawberry.field


@strawberry.input(description="Changes of one's own account; what is not given stays.")
class AccountUpdateInput:
    version: int = field(description=VERSION_TEXT)
    name: str | None = field(description="The person's name.", default=UNSET)
    position: str | None = field(description="Their position.", default=UNSET)
    language: str | None = field(description="The language: ru or en.", default=UNSET)


@mutation("accountUpdate", returns="Account", roles=SIGNED_IN, description="One's own account is edited.")
async def account_update(run: Run, session: AsyncSession, input: AccountUpdateInput) -> int:
    row = await operations.update_account(
        session, actor=run.known_actor, version=input.version, changes=given(input)
    )
    return row.id


@strawberry.input(description="A role of an account.")
class RoleInput:
    account_id: strawberry.ID = field(description="Whose.")
    role: Role = field(description="Which; USER is everybody's and is neither granted nor revoked.")
    dispensary_id: strawberry.ID | None = field(
        description="Over which dispensary; null for SUPERADMIN, which is over the whole network.",
        default=None,
    )


def _place(input: RoleInput) -> int | None:
    return key("Dispensary", input.dispensary_id, "dispensaryId") if input.dispensary_id else None


@mutation(
    "roleGrant",
    returns="Account",
    roles=ADMIN,
    refusals=(RoleHeld,),
    description="An account gets a role; its tokens so far end.",
)
async def role_grant(run: Run, session: AsyncSession, input: RoleInput) -> int:
    row = await operations.grant_role(
        session,
        actor=run.known_actor,
        account_id=key("Account", input.account_id, "accountId"),
        role=Role(input.role),
        dispensary_id=_place(input),
    )
    await slots.tell(session, row.id)
    return row.id


@mutation(
    "roleRevoke",
    returns="Account",
    roles=ADMIN,
    refusals=(LastSuperadmin,),
    description="An account loses a role; its tokens so far end.",
)
async def role_revoke(run: Run, session: AsyncSession, input: RoleInput) -> int:
    row = await operations.revoke_role(
        session,
        actor=run.known_actor,
        account_id=key("Account", input.account_id, "accountId"),
        role=Role(input.role),
        dispensary_id=_place(input),
    )
    await slots.tell(session, row.id)
    return row.id


@strawberry.input(description="Which account.")
class AccountInput:
    id: strawberry.ID = field(description="Whose.")


@mutation(
    "accountBlock",
    returns="Account",
    roles=ADMIN,
    refusals=(OwnAccount, LastSuperadmin),
    description="An account can do nothing more, at once, also on open subscriptions.",
)
async def account_block(run: Run, session: AsyncSession, input: AccountInput) -> int:
    row = await operations.block_account(
        session, actor=run.known_actor, account_id=key("Account", input.id, "id")
    )
    await slots.tell(session, row.id)
    return row.id


@mutation(
    "accountUnblock", returns="Account", roles=ADMIN, description="A blocked account can sign in again."
)
async def account_unblock(run: Run, session: AsyncSession, input: AccountInput) -> int:
    row = await operations.unblock_account(
        session, actor=run.known_actor, account_id=key("Account", input.id, "id")
    )
    await slots.tell(session, row.id)
    return row.id
