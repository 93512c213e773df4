"""Slots: made of a schedule's rules by one statement, for however many schedules at once.

Which slots there ought to be depends on nothing but the rules: weekly hours while they are valid, extra hours,
time off, the length of a visit, the time zone, the horizon. What is there already is compared with that: missing
slots are made, free ones that the rules no longer give are withdrawn, and whatever is booked, held or offered
stays as it is, with nothing made across it. Doing it again changes nothing.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import NETWORK, Database, Statement
from ekoyka.outpatient.queries import SLOTS, is_held, is_offered

# So many schedules are made in one transaction: bookings of their slots wait for it.
BATCH = 100
# So many connections work at it side by side: each has one processor of PostgreSQL's.
LANES = 4
# Of all slots that have been withdrawn for longer than this, those that nothing refers to are deleted.
KEEP_WITHDRAWN_DAYS = 1
# A hundred doctors' first month may take longer than a request may.
_PATIENCE = Statement("SET LOCAL statement_timeout = '300s'")


def _instant(local: str, zone: str) -> str:
    """SQL of when a zone's clocks show a time: the second time if they do so twice, the turn if they never do."""
    return (
        f"coalesce((SELECT u.at FROM turn u WHERE u.zone = {zone} AND u.by > interval '0' "
        f"AND {local} >= u.reading - u.by AND {local} < u.reading), ({local}) AT TIME ZONE {zone})"
    )


