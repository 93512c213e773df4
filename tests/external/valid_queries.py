"""Valid queries of the whole schema, made by hypothesis-graphql: none may be answered INTERNAL or by a 5xx."""

import base64
import sys
from collections import Counter
from pathlib import Path

import requests
from graphql import build_schema, get_named_type
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis_graphql import nodes, queries

path, url, token, examples = sys.argv[1:]
TEXT = Path(path).read_text()
FIELDS = {
    name: get_named_type(field.type).name for name, field in build_schema(TEXT).query_type.fields.items()
}
codes: Counter[str] = Counter()
SCALARS = {
    "DateTime": ["2026-01-01T00:00:00Z"],
    "Date": ["2026-01-01"],
    "Phone": ["+74950000000"],
    "Time": ["09:30", "24:00"],
    "TimeZone": ["Europe/Moscow"],
}
KINDS = ["Account", "Bed", "Dispensary", "Patient", "Schedule", "Slot", "Stay"]


def ids(kinds: list[str]) -> list[str]:
    return [base64.b64encode(f"{kind}:{number}".encode()).decode() for kind in kinds for number in (1, 2)]


def documents(field: str) -> strategies.SearchStrategy[str]:
    """Of one root field, with ids of what it answers with or asks about."""
    values = {
        **SCALARS,
        "ID": ids([FIELDS[field]] if field[0].upper() + field[1:] == FIELDS[field] else KINDS),
    }
    return queries(
        TEXT,
        fields=[field],
        custom_scalars={
            name: strategies.sampled_from(texts).map(nodes.String) for name, texts in values.items()
        },
    )


@settings(
    max_examples=int(examples),
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(document=strategies.sampled_from(sorted(FIELDS)).flatmap(documents))
def ask(document: str) -> None:
    answer = requests.post(
        url, json={"query": document}, headers={"authorization": f"Bearer {token}"}, timeout=60
    )
    assert answer.status_code < 500, (answer.status_code, document)
    body = answer.json()
    found = {error["extensions"]["code"] for error in body.get("errors", ())} or {"ok"}
    assert "INTERNAL" not in found, document
    codes.update(found)


ask()
print(", ".join(f"{code} {count}" for code, count in codes.most_common()))
