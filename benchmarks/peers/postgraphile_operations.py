"""The six reads in the schema that PostGraphile makes of the tables, and its answers in EKoyka's form."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

_ASSIGNMENT = "bedAssignmentsByBedIdAndDispensaryId(first: 1, condition: { endedAt: null }) { nodes"
_ROOM = "room: roomByRoomIdAndDispensaryId"
_STAY = "stay: stayByStayIdAndDispensaryId"
_BED = "bed: bedByBedIdAndDispensaryId"

OPERATIONS = {
    "board": f"""query Board($id: BigInt!) {{
  dispensary: dispensaryByRowId(rowId: $id) {{ id: rowId name
    rooms: roomsByDispensaryId(first: 100, orderBy: [NUMBER_KEY_ASC, ROW_ID_ASC], condition: {{ archivedAt: null }}) {{
      edges {{ node {{ id: rowId number floor sex
        beds: bedsByRoomIdAndDispensaryId(
          first: 100, orderBy: [LABEL_KEY_ASC, ROW_ID_ASC], condition: {{ archivedAt: null }}) {{
          edges {{ node {{ id: rowId label status
            currentAssignment: {_ASSIGNMENT} {{ startedAt {_STAY} {{ id: rowId plannedCheckOutOn
              patient: patientByPatientId {{ id: rowId familyName givenName patronymic }}
            }} }} }} }} }} }} }} }} }} }} }}""",
    "list": """query List {
  dispensaries: allDispensaries(first: 50, orderBy: [NAME_KEY_ASC, ROW_ID_ASC], condition: { archivedAt: null }) {
    edges { node { id: rowId name address total: bedTotal free: bedFree } } } }""",
    "point": f"""query Point($id: BigInt!) {{
  bed: bedByRowId(rowId: $id) {{ id: rowId label status {_ROOM} {{ id: rowId number floor }}
    dispensary: dispensaryByDispensaryId {{ id: rowId name }}
    currentAssignment: {_ASSIGNMENT} {{ startedAt {_STAY} {{ id: rowId
      patient: patientByPatientId {{ id: rowId familyName givenName }} }} }} }} }} }}""",
    "history": f"""query History($id: BigInt!) {{
  patient: patientByRowId(rowId: $id) {{ id: rowId familyName givenName
    stays: staysByPatientId(first: 20, orderBy: [CHECKED_IN_AT_DESC, ROW_ID_DESC]) {{ edges {{ node {{
      id: rowId checkedInAt checkedOutAt outcome diagnosisCode
      assignments: bedAssignmentsByStayIdAndDispensaryId(orderBy: [STARTED_AT_ASC, ROW_ID_ASC]) {{
        nodes {{ startedAt endedAt {_BED} {{ id: rowId label {_ROOM} {{ number }} }} }} }} }} }} }} }} }}""",
    "search": """query Search($words: String!) {
  patients: foundPatients(words: $words, first: 20) {
    edges { node { id: rowId recordNumber familyName givenName patronymic birthDate } }
    pageInfo { hasNextPage } } }""",
    "discharged": """query Discharged($dispensary: BigInt!, $begins: Datetime!, $ends: Datetime!) {
  stays: dischargedStays(dispensary: $dispensary, begins: $begins, ends: $ends, first: 50) {
    edges { node { id: rowId checkedInAt checkedOutAt outcome diagnosisCode
      patient: patientByPatientId { id: rowId familyName givenName } } }
    pageInfo { hasNextPage } } }""",
}


def _key(value: object) -> str:
    return base64.b64decode(str(value)).decode().partition(":")[2]


def variables(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """EKoyka's variables as PostGraphile's: row numbers, and the search as its function wants it."""
    if name == "search":
        words = str(given["text"]).lower().replace("ё", "е").split()
        return {"words": " & ".join(f"{word}:*" for word in words)}
    if name == "discharged":
        return {"dispensary": _key(given["dispensary"]), "begins": given["from"], "ends": given["until"]}
    return {"id": _key(given["id"])} if given else {}


def answer(name: str, data: Any) -> Any:
    """Its data in the form of EKoyka's answer."""
    if name == "list":
        for edge in data["dispensaries"]["edges"]:
            node = edge["node"]
            node["bedCounts"] = {"total": node.pop("total"), "free": node.pop("free")}
    elif name == "board":
        for room in data["dispensary"]["rooms"]["edges"]:
            for bed in room["node"]["beds"]["edges"]:
                _single(bed["node"])
    elif name == "point":
        _single(data["bed"])
    elif name == "history":
        for stay in data["patient"]["stays"]["edges"]:
            stay["node"]["assignments"] = stay["node"]["assignments"]["nodes"]
    return data


def _single(bed: dict[str, Any]) -> None:
    found = bed["currentAssignment"]["nodes"]
    bed["currentAssignment"] = found[0] if found else None
