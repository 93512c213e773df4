"""The explorer in a browser that reaches nothing but the server."""

from pathlib import Path

import httpx
import pytest

from ekoyka import explorer
from tests.explorer.browser import Explorer, opened
from tests.explorer.conftest import PASSWORD, Served


async def signed_in(seen: Explorer, served: Served) -> str:
    """Signs in by the mutation and writes the token into the Headers tab, as a person would."""
    await seen.write(
        f"""
        mutation {{
          signIn(input: {{email: "{served.email}", password: "{PASSWORD}"}}) {{
            ... on Tokens {{ accessToken }}
            ... on Refusal {{ message }}
          }}
        }}
        """
    )
    await seen.run()
    token: str = (await seen.result(containing="accessToken"))["data"]["signIn"]["accessToken"]
    await seen.set_headers({"Authorization": f"Bearer {token}"})
    return token


async def test_opens_on_a_closed_network_without_a_complaint(served: Served, tmp_path: Path) -> None:
    async with opened(served.url) as seen:
        await seen.page.get_by_role("button", name="Show Documentation Explorer").click()
        await seen.page.get_by_role("link", name="Subscription", exact=True).click()
        await seen.page.get_by_role("link", name="bedAvailability", exact=True).wait_for()
        await seen.screenshot(tmp_path / "documentation.png")

    assert seen.outside == []
    assert seen.complaints == []


async def test_a_doctor_signs_in_asks_changes_and_watches(served: Served, tmp_path: Path) -> None:
    async with opened(served.url) as seen, httpx.AsyncClient(base_url=served.url) as other:
        token = await signed_in(seen, served)

        await seen.write("{ dispensaries(first: 5) { edges { node { name bedCounts { total free } } } } }")
        await seen.run()
        asked = await seen.result(containing="bedCounts")
        await seen.screenshot(tmp_path / "query.png")
        await seen.write(
            f'mutation {{ stayCheckIn(input: {{patientId: "{served.patient}", bedId: "{served.bed}"}}) '
            "{ ... on Stay { id patient { familyName } currentBed { status } } ... on Refusal { code } } }"
        )
        await seen.run()
        changed = await seen.result(containing="stayCheckIn")
        await seen.write(
            f'subscription {{ bedAvailability(dispensaryId: "{served.dispensary}") '
            "{ kind changes { change } counts { free occupied } } }"
        )
        await seen.run()
        first = await seen.result(containing="SNAPSHOT")
        await other.post(
            "/graphql",
            headers={"authorization": f"Bearer {token}"},
            json={
                "query": "mutation ($id: ID!) { stayCheckOut(input: {id: $id, version: 1, outcome: DISCHARGED}) "
                "{ __typename } }",
                "variables": {"id": changed["data"]["stayCheckIn"]["id"]},
            },
        )
        second = await seen.result(containing="CHECKED_OUT")
        await seen.screenshot(tmp_path / "subscription.png")

    [edge] = asked["data"]["dispensaries"]["edges"]
    assert edge["node"] == {"name": "Наркологический диспансер № 1", "bedCounts": {"total": 1, "free": 1}}
    assert changed["data"]["stayCheckIn"]["patient"] == {"familyName": "Соловьёв"}
    assert changed["data"]["stayCheckIn"]["currentBed"] == {"status": "OCCUPIED"}
    assert first["data"]["bedAvailability"]["counts"] == {"free": 0, "occupied": 1}
    assert second["data"]["bedAvailability"] == {
        "kind": "CHANGE",
        "changes": [{"change": "CHECKED_OUT"}],
        "counts": {"free": 1, "occupied": 0},
    }
    assert seen.outside == []
    assert seen.complaints == []


async def test_the_first_document_is_valid_and_shows_a_refusal_and_an_error(
    served: Served, tmp_path: Path
) -> None:
    async with opened(served.url) as seen:
        await seen.run("SignIn")
        refused = await seen.result(containing="signIn")
        await seen.run("Dispensaries")
        unknown = await seen.result(containing="errors")
        await seen.screenshot(tmp_path / "error.png")

    assert refused["data"] == {"signIn": {"message": "The address or the password is wrong."}}
    assert unknown["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_marks_a_field_that_does_not_exist(served: Served) -> None:
    async with opened(served.url) as seen:
        await seen.write("{ dispensaries { edges { node { colour } } } }")
        await seen.page.locator(".graphiql-query-editor .squiggly-error").first.wait_for()


async def test_keeps_nothing_on_the_disk_of_a_shared_computer(served: Served) -> None:
    async with opened(served.url) as seen:
        await signed_in(seen, served)
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
