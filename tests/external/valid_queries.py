"""Valid queries of the whole schema, made by hypothesis-graphql: none may be answered INTERNAL or by a 5xx."""

import sys
from collections import Counter
from pathlib import Path

import requests
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis_graphql import nodes, queries

schema, url, token, examples = sys.argv[1:]
codes: Counter[str] = Counter()
SCALARS = {
    "DateTime": strategies.sampled_from(["2026-01-01T00:00:00Z", "nonsense"]).map(nodes.String),
    "Date": strategies.sampled_from(["2026-01-01", "nonsense"]).map(nodes.String),
    "Phone": strategies.text(max_size=20).map(nodes.String),
    "TimeZone": strategies.sampled_from(["Europe/Moscow", "Mars/Olympus"]).map(nodes.String),
}


@settings(
    max_examples=int(examples),
    deadline=None,
    phases=[Phase.generate],
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(document=queries(Path(schema).read_text(), custom_scalars=SCALARS))
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
