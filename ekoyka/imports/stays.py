"""A hospital's admissions, replayed in the order of time."""

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database
from ekoyka.errors import Refusal
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Account
from ekoyka.imports.files import BadFile, Progress, Refused, Report, is_key, rows_of
from ekoyka.inpatient.patients import register_patient
from ekoyka.inpatient.queries import bed_options
from ekoyka.inpatient.stays import check_in, check_out
from ekoyka.inpatient.tables import Outcome, Sex

BATCH = 50


class NoBed(Refusal):
    """No bed of any imported facility suits the patient at that time."""

    code = "NO_BED"
    ru = "Ни в одном учреждении нет подходящей койки."
    en = "No facility has a bed that suits."


@dataclass(frozen=True, slots=True, kw_only=True)
class StayColumns:
    """Where a hospital's admissions say what; files admissions.csv, patients.csv and, if there, diagnoses_icd.csv.

    Defaults are the MIMIC-IV demonstration's: dates ``m/d/yy H:M`` with two digits of a shifted year, which the
    patient's anchor year completes. ``shift_years`` moves them into the past, where check-ins must lie;
    they are read as UTC, so that order and duration stay exactly as they are.
    """

    admission: str = "hadm_id"
    patient: str = "subject_id"
    admitted: str = "admittime"
    discharged: str = "dischtime"
    discharged_to: str = "discharge_location"
    died: str = "hospital_expire_flag"
    sex: str = "gender"
    anchor_year: str = "anchor_year"
    diagnosis: str = "icd_code"
    diagnosis_version: str = "icd_version"
    diagnosis_order: str = "seq_num"
    time_format: str = "%m/%d/%y %H:%M"
    shift_years: int = 200
    source: str = "admissions"
    into: str = "facilities"
    delimiter: str = ","
    encoding: str = "utf-8-sig"


async def _importer(session: AsyncSession) -> Actor:
    """Who imports act as: an account that no password lets in, with the network's rights for this work."""
    # Not an address, so that nobody can have registered it.
    found = await session.scalar(text("SELECT id FROM account WHERE email = 'import'"))
    if found is None:
        made = Account(email="import", password_hash="-", name="Импорт")  # noqa: S106 -- no password has this hash
        session.add(made)
        await session.flush()
        found = made.id
    return Actor(account_id=found, auth_version=1, superadmin=True)


@dataclass(frozen=True, slots=True)
class _Admission:
    """One admission, as the files tell of it."""

    line: int
    key: str
    patient: str
    sex: Sex
    admitted_at: datetime
    discharged_at: datetime
    outcome: Outcome
    diagnosis: str | None


async def import_stays(
    database: Database, folder: Path, columns: StayColumns, *, progress: Progress = lambda done, of: None
) -> Report:
    """The admissions are replayed in the order of time, into beds of the imported facilities.

    Patients stand under a code name, since the files name nobody. Each admission goes to the facility that
    its key chooses, into the bed that suits best; where none does, into the next facility's. An admission
    that overlaps the same patient's former one is refused by name; so is one that a later import brings
    from before a stay of that patient's, since a check-in holds from its instant on. Raises `BadFile`.
    """
    report = Report()
    admissions = _admissions(folder, columns, report)
    # At one instant patients leave before others come, save those who came at that instant themselves.
    events = sorted(
        [(item.admitted_at, 1, item.key, False, item) for item in admissions]
        + [
            (item.discharged_at, int(item.discharged_at == item.admitted_at), item.key, True, item)
            for item in admissions
        ],
        key=lambda event: event[:4],
    )
    async with database.transaction() as session:
        actor = await _importer(session)
    places = [
        row["id"]
        for row in await database.fetch(
            "SELECT id FROM dispensary WHERE starts_with(source_key, $1) AND archived_at IS NULL "
            "ORDER BY source_key",
            f"{columns.into}:",
        )
    ]
    if not places:
        raise BadFile(
            "сначала импортируйте учреждения · import facilities first: ekoyka import facilities FILE"
        )
    known = {
        row["source_key"].removeprefix(f"{columns.source}:"): row["id"]
        for row in await database.fetch(
            "SELECT id, source_key FROM stay WHERE starts_with(source_key, $1)", f"{columns.source}:"
        )
    }
    replay = _Replay(actor, columns, places, known, report)
    for start in range(0, len(events), BATCH):
        async with database.transaction() as session:
            replay.begin()
            for *_, leaving, admission in events[start : start + BATCH]:
                await replay.step(session, admission, coming=not leaving)
        replay.commit()
        progress(min(start + BATCH, len(events)), len(events))
    return report


