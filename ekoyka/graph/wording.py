"""What graphql-core says of a bad document or bad variables, without the values that it quotes.

Literals and variables hold names, phones and passwords; an error's message is kept by clients and proxies that
may keep none of those. What is left names fields, types and enums, and the location says where.
"""

from __future__ import annotations

import re

from graphql import GraphQLError, GraphQLSyntaxError

_SYNTAX = re.compile(
    r"Syntax Error: (?:Expected (?:'[^']{1,12}'|\w+), found|Unexpected) (?:<EOF>|'[^'\w\s]{1,3}'|\w+)"
    r"|Syntax Error: Document (?:contains more than \d+ tokens|is nested too deeply)"
)
_NO_SUCH_CHOICE = re.compile(r"Value '.*' does not exist in '(\w+)' enum.*", re.DOTALL)
_NO_SUCH_FIELD = re.compile(
    r"(Expected value of type '\S+' not to include unknown field)(?: '([A-Za-z0-9_]{1,60})'[.,]| ').*",
    re.DOTALL,
)
_FOUND = re.compile(
    r"(?:, found|; found|, but encountered error|( value)): .*|, but encountered error .*", re.DOTALL
)


def plainly(error: GraphQLError) -> str:
    """What parsing, validation or coercion says, without the values that were sent."""
    if isinstance(error, GraphQLSyntaxError):
        known = _SYNTAX.match(error.message)
        return f"{known[0]}." if known else "Syntax Error."
    about = error.original_error
    if isinstance(about, GraphQLError) and error.message.endswith(about.message):
        # «Variable '$input' has invalid value at …: » and what it says of the value.
        return error.message.removesuffix(about.message) + _without_value(about.message)
    return _without_value(error.message)


def _without_value(message: str) -> str:
    if found := _NO_SUCH_CHOICE.fullmatch(message):
        return f"The enum '{found[1]}' has no such value."
    if found := _NO_SUCH_FIELD.fullmatch(message):
        return f"{found[1]} '{found[2]}'." if found[2] else f"{found[1]}."
    return _FOUND.sub(lambda part: f"{part[1] or ''}.", message)
