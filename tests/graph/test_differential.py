"""The compiled path against Strawberry's own executor: generated documents, the same answers.

The executor asks each root field's rows of the same compiler but collects fields, resolves fragments and
types, completes lists and nulls and serialises values by itself.
"""

import re
from typing import Any

import orjson
import pytest
from graphql import (
    ArgumentNode,
    DocumentNode,
    IntValueNode,
    ListValueNode,
    ObjectFieldNode,
    StringValueNode,
    print_ast,
    visit,
)
from graphql.language import Visitor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis_graphql import nodes, queries

from ekoyka.api.schema import sdl
from tests.graph.conftest import World

# What is different in each run: the moment and signature of a download address.
_ADDRESS = re.compile(r"/(certificates|calendars)/[^\"]+\.(pdf|ics)")
_KEY_OF = {
    "dispensary": "Dispensary",
    "dispensaryId": "Dispensary",
    "room": "Room",
    "roomId": "Room",
    "bed": "Bed",
    "patient": "Patient",
    "patientId": "Patient",
    "stay": "Stay",
    "reservation": "Reservation",
    "certificate": "Certificate",
    "account": "Account",
    "doctorId": "Account",
    "appointment": "Appointment",
    "schedule": "Schedule",
    "scheduleId": "Schedule",
    "slot": "Slot",
    "timeOff": "TimeOff",
}
_SCALARS = {
    "Date": st.sampled_from(["1980-02-29", "2026-01-31"]).map(nodes.String),
    "DateTime": st.sampled_from(["2026-01-31T00:00:00Z", "2026-11-01T12:00:00+03:00"]).map(nodes.String),
    "Phone": st.just("+74950000000").map(nodes.String),
    "TimeZone": st.just("Europe/Moscow").map(nodes.String),
}


class _Sensible(Visitor):
    """Turns made-up ids, page sizes and cursors into ones that can be meant."""

    def __init__(self, ids: dict[str, list[str]]) -> None:
        super().__init__()
        self.ids = ids

    def _id(self, type_name: str | None, made_up: str) -> StringValueNode:
        known = self.ids[type_name] if type_name else [key for keys in self.ids.values() for key in keys]
        return StringValueNode(value=known[sum(map(ord, made_up)) % len(known)])

    def enter_argument(self, node: ArgumentNode, key: Any, parent: Any, path: Any, ancestors: Any) -> Any:
        name, value = node.name.value, node.value
        if name in ("after", "before", "last"):
            return self.REMOVE
        if name == "first" and isinstance(value, IntValueNode):
            return ArgumentNode(name=node.name, value=IntValueNode(value=str(1 + abs(int(value.value)) % 4)))
        owner = ancestors[-1].name.value if hasattr(ancestors[-1], "name") else ancestors[-2].name.value
        if name == "ids" and isinstance(value, ListValueNode):
            some = [
                self._id(None, item.value)
                for item in value.values
                if isinstance(item, StringValueNode | IntValueNode)
            ]
            return ArgumentNode(name=node.name, value=ListValueNode(values=tuple(some)))
        if name == "orderBy" and isinstance(value, ListValueNode):
            return ArgumentNode(name=node.name, value=ListValueNode(values=value.values[:1]))
        if isinstance(value, StringValueNode | IntValueNode):
            if name == "id":
                return ArgumentNode(name=node.name, value=self._id(_KEY_OF.get(owner), value.value))
            if name in _KEY_OF:
                return ArgumentNode(name=node.name, value=self._id(_KEY_OF[name], value.value))
            if name == "code":
                return ArgumentNode(name=node.name, value=StringValueNode(value="0123456789ABCDEFGHJK"))
        return None

    def enter_object_field(self, node: ObjectFieldNode, *_: Any) -> Any:
        if isinstance(node.value, StringValueNode | IntValueNode):
            name = node.name.value
            if name in _KEY_OF:
                return ObjectFieldNode(name=node.name, value=self._id(_KEY_OF[name], node.value.value))
            if name in ("search", "patientSearch"):
                return ObjectFieldNode(name=node.name, value=StringValueNode(value="фёд"))
        return None


def _sensible(document: DocumentNode, ids: dict[str, list[str]]) -> str:
    return print_ast(visit(document, _Sensible(ids)))