class _Replay:
    """The state of one replay; what a batch found out counts once the batch is committed."""

    def __init__(
        self, actor: Actor, columns: StayColumns, places: list[int], known: dict[str, int], report: Report
    ) -> None:
        self.actor = actor
        self.columns = columns
        self.places = places
        self.known = known
        self.before = frozenset(known)
        self.report = report
        self._made: dict[str, int] = {}
        self._refused: list[Refused] = []
        self._done: list[bool] = []

    def begin(self) -> None:
        self._made, self._refused, self._done = {}, [], []

    def commit(self) -> None:
        self.known |= self._made
        self.report.refused += self._refused
        self.report.written += sum(self._done)
        self.report.unchanged += len(self._done) - sum(self._done)

    async def step(self, session: AsyncSession, admission: _Admission, *, coming: bool) -> None:
        """One event: the patient comes, or leaves."""
        stay = self._made.get(admission.key) or self.known.get(admission.key)
        try:
            async with session.begin_nested():
                if coming and stay is None:
                    self._made[admission.key] = await self._come(session, admission)
                elif not coming and stay is not None:
                    self._done.append(await self._leave(session, admission, stay))
        except Refusal as refusal:
            self._made.pop(admission.key, None)
            self._refused.append(
                Refused("admissions.csv", admission.line, refusal.code, refusal.message("en"))
            )

    async def _come(self, session: AsyncSession, admission: _Admission) -> int:
        first = zlib.crc32(admission.key.encode()) % len(self.places)
        order = self.places[first:] + self.places[:first]
        patient = await self._patient(session, admission, order[0])
        for place in order:
            bed = await session.scalar(
                _BEST_BED, {"patient": patient, "dispensary": place, "at": admission.admitted_at}
            )
            if bed is None:
                continue
            stay = await check_in(
                session,
                actor=self.actor,
                patient_id=patient,
                bed_id=bed,
                at=admission.admitted_at,
                plan={"diagnosis_code": admission.diagnosis},
                source_key=f"{self.columns.source}:{admission.key}",
            )
            return stay.id
        raise NoBed

    async def _patient(self, session: AsyncSession, admission: _Admission, place: int) -> int:
        code_name = f"{self.columns.source} {admission.patient}"
        found: int | None = await session.scalar(
            text("SELECT id FROM patient WHERE record_number = :record AND code_name = :name"),
            {"record": admission.patient, "name": code_name},
        )
        if found is not None:
            return found
        made = await register_patient(
            session,
            actor=self.actor,
            dispensary_id=place,
            details={"record_number": admission.patient, "code_name": code_name, "sex": admission.sex},
        )
        return made.id

    async def _leave(self, session: AsyncSession, admission: _Admission, stay: int) -> bool:
        row = (
            await session.execute(
                text("SELECT version, checked_out_at FROM stay WHERE id = :id"), {"id": stay}
            )
        ).one()
        if row.checked_out_at is None:
            await check_out(
                session,
                actor=self.actor,
                stay_id=stay,
                version=row.version,
                outcome=admission.outcome,
                at=admission.discharged_at,
            )
        return admission.key not in self.before or row.checked_out_at is None


_BEST_BED = text(
    f"SELECT bed_id FROM {bed_options('CAST(:patient AS bigint)', 'CAST(:dispensary AS bigint)')} x "
    "WHERE suits AND NOT EXISTS (SELECT FROM bed_assignment a WHERE a.bed_id = x.bed_id AND a.ended_at > :at) "
    "ORDER BY place LIMIT 1"
)


