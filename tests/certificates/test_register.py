"""The register of certificates through the graph: numbers, bytes, duplicates, annulment, verification."""

import asyncio
import hashlib
import io
from datetime import UTC, datetime
from typing import Any

import pypdf
import pytest

from ekoyka import links
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.tables import Stay
from tests.client import Client, gid
from tests.factories import Factory

WHOLE = (
    "... on Certificate { id number language issuedOn sha256 downloadUrl verificationCode version annulledAt "
    "duplicates { reason issuedBy { name } } stay { id } dispensary { name } }"
)


async def ended_stay(make: Factory, **patient: Any) -> tuple[Stay, Actor]:
    """An ended stay of eleven days in Vladivostok, and a doctor there."""
    place = await make.dispensary(
        name="Наркологический диспансер", neutral_name="Больница № 3", time_zone="Asia/Vladivostok"
    )
    stay = await make.stay(
        await make.patient(
            place, **{"family_name": "Ёлкина", "given_name": "Анна", "sex": "FEMALE", **patient}
        ),
        await make.bed(place),
        since=datetime(2026, 3, 2, 20, 0, tzinfo=UTC),  # the third of March there
        until=datetime(2026, 3, 14, 3, 0, tzinfo=UTC),
        diagnosis_code="F10.2",
    )
    return stay, await make.actor(doctor_of=(place,))


async def paper(client: Client, certificate: dict[str, Any]) -> tuple[bytes, str]:
    """The certificate's bytes and text."""
    answer = await client.http.get(certificate["downloadUrl"])
    assert answer.status_code == 200, answer.text
    text = pypdf.PdfReader(io.BytesIO(answer.content)).pages[0].extract_text()
    return answer.content, " ".join(text.split())


async def test_a_certificate_says_what_was_asked_for_and_no_more(client: Client, make: Factory) -> None:
    stay, doctor = await ended_stay(make)

    plain = await client.mutate(
        "certificateIssue", WHOLE, {"stayId": gid("Stay", stay), "request": {"neutralHeader": True}}, doctor
    )
    full = await client.mutate(
        "certificateIssue",
        WHOLE,
        {
            "stayId": gid("Stay", stay),
            "request": {"language": "en", "withDiagnosis": True, "purpose": "for work"},
        },
        doctor,
    )

    content, text = await paper(client, plain)
    assert hashlib.sha256(content).hexdigest() == plain["sha256"]
    assert "Больница № 3" in text
    assert "аркологический" not in text
    assert "F10" not in text
    assert "с 3 марта 2026 г. по 14 марта 2026 г., 11 койко-дней" in text
    assert "Ёлкина Анна" in text
    assert plain["verificationCode"] in text
    _, english = await paper(client, full)
    assert "Certificate of inpatient treatment" in english
    assert "F10.2" in english
    assert "for work" in english
    assert "11 bed-days" in english


async def test_numbers_have_no_gaps_whatever_fails_or_collides(client: Client, make: Factory) -> None:
    stay, doctor = await ended_stay(make)
    open_stay = await make.stay(
        await make.patient(await make.dispensary()), await make.bed(await make.dispensary())
    )
    order = {"stayId": gid("Stay", stay)}

    results = await asyncio.gather(
        *(
            client.mutate("certificateIssue", "... on Certificate { number }", order, doctor)
            for _ in range(12)
        ),
        *(
            client.mutate(
                "certificateIssue",
                "... on Certificate { number }",
                {**order, "request": {"purpose": "x" * 500}},
                doctor,
            )
            for _ in range(4)
        ),
    )
    strange = await client.mutate(
        "certificateIssue", "... on Certificate { number }", {"stayId": gid("Stay", open_stay)}, doctor
    )

    year = datetime.now(UTC).year
    numbers = sorted(int(item["number"].split("/")[0]) for item in results if "number" in item)
    assert numbers == list(range(1, 13))
    assert {item["number"].split("/")[1] for item in results if "number" in item} <= {
        str(year),
        str(year + 1),
    }
    assert [item["path"] for item in results if "number" not in item] == [["purpose"]] * 4
    assert strange["code"] == "NOT_FOUND"


async def test_an_open_stay_is_certified_only_when_it_ends(client: Client, make: Factory) -> None:
    place = await make.dispensary()
    stay = await make.stay(await make.patient(place), await make.bed(place))

    refused = await client.mutate(
        "certificateIssue",
        "... on StayStillOpen { stay { id } }",
        {"stayId": gid("Stay", stay)},
        await make.actor(doctor_of=(place,)),
    )

    assert (refused["code"], refused["stay"]) == ("STAY_STILL_OPEN", {"id": gid("Stay", stay)})


async def test_a_reprint_is_the_same_bytes_and_stands_in_the_register(client: Client, make: Factory) -> None:
    stay, doctor = await ended_stay(make)
    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    before, _ = await paper(client, issued)
    await make.database.fetch("UPDATE patient SET family_name = 'Другая'")

    again = await client.mutate(
        "certificateReprint", WHOLE, {"id": issued["id"], "reason": "утеряна"}, doctor
    )

    after, _ = await paper(client, again)
    assert after == before
    assert [item["reason"] for item in again["duplicates"]] == ["утеряна"]
    assert again["sha256"] == issued["sha256"]