@pytest.fixture(autouse=True)
def silent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads leave no entries: the one way of answering would find those of the other in the access log."""

    async def forget(*_: object) -> None:
        pass

    monkeypatch.setattr(world.client.services.readings, "note", forget)


async def _answer(world: World, actor: str, document: str, *, compiled: bool, **variables: Any) -> Any:
    schema = world.client.app.state.schema
    result = await schema.execute(
        document, variable_values=variables, context_value=world.run(actor, compiled=compiled)
    )
    errors = [(error.message, error.path) for error in result.errors or ()]
    return orjson.loads(_ADDRESS.sub("", orjson.dumps(result.data).decode())), errors


async def test_generated_documents_get_the_same_answers_both_ways(world: World) -> None:
    """Several hundred generated documents, each asked by an actor of some kind."""
    documents: set[tuple[str, str]] = set()

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        queries(
            sdl(world.client.app.state.schema),
            custom_scalars=_SCALARS,
            print_ast=lambda document: document,  # kept as a tree
        ),
        st.sampled_from([*world.actors, "superadmin", "superadmin", "doctor"]),
    )
    def generate(document: Any, actor: str) -> None:
        documents.add((_sensible(document, world.ids), actor))

    generate()
    answered = 0
    for text, actor in sorted(documents):
        compiled = await _answer(world, actor, text, compiled=True)
        executed = await _answer(world, actor, text, compiled=False)
        assert compiled == executed, f"{actor}: {text}"
        answered += compiled[0] is not None
    assert answered > 50


EVERYTHING = """
query ($page: Int, $yes: Boolean!, $no: Boolean!, $where: StayWhere, $order: [StayOrder!], $id: ID!) {
  ...Roots
  again: stays(first: $page, where: $where, orderBy: $order) { ...Stays totalCount }
  back: stays(last: 2) { edges { cursor } pageInfo { hasPreviousPage hasNextPage startCursor endCursor } }
  node(id: $id) { __typename id ... on Dispensary { kind: __typename name } ... on Bed { label } }
  skipped: beds @skip(if: $yes) { totalCount }
  included: beds @include(if: $no) { totalCount }
}
fragment Roots on Query {
  dispensaries(orderBy: [{field: NAME, direction: DESC}]) {
    totalCount
    edges { node {
      __typename name latitude timeZone bedCounts { total free available occupied reserved cleaning }
      rooms { edges { node { number sex beds(first: 2) { edges { node {
        label status
        currentAssignment { startedAt stay { ...OneStay } }
        currentReservation { until patient { codeName } reservedBy { name } }
      } } } } } }
      doctors { name accountId }
    } }
  }
}
fragment Stays on StayConnection { edges { cursor node { ...OneStay ... on Node { id } } } }
fragment OneStay on Stay {
  id overdue bedDays outcome diagnosisCode
  patient { familyName name: codeName stays { totalCount edges { node { id } } } }
  assignments { bed { label } endedAt }
  certificates { number withDiagnosis annulledAt duplicates { issuedAt } }
  revisions { reason checkedOutAt outcome }
}
"""


@pytest.mark.usefixtures("unlimited")
@pytest.mark.parametrize("actor", ["superadmin", "doctor", "both"])
async def test_one_document_with_everything_gets_the_same_answer_both_ways(world: World, actor: str) -> None:
    variables: dict[str, Any] = {
        "page": 3,
        "yes": True,
        "no": False,
        "where": {"patientSearch": "ФЕДОР", "diagnosis": "f1"},
        "order": [
            {"field": "PATIENT_NAME", "direction": "ASC"},
            {"field": "CHECKED_IN_AT", "direction": "DESC"},
        ],
        "id": world.ids["Dispensary"][0],
    }

    compiled, errors = await _answer(world, actor, EVERYTHING, compiled=True, **variables)
    executed = await _answer(world, actor, EVERYTHING, compiled=False, **variables)

    assert errors == []
    assert (compiled, errors) == executed
    assert "skipped" not in compiled
    assert "included" not in compiled
    assert compiled["node"]["kind"] == "Dispensary"
    assert compiled["again"]["totalCount"] == (2 if actor == "superadmin" else 1)
