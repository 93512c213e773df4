"""The text of JSON, as SQL: what is known beforehand is literal, each value stands between."""

from collections.abc import Iterable

from graphql import GraphQLEnumType, GraphQLField, GraphQLScalarType, get_nullable_type

# Stands before and behind the number of whoever's record follows; in JSON it can only stand escaped.
MARK = b"\x1e"
_MARK_TEXT = f"'{MARK.decode()}'"
_AS_THEY_ARE = frozenset({"Int", "Boolean"})


def value_text(sql: str, definition: GraphQLField) -> str:
    """The text of a value's JSON: what needs no escaping is written without looking for what to escape."""
    bare = get_nullable_type(definition.type)
    if isinstance(bare, GraphQLEnumType) or (isinstance(bare, GraphQLScalarType) and bare.name == "ID"):
        return quoted(sql)
    if isinstance(bare, GraphQLScalarType) and bare.name in _AS_THEY_ARE:
        return f"coalesce(({sql})::text, 'null')"
    return f"coalesce(to_json({sql})::text, 'null')"


def quoted(sql: str) -> str:
    """A text without signs that JSON would escape, or null."""
    return f"""coalesce('"' || ({sql}) || '"', 'null')"""


def name_text(name: str) -> str:
    """A name of the schema as JSON."""
    return f"""'"{name}"'"""


def object_text(parts: Iterable[tuple[str, str]]) -> str:
    """The text of an object whose values' texts are given."""
    members: list[str] = []
    for key, value in parts:
        members += [f"""'{"," if members else "{"}"{key}":'""", value]
    return joined(*members, "'}'" if members else "'{}'")


def list_text(item: str, order: str, condition: str | None = None) -> str:
    """An aggregate: the text of a list, of the rows for which the condition holds."""
    filtered = f" FILTER (WHERE {condition})" if condition else ""
    return joined("'['", f"coalesce(string_agg({item}, ',' ORDER BY {order}){filtered}, '')", "']'")


def joined(*texts: str) -> str:
    """The texts one after another; where two literals meet, one literal."""
    whole = texts[0]
    for text in texts[1:]:
        meet = whole.endswith("'") and text.startswith("'")
        whole = whole[:-1] + text[1:] if meet else f"{whole} || {text}"
    return whole


def marked(number: str, text: str) -> str:
    """The text, with a number before it that the server takes out again (see `unmarked`)."""
    return joined(_MARK_TEXT, f"coalesce(({number})::text, '')", _MARK_TEXT, text)


def unmarked(answer: bytes) -> tuple[bytes, list[bytes]]:
    """The answer as clients see it, and the numbers that stood in it; empty ones where there was none."""
    parts = answer.split(MARK)
    return b"".join(parts[::2]), parts[1::2]
