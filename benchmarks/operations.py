"""What is asked: six queries of the ward's day, with variables that walk through the data.

Several sets of variables are asked in turn, so that no server answers from one warm row.
"""

from __future__ import annotations

from ekoyka.graph.ids import encode

TEXTS = {
    "board": """query Board($id: ID!) {
  dispensary(id: $id) { id name rooms(first: 50) { edges { node { id number floor sex
    beds(first: 20) { edges { node { id label status
      currentAssignment { startedAt stay { id plannedCheckOutOn patient { id familyName givenName patronymic } } }
    } } } } } } } }""",
    "list": """query List {
  dispensaries(first: 50) { edges { node { id name address bedCounts { total free } } } } }""",
    "point": """query Point($id: ID!) {
  bed(id: $id) { id label status room { id number floor } dispensary { id name }
    currentAssignment { startedAt stay { id patient { id familyName givenName } } } } }""",
    "history": """query History($id: ID!) {
  patient(id: $id) { id familyName givenName stays(first: 20) { edges { node {
    id checkedInAt checkedOutAt outcome diagnosisCode
    assignments { startedAt endedAt bed { id label room { number } } } } } } } }""",
    "search": """query Search($text: String!) {
  patients(first: 20, where: { search: $text }) {
    edges { node { id recordNumber familyName givenName patronymic birthDate } } pageInfo { hasNextPage } } }""",
    "discharged": """query Discharged($dispensary: ID!, $from: DateTime!, $until: DateTime!) {
  stays(first: 50, where: { dispensaryId: $dispensary, open: false, from: $from, until: $until },
    orderBy: [{ field: CHECKED_OUT_AT, direction: DESC }]) {
    edges { node { id checkedInAt checkedOutAt outcome diagnosisCode patient { id familyName givenName } } }
    pageInfo { hasNextPage } } }""",
}
READS = tuple(TEXTS)


def variables(name: str, turn: int) -> dict[str, object]:
    """The variables of a read's turn; all of them exist at every scale."""
    match name:
        case "board":
            return {"id": encode("Dispensary", 1 + turn % 5)}
        case "point":
            return {"id": encode("Bed", 1 + turn * 37 % 800)}
        case "history":
            return {"id": encode("Patient", 1 + turn % 32)}
        case "search":
            return {"text": ("смирн серг", "Петр алекс", "фёдор ар", "иван дмит", "орл мак")[turn % 5]}
        case "discharged":
            return {
                "dispensary": encode("Dispensary", 1 + turn % 5),
                "from": "2025-06-01T00:00:00+00:00",
                "until": "2026-01-01T00:00:00+00:00",
            }
        case _:
            return {}