def _admissions(folder: Path, columns: StayColumns, report: Report) -> list[_Admission]:
    options = (columns.delimiter, columns.encoding)
    patients = {
        row[columns.patient]: row
        for _, row in rows_of(
            folder / "patients.csv", (columns.patient, columns.sex, columns.anchor_year), *options
        )
    }
    diagnoses = _diagnoses(folder / "diagnoses_icd.csv", columns)
    wanted = (
        columns.admission,
        columns.patient,
        columns.admitted,
        columns.discharged,
        columns.discharged_to,
        columns.died,
    )
    found: dict[str, _Admission] = {}
    for line, row in rows_of(folder / "admissions.csv", wanted, *options):
        report.read += 1
        key, patient = row[columns.admission], patients.get(row[columns.patient])
        try:
            if not is_key(key) or key in found:
                raise _Unreadable(
                    "BAD_KEY", "нет годного ключа или он повторён · no usable key, or one used before"
                )
            if patient is None or not is_key(row[columns.patient]):
                raise _Unreadable(
                    "NO_PATIENT", "пациента нет в patients.csv · the patient is not in patients.csv"
                )
            sex = {"M": Sex.MALE, "F": Sex.FEMALE}.get(patient[columns.sex].upper()[:1])
            if sex is None:
                raise _Unreadable("BAD_SEX", f"непонятный пол · {columns.sex} is neither M nor F")
            anchor = patient[columns.anchor_year]
            admitted = _instant(row[columns.admitted], anchor, columns)
            discharged = _instant(row[columns.discharged], anchor, columns)
            if discharged < admitted:
                raise _Unreadable(
                    "CHECK_OUT_BEFORE_CHECK_IN", "выписан раньше поступления · left before coming"
                )
        except _Unreadable as error:
            report.refused.append(Refused("admissions.csv", line, error.code, str(error)))
            continue
        found[key] = _Admission(
            line=line,
            key=key,
            patient=row[columns.patient],
            sex=sex,
            admitted_at=admitted,
            discharged_at=discharged,
            outcome=_outcome(row[columns.discharged_to], row[columns.died]),
            diagnosis=diagnoses.get(key),
        )
    return list(found.values())


class _Unreadable(Exception):
    """A row that says nothing usable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _instant(value: str, anchor: str, columns: StayColumns) -> datetime:
    """The instant, in the past; the century is the one that lies nearest to the patient's anchor year."""
    try:
        moment, year = datetime.strptime(value, columns.time_format), int(anchor)  # noqa: DTZ007 -- UTC is set below
        if "%y" in columns.time_format:
            nearest = min(
                (year // 100 * 100 + century + moment.year % 100 for century in (-100, 0, 100)),
                key=lambda candidate: abs(candidate - year),
            )
            moment = moment.replace(year=nearest)
        return moment.replace(year=moment.year - columns.shift_years, tzinfo=UTC)
    except ValueError:
        raise _Unreadable(
            "BAD_TIME", f"время не по форме {columns.time_format} · a time in another form"
        ) from None


def _outcome(place: str, died: str) -> Outcome:
    """How a stay ended, by where the patient went; nothing said, or home, counts as discharged."""
    place = place.upper()
    if died == "1" or place == "DIED":
        return Outcome.DIED
    if place == "AGAINST ADVICE":
        return Outcome.LEFT_AGAINST_ADVICE
    return Outcome.DISCHARGED if place in ("", "HOME", "HOME HEALTH CARE") else Outcome.TRANSFERRED


def _diagnoses(file: Path, columns: StayColumns) -> dict[str, str]:
    """The first ICD-10 code of each admission, with its dot; none where the file is not there."""
    if not file.exists():
        return {}
    wanted = (columns.admission, columns.diagnosis, columns.diagnosis_version, columns.diagnosis_order)
    first: dict[str, tuple[int, str]] = {}
    for _, row in rows_of(file, wanted, columns.delimiter, columns.encoding):
        code, order = row[columns.diagnosis], row[columns.diagnosis_order]
        if row[columns.diagnosis_version] == "10" and order.isdecimal() and 3 <= len(code) <= 7:
            dotted = f"{code[:3]}.{code[3:]}" if len(code) > 3 else code
            known = first.get(row[columns.admission])
            if known is None or int(order) < known[0]:
                first[row[columns.admission]] = (int(order), dotted)
    return {key: code for key, (_, code) in first.items()}
