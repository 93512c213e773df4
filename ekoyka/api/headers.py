"""Header fields that every answer has, whoever made it: what browsers are allowed to do with it.

Made once, as bytes. An answer's own field of the same name comes first.
"""

from ekoyka.settings import Settings

Headers = tuple[tuple[bytes, bytes], ...]

ALWAYS: Headers = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # Personal until somebody says otherwise.
    (b"cache-control", b"no-store"),
    # What is no page loads, runs and frames nothing; pages bring their own.
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"permissions-policy",
        b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    ),
)
_OVER_TLS: Headers = ((b"strict-transport-security", b"max-age=31536000"),)


def security_headers(settings: Settings) -> Headers:
    """The header fields of this deployment's answers."""
    return ALWAYS + (_OVER_TLS if settings.base_url.startswith("https://") else ())
