"""Slots of a network's doctors for a month: made from nothing, looked over again, and made for one day more.

`python -m benchmarks.slots` measures this alone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import asyncpg

from benchmarks.environment import DATA, Environment, environment
from ekoyka.database import SERVER_ROLE, Database
from ekoyka.migrate import upgrade
from ekoyka.outpatient.slots import make_all
from ekoyka.settings import Settings

DOCTORS, DAYS = 1000, 30
_NAME = "bench_slots"
# Five days a week from nine to one and from two to five, in visits of twenty minutes.
_RULES = f"""
    INSERT INTO dispensary (name, neutral_name, address, time_zone, cleaning_after_check_out, version)
        SELECT 'Диспансер ' || n, 'Больница ' || n, 'Адрес ' || n,
            (ARRAY['Europe/Moscow', 'Asia/Yekaterinburg', 'Europe/Kaliningrad', 'Europe/Berlin'])[1 + n % 4], false, 1
        FROM generate_series(1, 50) n;
    INSERT INTO account (name, language, email, password_hash, auth_version, version)
        SELECT 'Врач ' || n, 'ru', n || '@example.org', '!', 1, 1 FROM generate_series(1, {DOCTORS}) n;
    INSERT INTO role_grant (account_id, role, dispensary_id) SELECT id, 'DOCTOR', 1 + id % 50 FROM account;
    INSERT INTO schedule (doctor_id, dispensary_id, horizon_days, version)
        SELECT id, 1 + id % 50, {DAYS - 1}, 1 FROM account;
    INSERT INTO timetable (schedule_id, dispensary_id, valid_from, visit_minutes, version)
        SELECT id, dispensary_id, '2020-01-01', 20, 1 FROM schedule;
    INSERT INTO working_hours (timetable_id, dispensary_id, weekday, starts_minute, ends_minute)
        SELECT t.id, t.dispensary_id, day, h.starts, h.ends
        FROM timetable t, generate_series(1, 5) day, (VALUES (540, 780), (840, 1020)) h (starts, ends);
    ANALYZE
"""


@dataclass(frozen=True)
class Figures:
    """How many slots there were, and how many seconds each took."""

    slots: int
    made_s: float
    looked_over_s: float
    next_day_s: float

    def __str__(self) -> str:
        return (
            f"slots of {DOCTORS} doctors for {DAYS} days: {self.slots} made in {self.made_s:.1f} s, "
            f"looked over in {self.looked_over_s:.1f} s, the next day's made in {self.next_day_s:.1f} s"
        )


async def _timed(database: Database, now: datetime) -> tuple[int, float]:
    began = time.perf_counter()
    made = (await make_all(database, now=now)).made
    return made, time.perf_counter() - began


async def measure(where: Environment) -> Figures:
    """In a database of its own, on one connection."""
    maintenance = await asyncpg.connect(where.server.url("postgres"))
    try:
        await maintenance.execute(f"DROP DATABASE IF EXISTS {_NAME} WITH (FORCE)")
        await maintenance.execute(
            f"CREATE DATABASE {_NAME} TEMPLATE template0 ENCODING 'UTF8' "
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        )
        url = where.server.url(_NAME)
        async with Database(url, Settings()) as database:
            await upgrade(database)
        async with Database(url, Settings(), role=SERVER_ROLE) as database:
            connection = await asyncpg.connect(url)
            await connection.execute(_RULES)
            await connection.close()
            # A Monday: the month then holds the same days whenever it is measured.
            now = datetime(2030, 1, 7, tzinfo=UTC)
            slots, made_s = await _timed(database, now)
            _, looked_over_s = await _timed(database, now)
            _, next_day_s = await _timed(database, now + timedelta(days=1))
        await maintenance.execute(f"DROP DATABASE {_NAME} WITH (FORCE)")
        return Figures(slots, made_s, looked_over_s, next_day_s)
    finally:
        await maintenance.close()


if __name__ == "__main__":
    DATA.mkdir(parents=True, exist_ok=True)
    with environment(DATA) as where:
        print(asyncio.run(measure(where)))
