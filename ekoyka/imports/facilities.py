"""A register of facilities: each becomes a dispensary with rooms and beds."""

import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database
from ekoyka.errors import Refusal
from ekoyka.facilities.operations import create_dispensary
from ekoyka.facilities.tables import Bed, BedDetails, Room, RoomDetails
from ekoyka.imports.files import Progress, Refused, Report, is_key, rows_of
from ekoyka.validation import validated


@dataclass(frozen=True, slots=True, kw_only=True)
class FacilityColumns:
    """Where a register of facilities says what; one row for each facility and type of bed.

    Defaults are the Californian register of health facility beds.
    """

    key: str = "FACID"
    name: str = "FACNAME"
    bed_type: str = "BED_CAPACITY_TYPE"
    beds: str = "BED_CAPACITY"
    place: str = "COUNTY_NAME"
    address: str = "{place}, California"
    time_zone: str = "America/Los_Angeles"
    source: str = "facilities"
    beds_per_room: int = 4
    delimiter: str = ","
    encoding: str = "utf-8-sig"


async def import_facilities(
    database: Database, file: Path, columns: FacilityColumns, *, progress: Progress = lambda done, of: None
) -> Report:
    """Each facility of the register is a dispensary with its beds, in rooms of ``beds_per_room`` by type.

    A second import adds the beds that are new and takes none away. Raises `BadFile`.
    """
    wanted = (columns.key, columns.name, columns.bed_type, columns.beds, columns.place)
    report = Report()
    facilities: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    for line, row in rows_of(file, wanted, columns.delimiter, columns.encoding):
        report.read += 1
        beds = row[columns.beds]
        if not is_key(row[columns.key]):
            report.refused.append(
                Refused(file.name, line, "NO_KEY", f"нет годного ключа · no usable {columns.key}")
            )
        # The length comes first: int() refuses thousands of digits by raising.
        elif not (beds.isdecimal() and len(beds) <= 10 and 0 < int(beds) <= 10_000):
            report.refused.append(
                Refused(file.name, line, "BAD_NUMBER", f"не число коек · no number of beds in {columns.beds}")
            )
        else:
            facilities[row[columns.key]].append((line, row))
    for done, (key, rows) in enumerate(facilities.items(), 1):
        try:
            async with database.transaction() as session:
                added = await _facility(session, f"{columns.source}:{key}", rows, columns)
            report.written += sum(added)
            report.unchanged += len(added) - sum(added)
        except Refusal as refusal:
            report.refused += [
                Refused(file.name, line, refusal.code, f"{'.'.join(refusal.path)}: {refusal.message('en')}")
                for line, _ in rows
            ]
        progress(done, len(facilities))
    return report


async def _facility(
    session: AsyncSession, source_key: str, rows: list[tuple[int, dict[str, str]]], columns: FacilityColumns
) -> list[bool]:
    """Whether each row added anything."""
    first = rows[0][1]
    dispensary = await session.scalar(
        text("SELECT id FROM dispensary WHERE source_key = :key"), {"key": source_key}
    )
    is_new = dispensary is None
    if dispensary is None:
        made = await create_dispensary(
            session,
            details={
                "name": first[columns.name],
                "neutral_name": first[columns.name],
                "address": columns.address.replace("{place}", first[columns.place].title()),
                "time_zone": columns.time_zone,
            },
            source_key=source_key,
        )
        dispensary = made.id
    totals: dict[str, int] = defaultdict(int)
    for _, row in rows:
        totals[row[columns.bed_type]] += int(row[columns.beds])
    added: dict[str, bool] = {}
    for bed_type, total in totals.items():
        details = validated(BedDetails, {"label": "1", "profile": bed_type})
        there = await session.scalar(
            text("SELECT count(*) FROM bed WHERE dispensary_id = :dispensary AND profile = :profile"),
            {"dispensary": dispensary, "profile": details.profile},
        )
        added[bed_type] = is_new or total > (there or 0)
        await _beds(session, dispensary, details.profile, there or 0, total, columns.beds_per_room)
    return [added[row[columns.bed_type]] for _, row in rows]


async def _beds(
    session: AsyncSession, dispensary: int, profile: str, there: int, total: int, each: int
) -> None:
    """``total`` beds of this type stand in their rooms; ``there`` of them do already.

    Places that a bed has taken meanwhile are passed over.
    """
    if total <= there:
        return
    # A room's number has 40 characters; types that begin alike must not share rooms.
    stem = profile if len(profile) <= 32 else f"{profile[:23]} {zlib.crc32(profile.encode()):08x}"
    found = await session.execute(_ROOMS, {"dispensary": dispensary})
    rooms = {row.number: (row.id, set(row.labels)) for row in found}
    beds: list[dict[str, object]] = []
    number = there
    while len(beds) < total - there:
        name = validated(RoomDetails, {"number": f"{stem} {number // each + 1}"}).number
        label = str(number % each + 1)
        number += 1
        if name not in rooms:
            room = Room(dispensary_id=dispensary, number=name)
            session.add(room)
            await session.flush()
            rooms[name] = (room.id, set())
        if label in rooms[name][1]:
            continue
        beds.append(
            {
                "dispensary_id": dispensary,
                "room_id": rooms[name][0],
                "label": label,
                "profile": profile,
                "service_state": "IN_SERVICE",
                "version": 1,
            }
        )
    await session.execute(insert(Bed), beds)


_ROOMS = text(
    "SELECT r.id, r.number, array_remove(array_agg(b.label), NULL) AS labels "
    "FROM room r LEFT JOIN bed b ON b.room_id = r.id AND b.archived_at IS NULL "
    "WHERE r.dispensary_id = :dispensary AND r.archived_at IS NULL GROUP BY r.id"
)
