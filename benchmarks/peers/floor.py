"""The floor: what a handler costs that knows each question beforehand.

No GraphQL, no permissions, no scopes: hand-written SQL, a bare Starlette handler. Twice: ``json`` lets
PostgreSQL make the JSON, ``rows`` fetches flat rows and puts the answer together by hand. Row numbers stand
for global ids. What is measured is held against the better of the two.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import asyncpg
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_STATUS = """CASE WHEN a.id IS NOT NULL THEN 'OCCUPIED' WHEN v.id IS NOT NULL THEN 'RESERVED'
    WHEN b.service_state = 'IN_SERVICE' THEN 'FREE' ELSE b.service_state END"""
_USE = """
    LEFT JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL
    LEFT JOIN reservation v ON v.bed_id = b.id AND v.ended_at IS NULL AND v.until > now()
    LEFT JOIN stay s ON s.id = a.stay_id
    LEFT JOIN patient p ON p.id = s.patient_id"""
_COUNTS = f"""
    SELECT b.dispensary_id, count(*) AS total, count(*) FILTER (WHERE ({_STATUS}) = 'FREE') AS free
    FROM bed b
    LEFT JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL
    LEFT JOIN reservation v ON v.bed_id = b.id AND v.ended_at IS NULL AND v.until > now()
    WHERE b.archived_at IS NULL GROUP BY b.dispensary_id"""
_DISPENSARIES = "(SELECT * FROM dispensary WHERE archived_at IS NULL ORDER BY name_key, id LIMIT 50)"
_LAST_STAYS = "(SELECT * FROM stay WHERE patient_id = $1 ORDER BY checked_in_at DESC, id DESC LIMIT 20)"
_FOUND = """(SELECT * FROM patient WHERE search @@ $1::text::tsquery AND archived_at IS NULL
    ORDER BY name_key, id LIMIT 21)"""
_DISCHARGED = """(SELECT * FROM stay WHERE dispensary_id = $1 AND checked_out_at IS NOT NULL
    AND checked_out_at > $2 AND checked_in_at < $3
    ORDER BY ended_at DESC, id DESC LIMIT 51)"""

JSON = {
    "board": f"""
        SELECT json_build_object('id', d.id, 'name', d.name, 'rooms', json_build_object('edges', (
            SELECT json_agg(json_build_object('node', json_build_object(
                'id', m.id, 'number', m.number, 'floor', m.floor, 'sex', m.sex,
                'beds', json_build_object('edges', m.beds))) ORDER BY m.number_key, m.id)
            FROM (
                SELECT m.*, json_agg(json_build_object('node', json_build_object(
                    'id', b.id, 'label', b.label, 'status', {_STATUS},
                    'currentAssignment', CASE WHEN a.id IS NOT NULL THEN json_build_object(
                        'startedAt', a.started_at,
                        'stay', json_build_object('id', s.id, 'plannedCheckOutOn', s.planned_check_out_on,
                            'patient', json_build_object('id', p.id, 'familyName', p.family_name,
                                'givenName', p.given_name, 'patronymic', p.patronymic))) END
                    )) ORDER BY b.label_key, b.id) AS beds
                FROM room m JOIN bed b ON b.room_id = m.id AND b.archived_at IS NULL {_USE}
                WHERE m.dispensary_id = d.id AND m.archived_at IS NULL GROUP BY m.id
            ) m
        )))::text FROM dispensary d WHERE d.id = $1""",
    "list": f"""
        SELECT json_build_object('edges', json_agg(json_build_object('node', json_build_object(
            'id', d.id, 'name', d.name, 'address', d.address,
            'bedCounts', json_build_object('total', c.total, 'free', c.free))) ORDER BY d.name_key, d.id))::text
        FROM {_DISPENSARIES} d JOIN ({_COUNTS}) c ON c.dispensary_id = d.id""",
    "point": f"""
        SELECT json_build_object('id', b.id, 'label', b.label, 'status', {_STATUS},
            'room', json_build_object('id', m.id, 'number', m.number, 'floor', m.floor),
            'dispensary', json_build_object('id', d.id, 'name', d.name),
            'currentAssignment', CASE WHEN a.id IS NOT NULL THEN json_build_object(
                'startedAt', a.started_at, 'stay', json_build_object('id', s.id,
                    'patient', json_build_object('id', p.id, 'familyName', p.family_name,
                        'givenName', p.given_name))) END)::text
        FROM bed b JOIN room m ON m.id = b.room_id JOIN dispensary d ON d.id = b.dispensary_id {_USE}
        WHERE b.id = $1""",
    "history": f"""
        SELECT json_build_object('id', p.id, 'familyName', p.family_name, 'givenName', p.given_name,
            'stays', json_build_object('edges', (
                SELECT json_agg(json_build_object('node', json_build_object('id', s.id,
                    'checkedInAt', s.checked_in_at, 'checkedOutAt', s.checked_out_at, 'outcome', s.outcome,
                    'diagnosisCode', s.diagnosis_code, 'assignments', s.assignments))
                    ORDER BY s.checked_in_at DESC, s.id DESC)
                FROM (
                    SELECT s.id, s.checked_in_at, s.checked_out_at, s.outcome, s.diagnosis_code,
                        json_agg(json_build_object('startedAt', a.started_at, 'endedAt', a.ended_at,
                            'bed', json_build_object('id', b.id, 'label', b.label,
                                'room', json_build_object('number', m.number)))
                            ORDER BY a.started_at, a.id) AS assignments
                    FROM {_LAST_STAYS} s JOIN bed_assignment a ON a.stay_id = s.id
                    JOIN bed b ON b.id = a.bed_id JOIN room m ON m.id = b.room_id
                    GROUP BY s.id, s.checked_in_at, s.checked_out_at, s.outcome, s.diagnosis_code
                ) s)))::text
        FROM patient p WHERE p.id = $1""",
    "search": f"""
        SELECT json_build_object('edges', coalesce(json_agg(json_build_object('node', json_build_object(
            'id', p.id, 'recordNumber', p.record_number, 'familyName', p.family_name,
            'givenName', p.given_name, 'patronymic', p.patronymic, 'birthDate', p.birth_date))
            ORDER BY p.name_key, p.id) FILTER (WHERE p.n <= 20), '[]'),
            'pageInfo', json_build_object('hasNextPage', count(*) > 20))::text
        FROM (SELECT p.*, row_number() OVER () AS n FROM {_FOUND} p) p""",
    "discharged": f"""
        SELECT json_build_object('edges', coalesce(json_agg(json_build_object('node', json_build_object(
            'id', s.id, 'checkedInAt', s.checked_in_at, 'checkedOutAt', s.checked_out_at,
            'outcome', s.outcome, 'diagnosisCode', s.diagnosis_code,
            'patient', json_build_object('id', p.id, 'familyName', p.family_name, 'givenName', p.given_name)))
            ORDER BY s.n) FILTER (WHERE s.n <= 50), '[]'),
            'pageInfo', json_build_object('hasNextPage', count(*) > 50))::text
        FROM (SELECT s.*, row_number() OVER () AS n FROM {_DISCHARGED} s) s
        JOIN patient p ON p.id = s.patient_id""",
}

ROWS = {
    "board": f"""
        SELECT d.id, d.name, m.id, m.number, m.floor, m.sex, b.id, b.label, {_STATUS}, a.started_at,
            s.id, s.planned_check_out_on, p.id, p.family_name, p.given_name, p.patronymic
        FROM dispensary d JOIN room m ON m.dispensary_id = d.id AND m.archived_at IS NULL
        JOIN bed b ON b.room_id = m.id AND b.archived_at IS NULL {_USE}
        WHERE d.id = $1 ORDER BY m.number_key, m.id, b.label_key, b.id""",
    "list": f"""
        SELECT d.id, d.name, d.address, c.total, c.free
        FROM {_DISPENSARIES} d JOIN ({_COUNTS}) c ON c.dispensary_id = d.id ORDER BY d.name_key, d.id""",
    "point": f"""
        SELECT b.id, b.label, {_STATUS}, m.id, m.number, m.floor, d.id, d.name, a.started_at, s.id,
            p.id, p.family_name, p.given_name
        FROM bed b JOIN room m ON m.id = b.room_id JOIN dispensary d ON d.id = b.dispensary_id {_USE}
        WHERE b.id = $1""",
    "history": f"""
        SELECT p.id, p.family_name, p.given_name, s.id, s.checked_in_at, s.checked_out_at, s.outcome,
            s.diagnosis_code, a.started_at, a.ended_at, b.id, b.label, m.number
        FROM patient p JOIN {_LAST_STAYS} s ON true JOIN bed_assignment a ON a.stay_id = s.id
        JOIN bed b ON b.id = a.bed_id JOIN room m ON m.id = b.room_id
        WHERE p.id = $1 ORDER BY s.checked_in_at DESC, s.id DESC, a.started_at, a.id""",
    "search": f"""
        SELECT p.id, p.record_number, p.family_name, p.given_name, p.patronymic, p.birth_date
        FROM {_FOUND} p ORDER BY p.name_key, p.id""",
    "discharged": f"""
        SELECT s.id, s.checked_in_at, s.checked_out_at, s.outcome, s.diagnosis_code,
            p.id, p.family_name, p.given_name
        FROM {_DISCHARGED} s JOIN patient p ON p.id = s.patient_id
        ORDER BY s.checked_out_at DESC, s.id DESC""",
}

ROOTS = {
    "board": "dispensary",
    "list": "dispensaries",
    "point": "bed",
    "history": "patient",
    "search": "patients",
    "discharged": "stays",
}
Row = Any


def _board(rows: list[Row]) -> Any:
    rooms: dict[int, Any] = {}
    for (
        _, _, room, number, floor, sex, bed, label, status, started, stay, planned, patient, family, given, patronymic
    ) in rows:  # fmt: skip
        if room not in rooms:
            rooms[room] = {"id": room, "number": number, "floor": floor, "sex": sex, "beds": {"edges": []}}
        rooms[room]["beds"]["edges"].append(
            {
                "node": {
                    "id": bed,
                    "label": label,
                    "status": status,
                    "currentAssignment": None
                    if started is None
                    else {
                        "startedAt": started,
                        "stay": {
                            "id": stay,
                            "plannedCheckOutOn": planned,
                            "patient": {
                                "id": patient,
                                "familyName": family,
                                "givenName": given,
                                "patronymic": patronymic,
                            },
                        },
                    },
                }
            }
        )
    return {
        "id": rows[0][0],
        "name": rows[0][1],
        "rooms": {"edges": [{"node": room} for room in rooms.values()]},
    }


def _list(rows: list[Row]) -> Any:
    return {
        "edges": [
            {
                "node": {
                    "id": id,
                    "name": name,
                    "address": address,
                    "bedCounts": {"total": total, "free": free},
                }
            }
            for id, name, address, total, free in rows
        ]
    }


def _point(rows: list[Row]) -> Any:
    bed, label, status, room, number, floor, place, name, started, stay, patient, family, given = rows[0]
    return {
        "id": bed,
        "label": label,
        "status": status,
        "room": {"id": room, "number": number, "floor": floor},
        "dispensary": {"id": place, "name": name},
        "currentAssignment": None
        if started is None
        else {
            "startedAt": started,
            "stay": {
                "id": stay,
                "patient": {"id": patient, "familyName": family, "givenName": given},
            },
        },
    }


def _history(rows: list[Row]) -> Any:
    stays: dict[int, Any] = {}
    for _, _, _, stay, begins, ends, outcome, diagnosis, started, ended, bed, label, number in rows:
        if stay not in stays:
            stays[stay] = {
                "id": stay,
                "checkedInAt": begins,
                "checkedOutAt": ends,
                "outcome": outcome,
                "diagnosisCode": diagnosis,
                "assignments": [],
            }
        stays[stay]["assignments"].append(
            {
                "startedAt": started,
                "endedAt": ended,
                "bed": {"id": bed, "label": label, "room": {"number": number}},
            }
        )
    first = rows[0]
    return {
        "id": first[0],
        "familyName": first[1],
        "givenName": first[2],
        "stays": {"edges": [{"node": stay} for stay in stays.values()]},
    }


def _search(rows: list[Row]) -> Any:
    return {
        "edges": [
            {
                "node": {
                    "id": id,
                    "recordNumber": record,
                    "familyName": family,
                    "givenName": given,
                    "patronymic": patronymic,
                    "birthDate": birth,
                }
            }
            for id, record, family, given, patronymic, birth in rows[:20]
        ],
        "pageInfo": {"hasNextPage": len(rows) > 20},
    }


def _discharged(rows: list[Row]) -> Any:
    return {
        "edges": [
            {
                "node": {
                    "id": stay,
                    "checkedInAt": begins,
                    "checkedOutAt": ends,
                    "outcome": outcome,
                    "diagnosisCode": diagnosis,
                    "patient": {"id": patient, "familyName": family, "givenName": given},
                }
            }
            for stay, begins, ends, outcome, diagnosis, patient, family, given in rows[:50]
        ],
        "pageInfo": {"hasNextPage": len(rows) > 50},
    }


ASSEMBLE: dict[str, Callable[[list[Row]], Any]] = {
    "board": _board,
    "list": _list,
    "point": _point,
    "history": _history,
    "search": _search,
    "discharged": _discharged,
}


def _key(variables: dict[str, Any]) -> list[Any]:
    return [int(base64.b64decode(variables["id"]).split(b":")[1])]


def _discharged_arguments(variables: dict[str, Any]) -> list[Any]:
    return [
        int(base64.b64decode(variables["dispensary"]).split(b":")[1]),
        datetime.fromisoformat(variables["from"]),
        datetime.fromisoformat(variables["until"]),
    ]


ARGUMENTS: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "board": _key,
    "list": lambda variables: [],
    "point": _key,
    "history": _key,
    "search": lambda variables: [
        " & ".join(f"{word}:*" for word in variables["text"].lower().replace("ё", "е").split())
    ],
    "discharged": _discharged_arguments,
}


async def _nothing(_connection: Any) -> None:
    """Reads leave nothing to reset."""


def app(kind: str) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with asyncpg.create_pool(
            os.environ["DATABASE_URL"],
            min_size=10,
            max_size=10,
            reset=_nothing,
            server_settings={"jit": "off", "timezone": "UTC"},
        ) as pool:
            app.state.pool = pool
            print("ready", flush=True)
            yield

    async def answer(request: Request) -> Response:
        body = orjson.loads(await request.body())
        name = body.get("operationName", "").lower()
        if name not in ROOTS:
            return Response(status_code=400)
        arguments = ARGUMENTS[name](body["variables"])
        root = ROOTS[name].encode()
        if kind == "json":
            text = (await request.app.state.pool.fetchval(JSON[name], *arguments)).encode()
        else:
            text = orjson.dumps(ASSEMBLE[name](await request.app.state.pool.fetch(ROWS[name], *arguments)))
        return Response(b'{"data":{"' + root + b'":' + text + b"}}", media_type="application/json")

    return Starlette(lifespan=lifespan, routes=[Route("/graphql", answer, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(
        app(sys.argv[1]),
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
    )
