"""The data that everything is measured on: made by PostgreSQL, the same every time.

At scale 1: 50 dispensaries with 40 rooms and 160 beds each, 60,000 patients, 200,000 stays, 6,500 of them
open. Another scale multiplies the dispensaries, the patients and the stays; a dispensary keeps its size, and
so does the longest history.

Time is cut into 25 periods of 30 days, the last of which ends now. In each period each bed has one stay
that ends before the next period begins, and each patient at most one, so that nothing overlaps.
"""

from __future__ import annotations

import asyncpg

from ekoyka.database import Database
from ekoyka.migrate import upgrade
from ekoyka.settings import Settings

# Grows when the statements below make something else.
FORM = 4
# The account in whose name everything is asked: signs in to nothing, holds a token.
ADMIN = 1
# A doctor of the dispensaries whose boards are asked for.
DOCTOR = 2
BOARDS = 5
DISPENSARIES = 50
ROOMS_PER_DISPENSARY = 40
BEDS_PER_ROOM = 4
PERIODS = 25
OPEN_SHARE = 6500 / 8000
PATIENTS_PER_DISPENSARY = 1200
# One bed in 25 is used by a patient who is there in every period: the long histories.
REGULARS_SHARE = 25

_FAMILY = (
    "Иванов Смирнов Кузнецов Попов Васильев Петров Соколов Михайлов Новиков Фёдоров Морозов Волков Алексеев "
    "Лебедев Семёнов Егоров Павлов Козлов Степанов Николаев Орлов Андреев Макаров Никитин Захаров Зайцев "
    "Соловьёв Борисов Яковлев Григорьев Романов Воробьёв Сергеев Кузьмин Фролов Александров Дмитриев"
)
_GIVEN = (
    "Александр Сергей Андрей Алексей Дмитрий Иван Михаил Николай Владимир Пётр Фёдор Артём Юрий Олег Игорь "
    "Роман Максим Денис Антон Семён Григорий Лев Тимур"
)
_PATRONYMIC = (
    "Александрович Сергеевич Андреевич Алексеевич Дмитриевич Иванович Михайлович Николаевич Владимирович "
    "Петрович Фёдорович Юрьевич Олегович Игоревич Романович Семёнович Григорьевич"
)

# The moment that all of the data is counted back from; noon, so that local days are plain.
NOW = "timestamptz '2026-06-01T12:00:00Z'"


def _pick(words: str, number: str) -> str:
    return f"split_part('{words}', ' ', (1 + ({number}) % {len(words.split())})::int)"