async def test_an_annulled_certificate_says_so_and_is_not_printed_again(
    client: Client, make: Factory
) -> None:
    stay, doctor = await ended_stay(make)
    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    verify = (
        "query ($code: String!) "
        "{ certificateVerification(code: $code) { number annulled organisation checkedInOn } }"
    )

    good = await client.data(verify, code=issued["verificationCode"])
    annulled = await client.mutate(
        "certificateAnnul", WHOLE, {"id": issued["id"], "version": 1, "reason": "опечатка"}, doctor
    )
    bad = await client.data(verify, code=issued["verificationCode"].lower())
    page = await client.http.get(f"/verify/{issued['verificationCode']}")
    reprinted = await client.mutate("certificateReprint", WHOLE, {"id": issued["id"]}, doctor)
    stale = await client.mutate(
        "certificateAnnul", WHOLE, {"id": issued["id"], "version": 1, "reason": "ещё раз"}, doctor
    )

    assert good["certificateVerification"] == {
        "number": issued["number"],
        "annulled": False,
        "organisation": "Наркологический диспансер",
        "checkedInOn": "2026-03-03",
    }
    assert annulled["annulledAt"] is not None
    assert bad["certificateVerification"]["annulled"] is True
    assert "аннулирована" in page.text
    assert "Ёлкина" not in page.text
    assert reprinted["code"] == "CERTIFICATE_ANNULLED"
    assert stale["code"] == "VERSION_CONFLICT"


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "<img src=file:///etc/passwd>",
        "O'Brien & Söns",
        "Ж" * 100,
    ],
)
async def test_hostile_and_unusual_names_are_printed_as_they_are(
    client: Client, make: Factory, name: str
) -> None:
    stay, doctor = await ended_stay(make, family_name=name, patronymic=None)

    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)

    _, text = await paper(client, issued)
    assert name.replace(" ", "") in text.replace(" ", "")
    assert "root:" not in text


async def test_a_name_that_no_font_has_is_registered_and_its_download_says_what_to_do(
    client: Client, make: Factory
) -> None:
    stay, doctor = await ended_stay(make, family_name="漢字")

    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    answer = await client.http.get(issued["downloadUrl"])

    assert issued["sha256"] is None
    assert answer.status_code == 422
    assert "аннулируйте" in answer.text


async def test_a_paper_that_was_never_made_is_made_when_it_is_asked_for(
    client: Client, make: Factory
) -> None:
    """As after a kill between the number and the rendering."""
    stay, doctor = await ended_stay(make)
    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    await make.database.fetch("UPDATE certificate SET pdf = NULL, sha256 = NULL")

    first, text = await paper(client, issued)
    second, _ = await paper(client, issued)

    assert first == second
    assert "Ёлкина" in text


async def test_a_download_address_ends_soon_and_cannot_be_made_up(client: Client, make: Factory) -> None:
    stay, doctor = await ended_stay(make)
    issued = await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    name = issued["downloadUrl"].rpartition("/")[2].removesuffix(".pdf")
    keys = client.services.download_keys
    now = int(datetime.now(UTC).timestamp())
    expired = links.name(keys[0], "1", now - 1)
    forged = links.name(b"another key", "1", now + 100)
    missing = links.name(keys[0], str(10**9), now + 100)

    async def status(text: str) -> int:
        return (await client.http.get(f"/certificates/{text}.pdf")).status_code

    assert name == links.name(keys[0], name.split("-")[0], int(name.split("-")[1]))
    assert int(name.split("-")[1]) <= now + client.services.settings.download_ttl_s + 2
    assert [await status(text) for text in (name, expired, forged, missing, "1", name[:-1], "x" * 500)] == [
        200,
        403,
        403,
        404,
        403,
        403,
        403,
    ]
    answer = await client.http.get(issued["downloadUrl"])
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert issued["number"].replace("/", "-") in answer.headers["content-disposition"]


async def test_a_patient_sees_their_own_certificates_and_a_stranger_none(
    client: Client, make: Factory
) -> None:
    stay, doctor = await ended_stay(make)
    user, stranger = await make.actor(), await make.actor()
    other_doctor = await make.actor(doctor_of=(await make.dispensary(),))
    await client.mutate("certificateIssue", WHOLE, {"stayId": gid("Stay", stay)}, doctor)
    await make.database.fetch("UPDATE patient SET account_id = $1", user.account_id)
    query = "{ certificates { edges { node { number downloadUrl } } } }"

    own = await client.data(query, user)
    answer = await client.http.get(own["certificates"]["edges"][0]["node"]["downloadUrl"])

    assert answer.status_code == 200
    for nobody in (stranger, other_doctor):
        assert (await client.data(query, nobody)) == {"certificates": {"edges": []}}
    assert await client.codes(query) == ["UNAUTHENTICATED"]
