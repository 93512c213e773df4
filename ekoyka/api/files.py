"""Files and pages behind addresses that somebody was given: certificates, their verification, calendars."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import orjson
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from strawberry import Schema

from ekoyka import links, rates
from ekoyka.api.clients import address_of
from ekoyka.api.context import Run, Services
from ekoyka.api.endpoint import language_of
from ekoyka.api.pages import page
from ekoyka.api.presentation import may_succeed_later, present
from ekoyka.certificates.operations import facts_of, keep_pdf
from ekoyka.certificates.render import RenderBusy, RenderFailed, Unprintable
from ekoyka.database import NETWORK, Row, Statement
from ekoyka.identity import access_log, limits
from ekoyka.observability import request_id
from ekoyka.outpatient.calendars import OF_APPOINTMENT, OF_DAY, Visit, calendar_file

_PAPER = Statement(
    f"""
    WITH paper AS (
        SELECT c.id, s.patient_id, c.dispensary_id, c.pdf, c.number, c.year, c.facts
        FROM certificate c JOIN stay s ON s.id = c.stay_id WHERE c.id = :id
    ), logged AS ({access_log.entry("certificate_download", "Certificate", "paper")})
    SELECT pdf, number, year, facts::text AS facts FROM paper
    """
)


def _too_often(limited: rates.RateLimited) -> Response:
    return PlainTextResponse(
        "Слишком часто: повторите позже.\nToo often: try again later.",
        429,
        {"retry-after": str(limited.retry_after_s)},
    )


def _try_later() -> Response:
    return PlainTextResponse(
        "Сейчас не получилось: повторите через несколько секунд.\n"
        "Not possible right now: try again in a few seconds.",
        503,
        {"retry-after": "3"},
    )


def _refused() -> Response:
    return PlainTextResponse(
        "Адрес недействителен или устарел: запросите новый.\n"
        "The address is not good (any more): ask for a new one.",
        403,
    )


async def _shown(request: Request, services: Services, statement: Statement, **values: Any) -> list[Row]:
    """The rows of a signed address, which whoever has it was given as one who may read them; logged as read."""
    async with services.database.transaction(ward=NETWORK) as session:
        return await statement.rows(
            session,
            account=None,
            role=None,
            request=request_id.get(),
            address=address_of(request),
            **values,
        )


async def certificate(request: Request) -> Response:
    """A certificate's bytes, for whoever has its short-lived address; made now if they never were."""
    services: Services = request.app.state.services
    subject = links.read(services.download_keys, request.path_params["name"])
    if subject is None or not subject.isdigit():
        return _refused()
    try:
        await rates.attempt(services.database, *limits.download(address_of(request)))
        found = await _shown(request, services, _PAPER, id=int(subject))
        if not found:
            return PlainTextResponse("Справки нет.\nThere is no such certificate.", 404)
        [row] = found
        pdf = row.pdf
        if pdf is None:
            pdf = await services.renderer.render(facts_of(orjson.loads(row.facts)))
            async with services.database.transaction(ward=NETWORK) as session:
                pdf = await keep_pdf(session, certificate_id=int(subject), pdf=pdf)
    except rates.RateLimited as limited:
        return _too_often(limited)
    except Unprintable:
        return PlainTextResponse(
            "В данных справки есть знак, которого нет в шрифте: исправьте данные, аннулируйте справку и выдайте новую."
            "\nThe certificate has a character that no font has: correct the record, annul it and issue a new one.",
            422,
        )
    except Exception as error:
        if not (isinstance(error, RenderBusy | RenderFailed) or may_succeed_later(error)):
            raise
        return _try_later()
    filename = f"certificate-{row.number}-{row.year}.pdf"
    return Response(
        pdf,
        200,
        {
            "content-disposition": f'inline; filename="{filename}"',
            "content-security-policy": "default-src 'none'; sandbox",
        },
        "application/pdf",
    )


async def calendar(request: Request) -> Response:
    """An appointment or a doctor's day as it is now, for whoever has its short-lived address."""
    services: Services = request.app.state.services
    subject = links.read(services.download_keys, request.path_params["name"])
    if subject is None or subject.isdigit():
        return _refused()
    kind, key, day = subject[0], *subject[1:].partition(".")[::2]
    try:
        await rates.attempt(services.database, *limits.download(address_of(request)))
        if kind == "a":
            rows = await _shown(request, services, OF_APPOINTMENT, id=int(key))
        else:
            of = date(int(day[:4]), int(day[4:6]), int(day[6:]))
            rows = await _shown(request, services, OF_DAY, id=int(key), day=of)
    except rates.RateLimited as limited:
        return _too_often(limited)
    except Exception as error:
        if not may_succeed_later(error):
            raise
        return _try_later()
    if not rows and kind == "a":
        return PlainTextResponse("Записи нет.\nThere is no such appointment.", 404)
    file = calendar_file(
        (Visit(*row) for row in rows),
        language=language_of(request),
        host=urlsplit(services.settings.base_url).hostname or "localhost",
    )
    return Response(
        file, 200, {"content-disposition": 'attachment; filename="visit.ics"'}, "text/calendar; charset=utf-8"
    )


def verifier(schema: Schema) -> Callable[[Request], Awaitable[Response]]:
    """The public page behind a certificate's QR code: the same answer as the query's."""

    async def verify(request: Request) -> Response:
        run = Run(request.app.state.services, request, None, language_of(request), compiled=False)
        result = await schema.execute(
            "query ($code: String!) { certificateVerification(code: $code) "
            "{ number issuedOn checkedInOn checkedOutOn organisation annulled } }",
            variable_values={"code": request.path_params["code"]},
            context_value=run,
        )
        for error, shown in zip(result.errors or (), present(result.errors or ()), strict=False):
            if isinstance(error.original_error, rates.RateLimited):
                return _too_often(error.original_error)
            # What is no code is nobody's; whatever else went wrong says nothing of the certificate.
            if shown["extensions"]["code"] != "BAD_USER_INPUT":
                return _try_later()
        found = (result.data or {}).get("certificateVerification")
        return page("verification.html.j2", 200 if found else 404, found=found)

    return verify
