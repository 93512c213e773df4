"""The real register and the real admissions, against what their files alone say."""

import csv
import os
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from ekoyka.database import Database
from ekoyka.imports.facilities import FacilityColumns, import_facilities
from ekoyka.imports.stays import StayColumns, import_stays
from tests.invariants import broken_invariants

Span = tuple[datetime, datetime]


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("EKOYKA_REAL_DATA")
    # It is not ours to give away, so a clone does not have it; `.ci/run` names it where it is.
    if not folder or not Path(folder).is_dir():
        pytest.skip("EKOYKA_REAL_DATA names no folder with the real data.")
    return Path(folder)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def spans_of(folder: Path) -> dict[str, tuple[str, Span]]:
    """Each admission's patient and interval, moved back 200 years; the anchor year says the century."""
    anchors = {row["subject_id"]: int(row["anchor_year"]) for row in rows_of(folder / "patients.csv")}

    def instant(text: str, anchor: int) -> datetime:
        day, clock = text.split(" ")
        month, number, short = map(int, day.split("/"))
        hour, minute = map(int, clock.split(":"))
        year = next(y for y in range(anchor - 50, anchor + 50) if y % 100 == short)
        return datetime(year - 200, month, number, hour, minute, tzinfo=UTC)

    return {
        row["hadm_id"]: (
            row["subject_id"],
            (
                instant(row["admittime"], anchors[row["subject_id"]]),
                instant(row["dischtime"], anchors[row["subject_id"]]),
            ),
        )
        for row in rows_of(folder / "admissions.csv")
    }


def accepted(spans: dict[str, tuple[str, Span]]) -> dict[str, Span]:
    """The admissions that overlap no former one of their patient, half-open, first come first."""
    taken: dict[str, list[Span]] = defaultdict(list)
    good = {}
    for key, (patient, (begin, end)) in sorted(spans.items(), key=lambda item: (item[1][1][0], item[0])):
        if not any(begin < other_end and other_begin < end for other_begin, other_end in taken[patient]):
            taken[patient].append((begin, end))
            good[key] = (begin, end)
    return good


def daily(spans: list[Span]) -> Counter[date]:
    """How many lie in at the end of each day."""
    count: Counter[date] = Counter()
    for begin, end in spans:
        day = begin.date()
        while datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1) <= end:
            count[day] += 1
            day += timedelta(days=1)
    return count


async def test_the_register_and_the_admissions_agree_with_their_files(
    database: Database, real_data: Path
) -> None:
    register = real_data / "beds" / "california_facility_beds.csv"
    folder = real_data / "inpatient"
    facilities = rows_of(register)
    spans = spans_of(folder)
    good = accepted(spans)

    first = await import_facilities(database, register, FacilityColumns())
    stays = await import_stays(database, folder, StayColumns())

    assert (first.read, first.written, first.refused) == (len(facilities), len(facilities), [])
    beds = await database.fetch(
        "SELECT d.source_key, b.profile, count(*) FROM bed b JOIN dispensary d ON d.id = b.dispensary_id GROUP BY 1, 2"
    )
    expected: Counter[tuple[str, str]] = Counter()
    for row in facilities:
        expected[f"facilities:{row['FACID']}", row["BED_CAPACITY_TYPE"]] += int(row["BED_CAPACITY"])
    assert {(row[0], row[1]): row[2] for row in beds} == expected
    assert len({row["FACID"] for row in facilities}) == 141

    assert (stays.read, stays.written) == (len(spans), len(good))
    assert {item.code for item in stays.refused} <= {"PATIENT_ALREADY_ADMITTED"}
    assert len(stays.refused) == len(spans) - len(good)
    rows = await database.fetch("SELECT source_key, checked_in_at, checked_out_at FROM stay")
    assert {row[0].removeprefix("admissions:"): (row[1], row[2]) for row in rows} == good
    assert await broken_invariants(database) == []

    occupancy = await database.fetch(
        "SELECT day::date, count(*) FROM bed_assignment a CROSS JOIN LATERAL generate_series("
        "date_trunc('day', a.started_at AT TIME ZONE 'UTC'), a.ended_at AT TIME ZONE 'UTC' - interval '1 day', "
        "interval '1 day') day GROUP BY 1"
    )
    assert {row[0]: row[1] for row in occupancy} == daily(list(good.values()))

    again = await import_facilities(database, register, FacilityColumns())
    once_more = await import_stays(database, folder, StayColumns())
    assert (again.written, again.unchanged) == (0, len(facilities))
    assert (once_more.written, once_more.unchanged) == (0, len(good))
    assert await database.fetch_value("SELECT count(*) FROM bed") == sum(expected.values())
    assert await database.fetch_value("SELECT count(*) FROM stay") == len(good)
