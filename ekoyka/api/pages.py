"""Pages for people: small, in both languages, with nothing from anywhere else."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, Response

_PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)


def page(
    template: str,
    status: int = 200,
    *,
    scripted: bool = False,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """The page of this template; what runs in it and how it looks is its own text's alone."""
    nonce = secrets.token_urlsafe(16)
    policy = [
        "default-src 'none'",
        f"style-src 'nonce-{nonce}'",
        *([f"script-src 'nonce-{nonce}'", "connect-src 'self'"] if scripted else []),
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return HTMLResponse(
        _PAGES.get_template(template).render(nonce=nonce, **values),
        status,
        {"content-security-policy": "; ".join(policy), **(headers or {})},
    )


def said(
    connection: HTTPConnection,
    status: int,
    code: str,
    *,
    ru: str,
    en: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A sentence with its code: a page for a browser, JSON for a program."""
    if "text/html" in connection.headers.get("accept", ""):
        return page("said.html.j2", status, headers=headers, code=code, ru=ru, en=en)
    return JSONResponse(
        {"errors": [{"message": en, "extensions": {"code": code}}]}, status, dict(headers or {})
    )
