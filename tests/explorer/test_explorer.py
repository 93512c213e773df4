"""The explorer in a browser that reaches nothing but the server."""

from pathlib import Path

import httpx
import pytest

from ekoyka import explorer
from tests.explorer.browser import opened


async def test_opens_on_a_closed_network_without_a_complaint(served: str, tmp_path: Path) -> None:
    async with opened(served) as seen:
        await seen.run("Dispensaries")
        shown = await seen.result()
        await seen.screenshot(tmp_path / "explorer.png")

    (edge,) = shown["data"]["dispensaries"]["edges"]
    assert edge["node"]["bedCounts"] == {"total": 8, "free": 3}
    assert seen.outside == []
    assert seen.complaints == []


async def test_describes_the_graph(served: str, tmp_path: Path) -> None:
    async with opened(served) as seen:
        await seen.page.get_by_role("button", name="Show Documentation Explorer").click()
        await seen.page.get_by_role("link", name="Subscription", exact=True).click()
        await seen.page.get_by_role("link", name="bedAvailability", exact=True).wait_for()
        await seen.screenshot(tmp_path / "documentation.png")

    assert seen.complaints == []


async def test_marks_a_field_that_does_not_exist(served: str) -> None:
    async with opened(served) as seen:
        await seen.write("{ dispensaries { edges { node { colour } } } }")
        await seen.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()


async def test_signs_in_and_sends_the_header(served: str) -> None:
    async with opened(served) as seen:
        await seen.write(
            """
            mutation {
              signIn(input: {email: "doctor@example.org", password: "верный"}) {
                ... on Tokens { accessToken }
                ... on Refusal { message }
              }
            }
            """
        )
        await seen.run()
        token = (await seen.result())["data"]["signIn"]["accessToken"]
        await seen.write("{ authorization }")
        await seen.set_headers({"Authorization": f"Bearer {token}"})
        await seen.run()
        shown = await seen.result(containing="authorization")

    assert shown == {"data": {"authorization": "Bearer token-of-doctor@example.org"}}
    assert seen.complaints == []


async def test_shows_a_refusal(served: str) -> None:
    async with opened(served) as seen:
        await seen.run("SignIn")
        shown = await seen.result()

    assert shown == {"data": {"signIn": {"message": "Почта или пароль неверны."}}}


async def test_shows_each_event_of_a_subscription(served: str, tmp_path: Path) -> None:
    async with opened(served) as seen, httpx.AsyncClient(base_url=served) as other:
        await seen.set_headers({"Authorization": "Bearer first"})
        await seen.write("subscription { bedAvailability { free authorization } }")
        await seen.run()
        events = [await seen.result()]
        for free in (2, 1):
            await other.post("/graphql", json={"query": f"mutation {{ bedFree(free: {free}) {{ free }} }}"})
            events.append(await seen.result(containing=f'"free": {free}'))
        await seen.screenshot(tmp_path / "subscription.png")

    assert [event["data"]["bedAvailability"]["free"] for event in events] == [3, 2, 1]
    assert events[0]["data"]["bedAvailability"]["authorization"] == "Bearer first"
    assert seen.outside == []
    assert seen.complaints == []


async def test_a_subscription_started_again_signs_in_with_the_new_header(served: str) -> None:
    async with opened(served) as seen:
        await seen.write("subscription { bedAvailability { authorization } }")
        shown = []
        for token in ("first", "second"):
            await seen.set_headers({"Authorization": f"Bearer {token}"})
            await seen.run()
            shown.append(await seen.result(containing=token))
            await seen.run()  # the same button stops it

    assert [event["data"]["bedAvailability"]["authorization"] for event in shown] == [
        "Bearer first",
        "Bearer second",
    ]


async def test_shows_an_error(served: str, tmp_path: Path) -> None:
    async with opened(served) as seen:
        await seen.write("{ broken }")
        await seen.run()
        shown = await seen.result()
        await seen.screenshot(tmp_path / "error.png")

    assert shown["errors"][0]["message"] == "Такой койки нет."


async def test_keeps_nothing_on_the_disk_of_a_shared_computer(served: str) -> None:
    async with opened(served) as seen:
        await seen.run("Dispensaries")
        await seen.result()
        kept = await seen.page.evaluate("[localStorage.length, sessionStorage.length > 0]")

    assert kept == [0, True]


def test_says_how_to_get_it_when_it_is_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(explorer, "_ASSETS", tmp_path)

    page = explorer.page(nonce="n")

    assert not explorer.assets_present()
    assert page.index("не собран") < page.index("make assets") < page.index("is not built")
    assert "<script" not in page
    assert "'nonce-n'" in explorer.content_security_policy("n")


def test_the_path_of_the_endpoint_cannot_leave_its_attribute() -> None:
    assert '"><script>' not in explorer.page(graphql_path='"><script>', nonce="n")