# - turn: when clocks change within these days, what they show then, and by how much they are put forward. Zones
#   change at quarters of an hour; only days that have not 24 hours are looked through.
# - work: intervals in which visits may lie, each with what must be left out of it. Of an hour that comes twice the
#   second is worked, so that no time of the day has two slots. Extra hours leave out the week's own.
# - packed: what is left of each interval, filled with as many visits as fit. They keep to the interval's own beat
#   (11:00, 11:20, …) where that costs none, so that a break does not move the visits after it.
# - wanted and present are compared by a full join, which no estimate of theirs can turn into a loop over both.
_MAKE = feed.Publication(
    f"""
    WITH chosen AS MATERIALIZED (
        SELECT s.id, s.doctor_id, s.dispensary_id, s.horizon_days, d.time_zone AS zone,
            CAST(CAST(:now AS timestamptz) AT TIME ZONE d.time_zone AS date) AS today,
            d.archived_at IS NULL AND EXISTS (
                SELECT FROM role_grant g WHERE g.account_id = s.doctor_id AND g.role = 'DOCTOR'
                    AND g.dispensary_id = s.dispensary_id
            ) AS works
        FROM schedule s JOIN dispensary d ON d.id = s.dispensary_id
        WHERE s.id = ANY (CAST(:schedules AS bigint[]))
    ), turn AS MATERIALIZED (
        SELECT z.zone, t.at, t.at AT TIME ZONE z.zone AS reading, shift.by
        FROM (SELECT zone, min(today) AS today, max(today + horizon_days) AS last FROM chosen GROUP BY zone) z
        CROSS JOIN LATERAL generate_series(
            CAST(z.today - 1 AS timestamp), CAST(z.last AS timestamp), interval '1 day'
        ) AS day (local)
        CROSS JOIN LATERAL (
            SELECT day.local AT TIME ZONE z.zone AS since, (day.local + interval '1 day') AT TIME ZONE z.zone AS until
        ) AS span
        CROSS JOIN LATERAL generate_series(span.since, span.until, interval '15 minutes') AS t (at)
        CROSS JOIN LATERAL (
            SELECT (t.at AT TIME ZONE z.zone) - ((t.at - interval '15 minutes') AT TIME ZONE z.zone)
                - interval '15 minutes' AS by
        ) AS shift
        WHERE span.until - span.since <> interval '1 day' AND shift.by <> interval '0'
    ), weekly AS MATERIALIZED (
        SELECT c.id AS schedule_id, c.doctor_id, c.dispensary_id, c.zone, t.visit_minutes,
            {_instant("day.local + make_interval(mins => h.starts_minute)", "c.zone")} AS since,
            {_instant("day.local + make_interval(mins => h.ends_minute)", "c.zone")} AS until
        FROM chosen c
        JOIN timetable t ON t.schedule_id = c.id AND t.valid_from <= c.today + c.horizon_days
            AND coalesce(t.valid_until >= c.today, true)
        CROSS JOIN LATERAL generate_series(
            CAST(greatest(c.today, t.valid_from) AS timestamp),
            CAST(least(c.today + c.horizon_days, t.valid_until) AS timestamp),
            interval '1 day'
        ) AS day (local)
        JOIN working_hours h ON h.timetable_id = t.id AND h.weekday = extract(isodow FROM day.local)
        WHERE c.works
    ), off AS MATERIALIZED (
        SELECT c.id AS schedule_id, range_agg(tstzrange(o.starts_at, o.ends_at)) AS ranges
        FROM chosen c JOIN time_off o ON o.schedule_id = c.id
            AND o.ends_at > CAST(c.today AS timestamp) AT TIME ZONE c.zone
        GROUP BY c.id
    ), twice AS MATERIALIZED (
        SELECT zone, range_agg(tstzrange(at + by, at)) AS ranges FROM turn WHERE by < interval '0' GROUP BY zone
    ), work AS (
        SELECT w.schedule_id, w.doctor_id, w.dispensary_id, w.visit_minutes, w.since, w.until,
            coalesce(o.ranges, '{{}}') + coalesce(f.ranges, '{{}}') AS but
        FROM weekly w LEFT JOIN off o USING (schedule_id) LEFT JOIN twice f USING (zone)
        WHERE w.since < w.until
        UNION ALL
        SELECT c.id, c.doctor_id, c.dispensary_id, coalesce(e.visit_minutes, t.visit_minutes), e.starts_at, e.ends_at,
            coalesce(o.ranges, '{{}}') + coalesce(
                (SELECT range_agg(tstzrange(w.since, w.until)) FROM weekly w
                    WHERE w.schedule_id = c.id AND w.since < w.until) - coalesce(f.ranges, '{{}}'), '{{}}'
            )
        FROM chosen c
        JOIN extra_hours e ON e.schedule_id = c.id
            AND e.ends_at > CAST(c.today AS timestamp) AT TIME ZONE c.zone
            AND e.starts_at < CAST(c.today + c.horizon_days + 1 AS timestamp) AT TIME ZONE c.zone
        LEFT JOIN timetable t ON t.schedule_id = c.id
            AND daterange(t.valid_from, t.valid_until, '[]') @> CAST(e.starts_at AT TIME ZONE c.zone AS date)
        LEFT JOIN off o ON o.schedule_id = c.id
        LEFT JOIN twice f ON f.zone = c.zone
        WHERE c.works
    ), packed AS (
        SELECT w.schedule_id, w.doctor_id, w.dispensary_id, visit.lasts, visits.number,
            CASE WHEN beat.at + visits.number * visit.lasts <= upper(piece) THEN beat.at ELSE lower(piece) END AS first
        FROM work w
        CROSS JOIN LATERAL (SELECT make_interval(mins => w.visit_minutes) AS lasts, w.visit_minutes * 60 AS seconds)
            AS visit
        CROSS JOIN LATERAL unnest(tstzmultirange(tstzrange(w.since, w.until)) - w.but) AS piece
        CROSS JOIN LATERAL (
            SELECT CAST(floor(extract(epoch FROM upper(piece) - lower(piece)) / visit.seconds) AS int) AS number
        ) AS visits
        CROSS JOIN LATERAL (
            SELECT w.since + ceil(extract(epoch FROM lower(piece) - w.since) / visit.seconds) * visit.lasts AS at
        ) AS beat
    ), wanted AS MATERIALIZED (
        SELECT p.schedule_id, p.doctor_id, p.dispensary_id,
            p.first + n * p.lasts AS starts_at, p.first + (n + 1) * p.lasts AS ends_at
        FROM packed p CROSS JOIN LATERAL generate_series(0, p.number - 1) AS n
        WHERE p.first + n * p.lasts > CAST(:now AS timestamptz)
    ), present AS MATERIALIZED (
        SELECT s.id, s.schedule_id, s.starts_at, s.ends_at,
            s.taken OR {is_held("s")} OR {is_offered("s")} AS kept
        FROM chosen c
        JOIN slot s ON s.doctor_id = c.doctor_id AND s.schedule_id = c.id
            AND s.starts_at > CAST(:now AS timestamptz) AND s.withdrawn_at IS NULL
    ), compared AS MATERIALIZED (
        SELECT p.id, p.kept, w.*
        FROM wanted w FULL JOIN present p
            ON p.schedule_id = w.schedule_id AND p.starts_at = w.starts_at AND p.ends_at = w.ends_at
        WHERE p.id IS NULL OR w.schedule_id IS NULL
    ), gone AS (
        UPDATE slot s SET withdrawn_at = clock_timestamp()
        FROM compared x WHERE s.id = x.id AND NOT x.kept
        RETURNING s.doctor_id
    ), made AS (
        INSERT INTO slot (schedule_id, doctor_id, dispensary_id, starts_at, ends_at)
        SELECT x.schedule_id, x.doctor_id, x.dispensary_id, x.starts_at, x.ends_at
        FROM compared x
        WHERE x.id IS NULL AND (SELECT count(*) FROM gone) >= 0
        ORDER BY x.doctor_id, x.starts_at
        ON CONFLICT DO NOTHING
        RETURNING doctor_id
    ), marked AS (
        UPDATE schedule s SET made_on = c.today FROM chosen c
        WHERE s.id = c.id AND s.made_on IS DISTINCT FROM c.today
    ), event AS (
        SELECT '{SLOTS}:' || doctor_id AS topic, 1 AS place, jsonb_build_object('change', 'RULES') AS payload
        FROM (SELECT doctor_id FROM gone UNION SELECT doctor_id FROM made) x
    ), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM made) AS made, (SELECT count(*) FROM gone) AS withdrawn, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)

# Nobody changes these schedules' rules or books their slots meanwhile. Others are at work on the rest.
_NEXT = Statement(
    f"""
    SELECT s.id FROM schedule s JOIN dispensary d ON d.id = s.dispensary_id
    WHERE s.id > :after AND s.id % {LANES} = :lane AND (:all OR s.made_on IS DISTINCT FROM
        CAST(CAST(:now AS timestamptz) AT TIME ZONE d.time_zone AS date))
    ORDER BY s.id LIMIT {BATCH} FOR UPDATE OF s SKIP LOCKED
    """
)
_NOW = Statement("SELECT clock_timestamp() AS now")


@dataclass(frozen=True, slots=True)
class Made:
    """How many slots were made, and how many withdrawn."""

    made: int
    withdrawn: int


async def make(session: AsyncSession, schedules: Iterable[int], *, now: datetime | None = None) -> Made:
    """The schedules' future slots are what their rules give. Call it with the schedules' rows locked."""
    moment = now or (await _NOW.row(session)).now
    row = await _MAKE.row(session, schedules=list(schedules), now=moment)
    return Made(row.made, row.withdrawn)


async def make_all(database: Database, *, due: bool = False, now: datetime | None = None) -> Made:
    """Every schedule's slots are made, or only of those whose day has changed since they were made last.

    Several processes may do it at once: each takes what the others have not.
    """
    done = await asyncio.gather(*(_make_lane(database, lane, due=due, now=now) for lane in range(LANES)))
    return Made(sum(item.made for item in done), sum(item.withdrawn for item in done))


async def _make_lane(database: Database, lane: int, *, due: bool, now: datetime | None) -> Made:
    made = withdrawn = after = 0
    while True:
        async with database.transaction(ward=NETWORK) as session:
            moment = now or (await _NOW.row(session)).now
            rows = await _NEXT.rows(session, lane=lane, after=after, now=moment, all=not due)
            if not rows:
                return Made(made, withdrawn)
            await _PATIENCE.rows(session)
            done = await make(session, [row.id for row in rows], now=moment)
        made, withdrawn, after = made + done.made, withdrawn + done.withdrawn, rows[-1].id


_TELL = feed.Publication(
    f"""
    WITH event AS (
        SELECT DISTINCT '{SLOTS}:' || doctor_id AS topic, 1 AS place, jsonb_build_object('change', 'RULES') AS payload
        FROM schedule WHERE doctor_id = :doctor
    ), {feed.publishing("event")}
    SELECT {feed.PUBLISHED} FROM counted
    """
)


async def tell(session: AsyncSession, doctor_id: int) -> None:
    """Who watches the doctor's free slots is told to look again, since the doctor was blocked, say. Call it last."""
    await _TELL.rows(session, doctor=doctor_id)


_FORGET = Statement(
    f"""
    DELETE FROM slot s WHERE s.withdrawn_at < now() - interval '{KEEP_WITHDRAWN_DAYS} days'
        AND NOT EXISTS (SELECT FROM appointment a WHERE a.slot_id = s.id)
        AND NOT EXISTS (SELECT FROM slot_offer o WHERE o.slot_id = s.id)
        AND NOT EXISTS (SELECT FROM slot_hold h WHERE h.slot_id = s.id)
    """
)


async def forget_withdrawn(database: Database) -> None:
    """Slots that were withdrawn long ago and never booked are gone."""
    async with database.transaction(ward=NETWORK) as session:
        await _FORGET.rows(session)
