"""A hundred people sign in at once, and everybody else is served as before."""

import json

from benchmarks import load, signins
from ekoyka.settings import Settings
from tests.factories import Factory
from tests.feed import token
from tests.servers import running

ROUNDS = 5
# A second: what a busy network asks, and no more than a machine with other things to do can answer.
RATE = 50


async def test_with_a_hundred_sign_ins_at_once_other_queries_are_answered_in_time(
    settings: Settings, make: Factory
) -> None:
    """At bcrypt's production cost. The best of some rounds counts: the machine may have other things to do.

    150 ms is the bound, or, where queries are slow with nobody signing in, five times what they take then.
    """
    assert settings.database_url is not None
    boss, place = await make.actor(superadmin=True), await make.dispensary()
    for _ in range(10):
        await make.bed(place)
    query = "{ me { name } beds(first: 20) { edges { node { label status } } } }"

    async with running(settings, EKOYKA_PASSWORD_HASH_ROUNDS="12") as [server]:
        request = load.request(server.port, json.dumps({"query": query}).encode(), token(boss))
        found = []
        for _ in range(ROUNDS):
            emails = await signins.accounts(settings.database_url.get_secret_value(), rounds=12)
            alone = await signins.measure(server.port, [request], [], rate=RATE)
            beside = await signins.measure(server.port, [request], emails, rate=RATE)
            # On a machine that has too much to do, some are told to come back.
            assert set(beside.statuses) <= {200, 429, 503}
            found.append(f"{alone} | {beside}")
            if beside.percentile_s(0.99) < max(0.15, 5 * alone.percentile_s(0.99)):
                return

    raise AssertionError(found)