def _steps(dispensaries: int) -> list[str]:
    beds = dispensaries * ROOMS_PER_DISPENSARY * BEDS_PER_ROOM
    patients = dispensaries * PATIENTS_PER_DISPENSARY
    regulars = beds // REGULARS_SHARE
    others, other_beds = patients - regulars, beds - regulars
    # A period's patients: the regulars, then the next others in turn. 7919 scatters beds over dispensaries.
    patient = f"CASE WHEN n < {regulars} THEN n ELSE {regulars} + (k * {other_beds} + n - {regulars}) % {others} END"
    opens = f"(k = {PERIODS - 1} AND n < {round(beds * OPEN_SHARE)})"
    begins = (
        f"{NOW} - make_interval(days => (30 * ({PERIODS} - k) - n % 9)::int, mins => ((n * 37) % 600)::int)"
    )
    lasts = "make_interval(days => (3 + (n * 13 + k * 7) % 17)::int, mins => ((n * 11 + k) % 480)::int)"
    return [
        f"""
        INSERT INTO dispensary (id, name, neutral_name, address, phone, latitude, longitude, time_zone,
            staffed_beds, cleaning_after_check_out, version)
        OVERRIDING SYSTEM VALUE
        SELECT d, 'Диспансер № ' || lpad(d::text, 4, '0'), 'Клиника № ' || d, 'ул. Лесная, д. ' || d, '+74950000000',
            55 + (d % 100) / 100.0, 37 + (d % 77) / 100.0, 'Europe/Moscow', 150, false, 1
        FROM generate_series(1, {dispensaries}) d
        """,
        f"""
        INSERT INTO room (id, dispensary_id, number, floor, sex, isolation, version)
        OVERRIDING SYSTEM VALUE
        SELECT r + 1, 1 + r / {ROOMS_PER_DISPENSARY},
            (100 * (1 + r % {ROOMS_PER_DISPENSARY} / 10) + r % 10)::text, 1 + r % {ROOMS_PER_DISPENSARY} / 10,
            'ANY', r % {ROOMS_PER_DISPENSARY} = 0, 1
        FROM generate_series(0, {dispensaries * ROOMS_PER_DISPENSARY - 1}) r
        """,
        f"""
        INSERT INTO bed (id, dispensary_id, room_id, label, profile, service_state, version)
        OVERRIDING SYSTEM VALUE
        SELECT b + 1, 1 + b / {ROOMS_PER_DISPENSARY * BEDS_PER_ROOM}, 1 + b / {BEDS_PER_ROOM},
            (1 + b % {BEDS_PER_ROOM})::text, 'наркологическая',
            CASE WHEN b % 97 = 5 THEN 'CLEANING' ELSE 'IN_SERVICE' END, 1
        FROM generate_series(0, {beds - 1}) b
        """,
        f"""
        INSERT INTO patient (id, dispensary_id, record_number, family_name, given_name, patronymic, sex,
            birth_date, phone, needs_isolation, version)
        OVERRIDING SYSTEM VALUE
        SELECT p + 1, 1 + p % {dispensaries}, 'К-' || lpad(p::text, 7, '0'), {_pick(_FAMILY, "p")},
            {_pick(_GIVEN, "p / 7")}, {_pick(_PATRONYMIC, "p / 11")}, 'MALE',
            date '1950-01-01' + ((p * 7919) % 20000)::int, '+79' || lpad(((p * 7919) % 1000000000)::text, 9, '0'),
            false, 1
        FROM generate_series(0::bigint, {patients - 1}) p
        """,
        f"""
        CREATE TEMPORARY TABLE planned ON COMMIT DROP AS
        SELECT 1 + k * {beds} + n AS id, 1 + {patient} AS patient_id, 1 + (n * 7919) % {beds} AS bed_id,
            {begins} AS begins, CASE WHEN NOT {opens} THEN {begins} + {lasts} END AS ends, n, k
        FROM generate_series(0, {PERIODS - 1}) k, generate_series(0::bigint, {beds - 1}) n
        """,
        """
        INSERT INTO stay (id, patient_id, dispensary_id, checked_in_at, checked_out_at, outcome,
            planned_check_out_on, diagnosis_code, version)
        OVERRIDING SYSTEM VALUE
        SELECT p.id, p.patient_id, b.dispensary_id, p.begins, p.ends,
            CASE WHEN p.ends IS NULL THEN NULL WHEN p.n % 11 = 0 THEN 'LEFT_AGAINST_ADVICE' ELSE 'DISCHARGED' END,
            (p.begins + interval '21 days')::date, 'F1' || p.n % 10 || '.' || (p.n + p.k) % 8, 1
        FROM planned p JOIN bed b ON b.id = p.bed_id ORDER BY p.id
        """,
        """
        INSERT INTO bed_assignment (id, stay_id, bed_id, dispensary_id, started_at, ended_at)
        OVERRIDING SYSTEM VALUE
        SELECT p.id, p.id, p.bed_id, b.dispensary_id, p.begins, p.ends
        FROM planned p JOIN bed b ON b.id = p.bed_id ORDER BY p.id
        """,
        """
        INSERT INTO reservation (bed_id, dispensary_id, patient_id, until)
        SELECT b.id, b.dispensary_id, NULL, now() + interval '10 years'
        FROM bed b WHERE b.service_state = 'IN_SERVICE' AND b.id % 41 = 3
            AND NOT EXISTS (SELECT FROM bed_assignment a WHERE a.bed_id = b.id AND a.ended_at IS NULL)
        """,
        f"""
        INSERT INTO account (id, name, language, email, password_hash, auth_version, version)
        OVERRIDING SYSTEM VALUE VALUES ({ADMIN}, 'Нагрузка', 'ru', 'load@example.org', '!', 1, 1),
            ({DOCTOR}, 'Врач', 'ru', 'doctor@example.org', '!', 1, 1)
        """,
        f"INSERT INTO role_grant (account_id, role) VALUES ({ADMIN}, 'SUPERADMIN')",
        f"""
        INSERT INTO role_grant (account_id, role, dispensary_id)
        SELECT {DOCTOR}, 'DOCTOR', id FROM dispensary WHERE id <= {BOARDS}
        """,
        # Everything below the next identity is taken.
        *(
            f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), (SELECT max(id) FROM {table}))"
            for table in (
                "account",
                "dispensary",
                "room",
                "bed",
                "patient",
                "stay",
                "bed_assignment",
                "reservation",
            )
        ),
    ]


# Checked row by row these cost more than all the rest; a constraint is as good when it is added afterwards.
_EXCLUSIONS = """
    SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname) AS drop,
        format('ALTER TABLE %s ADD CONSTRAINT %I %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) AS add
    FROM pg_constraint WHERE contype = 'x'
"""
_TRIGGERS = "ALTER TABLE stay {0} TRIGGER USER; ALTER TABLE bed_assignment {0} TRIGGER USER"
# The peers know no roles: they work as the tables' owner, and are let past row-level security.
_OWNER_PASSES = """
    SELECT format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', oid::regclass) AS pass
    FROM pg_class WHERE relforcerowsecurity
"""
_KNOWN = """
    UPDATE patient p SET known_in = k.places FROM (
        SELECT patient_id, array_agg(DISTINCT dispensary_id) AS places FROM (
            SELECT id AS patient_id, dispensary_id FROM patient
            UNION ALL SELECT patient_id, dispensary_id FROM stay
        ) there GROUP BY patient_id
    ) k WHERE k.patient_id = p.id
"""


async def build(url: str, *, scale: float = 1) -> None:
    """The database at this address is migrated and holds the data of this scale, and nothing else."""
    async with Database(url, Settings(), pooled=False) as database:
        await upgrade(database)
    connection = await asyncpg.connect(url)
    try:
        exclusions = await connection.fetch(_EXCLUSIONS)
        async with connection.transaction():
            await connection.execute("SET LOCAL maintenance_work_mem = '512MB'")
            for item in exclusions:
                await connection.execute(item["drop"])
            # The deferred trigger would look at each of the rows; what it asks is asked of all at once below.
            for item in await connection.fetch(_OWNER_PASSES):
                await connection.execute(item["pass"])
            await connection.execute(_TRIGGERS.format("DISABLE"))
            for statement in _steps(round(DISPENSARIES * scale)):
                await connection.execute(statement)
            await connection.execute(_KNOWN)
            await connection.execute(_TRIGGERS.format("ENABLE"))
            for item in exclusions:
                await connection.execute(item["add"])
            untrue = await connection.fetchval(
                "SELECT count(*) FROM stay s WHERE (s.checked_out_at IS NULL) <> "
                "EXISTS (SELECT FROM bed_assignment a WHERE a.stay_id = s.id AND a.ended_at IS NULL)"
            )
            assert untrue == 0
        await connection.execute("VACUUM FULL ANALYZE patient")
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
