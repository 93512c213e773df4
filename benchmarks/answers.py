"""Answers in a form in which those of different servers can be compared."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime
from typing import Any

_GLOBAL_ID = re.compile(rb"[A-Za-z]+:(\d+)")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT.+")


def canonical(value: Any, key: str = "") -> Any:
    """Global ids as row numbers, instants as instants, everything else as it is."""
    if isinstance(value, dict):
        return {name: canonical(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [canonical(item, key) for item in value]
    if key == "id":
        return _row_number(value)
    if isinstance(value, str) and _INSTANT.fullmatch(value):
        return datetime.fromisoformat(value)
    return value


def _row_number(value: Any) -> int:
    if isinstance(value, int) or str(value).isdigit():
        return int(value)
    try:
        match = _GLOBAL_ID.fullmatch(base64.b64decode(str(value), validate=True))
    except binascii.Error:
        match = None
    assert match is not None, f"no row's number in the id {value!r}"
    return int(match[1])
