"""The demonstration network: made-up people in made-up dispensaries, the same for the same seed and day.

Owns nothing of the domain: rows are made in bulk under all of its constraints, and what has rules of its
own (certificates, reservations, the link of a record to an account) goes through the operations.
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from faker import Faker
from rich.console import Console
from rich.markup import escape
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from ekoyka import __version__
from ekoyka.certificates.operations import issue
from ekoyka.database import WARD_ROLE, Database
from ekoyka.demo_clinic import Clinic
from ekoyka.facilities.tables import Bed, BedClosure, Dispensary, Room, RoomSex, ServiceState
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher
from ekoyka.identity.tables import Account, Role, RoleGrant
from ekoyka.inpatient.patients import link_account
from ekoyka.inpatient.reservations import reserve_bed
from ekoyka.inpatient.tables import BedAssignment, Outcome, Patient, Sex, Stay
from ekoyka.settings import Settings

FIRST_QUERY = """\
{
  dispensaries(first: 5) {
    edges {
      node {
        name
        bedCounts { total free available occupied reserved }
        beds(first: 3, where: {status: [FREE]}) { edges { node { label room { number } } } }
      }
    }
  }
}
"""
_YEAR = timedelta(days=365)
_LOCK = 0x64656D6F  # of PostgreSQL: fillings go one after the other


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """An account to sign in with."""

    role: str
    email: str
    password: str
    note: str


ACCOUNTS = (
    DemoAccount("SUPERADMIN", "admin@example.org", "demo-admin-2026", "вся сеть · the whole network"),
    DemoAccount("DOCTOR", "doctor@example.org", "demo-doctor-2026", "диспансер в Москве · the one in Moscow"),
    DemoAccount(
        "DOCTOR", "doctor2@example.org", "demo-doctor-2026", "диспансер в Екатеринбурге · in Yekaterinburg"
    ),
    DemoAccount(
        "DISPATCHER", "dispatcher@example.org", "demo-dispatcher-2026", "койки Москвы · beds in Moscow"
    ),
    DemoAccount("USER", "patient@example.org", "demo-patient-2026", "пациент · a patient's own record"),
)


@dataclass(frozen=True, slots=True)
class _Place:
    key: str
    name: str
    neutral_name: str
    address: str
    phone: str
    time_zone: str
    latitude: float
    longitude: float


# No such house numbers and no such telephone numbers: nobody is called by whoever tries the demonstration.
_PLACES = (
    _Place(
        "moscow",
        "Наркологический диспансер «Берёзовая роща»",
        "Медицинский центр «Берёзовая роща»",
        "101000, Москва, ул. Примерная, д. 7",
        "+74950000101",
        "Europe/Moscow",
        55.7558,
        37.6173,
    ),
    _Place(
        "yekaterinburg",
        "Наркологический диспансер «Исеть»",
        "Медицинский центр «Исеть»",
        "620000, Екатеринбург, ул. Примерная, д. 44а",
        "+73430000102",
        "Asia/Yekaterinburg",
        56.8389,
        60.6057,
    ),
    _Place(
        "kaliningrad",
        "Наркологический диспансер «Янтарный берег»",
        "Медицинский центр «Янтарный берег»",
        "236000, Калининград, пр-т Примерный, д. 80",
        "+74010000103",
        "Europe/Kaliningrad",
        54.7104,
        20.4522,
    ),
    _Place(
        "novosibirsk",
        "Наркологический диспансер «Обские зори»",
        "Медицинский центр «Обские зори»",
        "630000, Новосибирск, ул. Примерная, д. 15",
        "+73830000104",
        "Asia/Novosibirsk",
        55.0302,
        82.9204,
    ),
    _Place(
        "vladivostok",
        "Наркологический диспансер «Тихая бухта»",
        "Медицинский центр «Тихая бухта»",
        "690000, Владивосток, ул. Примерная, д. 53",
        "+74230000105",
        "Asia/Vladivostok",
        43.1155,
        131.8855,
    ),
)
# (floor, whom it takes, isolation, beds)
_ROOMS = (
    *((1, RoomSex.MALE, False, 4),) * 3,
    *((2, RoomSex.MALE, False, 5),) * 2,
    *((2, RoomSex.FEMALE, False, 4),) * 2,
    *((3, RoomSex.FEMALE, False, 3),) * 2,
    *((3, RoomSex.ANY, False, 2),) * 2,
    (1, RoomSex.ANY, True, 1),
)
_PROFILES = ("наркологическая", "наркологическая", "детоксикации", "реабилитации")
_DIAGNOSES = ("F10.2", "F10.2", "F10.2", "F10.3", "F10.0", "F11.2", "F12.2", "F13.2", "F15.2", "F19.2")
_CODE_NAMES = ("Берёза", "Клён", "Рябина", "Ольха", "Ель", "Сосна", "Ива", "Липа", "Осина", "Дуб")
_OUTCOMES = (*(Outcome.DISCHARGED,) * 8, Outcome.LEFT_AGAINST_ADVICE, Outcome.TRANSFERRED)
_CLOSURES = ("ремонт палаты", "неисправна кровать", "замена окна", "нет освещения", "протечка")
_COURSES_DAYS = (14, 21, 21, 28, 28, 28, 40)
# Faker's given names are those of the calendar of saints: its Синклитикия is nobody's neighbour.
_GIVEN = {
    Sex.MALE: (
        "Александр Алексей Андрей Антон Артём Борис Вадим Виктор Владимир Вячеслав Григорий Денис Дмитрий "
        "Евгений Егор Иван Игорь Константин Максим Михаил Николай Олег Павел Пётр Роман Семён Сергей Степан "
        "Фёдор Юрий Ярослав"
    ),
    Sex.FEMALE: (
        "Алёна Александра Алла Анастасия Анна Валентина Вера Галина Дарья Екатерина Елена Зоя Инна Ирина "
        "Ксения Лариса Любовь Людмила Марина Мария Надежда Наталья Нина Оксана Ольга Полина Светлана Софья "
        "Татьяна Юлия"
    ),
}
_PATRONYMICS = (
    "Александрович Алексеевич Андреевич Анатольевич Борисович Валерьевич Викторович Владимирович Геннадьевич "
    "Григорьевич Дмитриевич Евгеньевич Иванович Игоревич Михайлович Николаевич Олегович Павлович Петрович "
    "Романович Семёнович Сергеевич Степанович Фёдорович Юрьевич"
)
# Faker writes these without the dots; a register has them both ways.
_DOTTED = re.compile(r"^(Воробь|Журавл|Кисел|Ковал|Корол|Кошел|Лихач|Муравь|Соловь|Фомич)ев")
_DOCTOR = "врач психиатр-нарколог"
# No password has this hash: colleagues are names for stays, nobody to sign in as.
_NO_PASSWORD = "-"  # noqa: S105 -- it is none
_PATIENTS_EACH = 120


async def fill(
    database: Database,
    *,
    hasher: PasswordHasher,
    say: Callable[[str], None],
    base_url: str = "http://127.0.0.1:8000",
    seed: int = 1,
    now: datetime | None = None,
) -> tuple[DemoAccount, ...]:
    """The database holds the demonstration network; one that holds it already is left as it is.

    All in one transaction: it is there whole or not at all. The same seed and ``now`` (by default the last
    midnight, UTC) make the same rows, but for what is secret (hashes, the certificates' codes) and the
    reservations, which are in force by the clock.
    """
    async with database.transaction() as session:
        # Whoever starts at the same time waits, and then finds it done.
        await session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if await session.scalar(
            text("SELECT EXISTS (SELECT FROM dispensary WHERE source_key LIKE 'demo:%')")
        ):
            say("демонстрационные данные на месте · the demonstration data are there")
            return ACCOUNTS
        moment = now or datetime.combine(datetime.now(UTC).date(), time(), UTC)
        hashes = {password: await hasher.hash(password) for password in {a.password for a in ACCOUNTS}}
        maker = _Maker(session, random.Random(seed), moment, base_url)  # noqa: S311 -- a believable network, no secret
        say("диспансеры, палаты, койки, врачи · dispensaries, rooms, beds, doctors")
        places = await maker.places()
        await maker.accounts(places, hashes)
        for place in places:
            say(f"{place.name}: год госпитализаций · a year of stays")
            ward = await maker.people(place)
            patient_id = await maker.extras(place, ward)
            say(f"{place.name}: приём · visits")
            if place is places[0]:
                await maker.link(place, patient_id)
                await maker.clinic(place, ward).open((patient_id, maker.patient_account))
            else:
                await maker.clinic(place, ward).open()
        # Somewhere there is nobody to look after one more.
        places[-1].staffed_beds = len(ward.lying)
    return ACCOUNTS


@dataclass(slots=True)
class _Visit:
    """One stay of the year: where the patient lay since when, and when they will leave or have left."""

    patient: dict[str, Any]
    checked_in_at: datetime
    planned_on: date
    leaves_on: date
    outcome: Outcome
    beds: list[tuple[Bed, datetime]]
    ended_at: datetime | None = None
    stay_id: int = 0


@dataclass(slots=True)
class _Ward:
    """A dispensary's year, lived day by day in its own time zone: who leaves, who moves, who comes."""

    chance: random.Random
    now: datetime
    zone: ZoneInfo
    beds: list[tuple[Bed, Room]]
    patients: list[dict[str, Any]]
    visits: list[_Visit] = field(default_factory=list)
    lying: dict[int, _Visit] = field(default_factory=dict)
    free_from: dict[int, datetime] = field(default_factory=dict)
    may_return_on: dict[int, date] = field(default_factory=dict)

    def live(self) -> None:
        """The year until now has passed; wards filled up in it from a quarter to four fifths."""
        today = self.now.astimezone(self.zone).date()
        for number in range(_YEAR.days + 1):
            day = today - _YEAR + timedelta(days=number)
            self._leave(day)
            if self.chance.random() < 0.07:
                self._move(day)
            goal = len(self.beds) * (0.25 + 0.55 * number / _YEAR.days)
            for _ in range(min(4, round(goal) - len(self.lying))):
                self._come(day)

    def _at(self, day: date, hours: range) -> datetime:
        moment = datetime.combine(day, time(self.chance.choice(hours), self.chance.randrange(0, 60, 5)))
        return moment.replace(tzinfo=self.zone).astimezone(UTC)

    def _leave(self, day: date) -> None:
        for bed_id, visit in list(self.lying.items()):
            moment = self._at(day, range(9, 13))
            if visit.leaves_on <= day and moment < self.now:
                visit.ended_at = self.free_from[bed_id] = moment
                self.may_return_on[visit.patient["id"]] = day + timedelta(days=14)
                del self.lying[bed_id]

    def _move(self, day: date) -> None:
        moment = self._at(day, range(13, 16))
        moves = [
            (former, bed)
            for former, visit in self.lying.items()
            for bed, room in self.empty(moment)
            if _takes(room, visit.patient)
        ]
        if moves and moment < self.now:
            former, bed = self.chance.choice(moves)
            visit = self.lying.pop(former)
            visit.beds.append((bed, moment))
            self.lying[bed.id] = visit
            self.free_from[former] = moment

    def _come(self, day: date) -> None:
        moment = self._at(day, range(8, 22))
        empty = self.empty(moment)
        if not empty or moment >= self.now:
            return
        bed, room = self.chance.choice(empty)
        present = {visit.patient["id"] for visit in self.lying.values()}
        fitting = [
            patient
            for patient in self.patients
            if _takes(room, patient)
            and patient["id"] not in present
            and self.may_return_on.get(patient["id"], day) <= day
        ]
        if not fitting:
            return
        patient = self.chance.choice(fitting)
        planned_on = day + timedelta(days=self.chance.choice(_COURSES_DAYS))
        outcome = self.chance.choice(_OUTCOMES)
        leaves_on = (
            day + timedelta(days=self.chance.randint(3, 10))
            if outcome is Outcome.LEFT_AGAINST_ADVICE
            else planned_on + timedelta(days=self.chance.choice((-2, -1, 0, 0, 0, 2, 3, 5)))
        )
        visit = _Visit(patient, moment, planned_on, leaves_on, outcome, [(bed, moment)])
        self.visits.append(visit)
        self.lying[bed.id] = visit

    def holds(self, patient_id: int, moment: datetime) -> bool:
        """Whether the patient lies there then; whoever lies there now, until the day planned."""
        return any(
            visit.patient["id"] == patient_id
            and visit.checked_in_at <= moment
            and (moment < visit.ended_at if visit.ended_at else moment.date() <= visit.planned_on)
            for visit in self.visits
        )

    def empty(self, moment: datetime) -> list[tuple[Bed, Room]]:
        """The beds in which nobody lies then."""
        return [
            (bed, room)
            for bed, room in self.beds
            if bed.id not in self.lying and self.free_from.get(bed.id, moment) <= moment
        ]


class _Maker:
    """One filling, in one transaction."""

    def __init__(self, session: AsyncSession, chance: random.Random, now: datetime, base_url: str) -> None:
        self.session = session
        self.chance = chance
        self.now = now
        self.base_url = base_url
        self.faker = Faker("ru_RU")
        self.faker.seed_instance(chance.random())
        self.beds: dict[int, list[tuple[Bed, Room]]] = {}
        self.doctors: dict[int, list[int]] = {}
        self.patient_account = 0

    async def _insert(self, table: type[SQLModel], rows: list[dict[str, Any]]) -> list[int]:
        """The rows are there; their keys, in order."""
        keys: list[int] = []
        for start in range(0, len(rows), 500):
            statement = insert(table).returning(table.__table__.c.id, sort_by_parameter_order=True)  # type: ignore[attr-defined]
            keys += list(await self.session.scalars(statement, rows[start : start + 500]))
        return keys

    async def places(self) -> list[Dispensary]:
        """The dispensaries, their rooms and beds."""
        made = []
        for place in _PLACES:
            dispensary = Dispensary(
                source_key=f"demo:{place.key}",
                name=place.name,
                neutral_name=place.neutral_name,
                address=place.address,
                phone=place.phone,
                time_zone=place.time_zone,
                latitude=place.latitude,
                longitude=place.longitude,
                staffed_beds=sum(beds for *_, beds in _ROOMS) - self.chance.randint(0, 2),
                cleaning_after_check_out=self.chance.random() < 0.5,
                created_at=self.now - 2 * _YEAR,
            )
            self.session.add(dispensary)
            await self.session.flush()
            self.beds[dispensary.id] = []
            numbers: dict[int, int] = {}
            for floor, sex, isolation, count in _ROOMS:
                numbers[floor] = numbers.get(floor, 0) + 1
                room = Room(
                    dispensary_id=dispensary.id,
                    number=f"{floor}{numbers[floor]:02}",
                    floor=floor,
                    sex=sex.value,
                    isolation=isolation,
                    created_at=self.now - 2 * _YEAR,
                )
                self.session.add(room)
                await self.session.flush()
                for label in range(1, count + 1):
                    bed = Bed(
                        dispensary_id=dispensary.id,
                        room_id=room.id,
                        label=str(label),
                        profile="изолятор" if isolation else self.chance.choice(_PROFILES),
                        created_at=self.now - 2 * _YEAR,
                    )
                    self.session.add(bed)
                    self.beds[dispensary.id].append((bed, room))
            await self.session.flush()
            made.append(dispensary)
        return made

    async def accounts(self, places: list[Dispensary], hashes: dict[str, str]) -> None:
        """The accounts to sign in with, and three more doctors in each dispensary."""
        self.doctors = {place.id: [] for place in places}
        places_of = iter(places)
        for known in ACCOUNTS:
            account = await self._account(
                known.email, hashes[known.password], Sex.FEMALE if known.role == Role.DOCTOR else Sex.MALE
            )
            match known.role:
                case Role.SUPERADMIN:
                    self._grant(account.id, Role.SUPERADMIN, None)
                case Role.DOCTOR:
                    self.doctors[next(places_of).id].append(account.id)
                    account.position = _DOCTOR
                case Role.DISPATCHER:
                    self._grant(account.id, Role.DISPATCHER, places[0].id)
                case _:
                    self.patient_account = account.id
        for place in places:
            for number in range(1, 4):
                account = await self._account(
                    f"colleague-{place.id}-{number}@example.org", _NO_PASSWORD, self.chance.choice(list(Sex))
                )
                account.position = _DOCTOR
                self.doctors[place.id].append(account.id)
            for account_id in self.doctors[place.id]:
                self._grant(account_id, Role.DOCTOR, place.id)
        await self.session.flush()

    async def _account(self, email: str, password_hash: str, sex: Sex) -> Account:
        account = Account(
            email=email,
            password_hash=password_hash,
            name=" ".join(self._names(sex)),
            created_at=self.now - _YEAR,
        )
        self.session.add(account)
        await self.session.flush()
        return account

    def _grant(self, account_id: int, role: Role, dispensary_id: int | None) -> None:
        self.session.add(
            RoleGrant(
                account_id=account_id,
                role=role.value,
                dispensary_id=dispensary_id,
                granted_at=self.now - _YEAR,
            )
        )

    def _names(self, sex: Sex) -> tuple[str, str, str]:
        family = self.faker.last_name_male() if sex is Sex.MALE else self.faker.last_name_female()
        if self.chance.random() < 0.7:
            family = _DOTTED.sub(r"\1ёв", family)
        patronymic = self.chance.choice(_PATRONYMICS.split())
        if sex is Sex.FEMALE:
            patronymic = patronymic.removesuffix("ич") + "на"
        return family, self.chance.choice(_GIVEN[sex].split()), patronymic

    def _person(self, place: Dispensary, number: int) -> dict[str, Any]:
        sex = Sex.MALE if self.chance.random() < 0.64 else Sex.FEMALE
        family, given, patronymic = self._names(sex)
        anonymous = self.chance.random() < 0.04
        return {
            "dispensary_id": place.id,
            "record_number": f"{self.now.year - 1}-{number:04}",
            "sex": sex.value,
            "family_name": None if anonymous else family,
            "given_name": None if anonymous else given,
            "patronymic": None if anonymous or self.chance.random() < 0.07 else patronymic,
            "code_name": f"{self.chance.choice(_CODE_NAMES)}-{number}" if anonymous else None,
            "birth_date": self.now.date() - timedelta(days=self.chance.randrange(19 * 365, 75 * 365)),
            # No number within a city begins with 0.
            "phone": None if anonymous else f"{str(place.phone)[:5]}0{self.chance.randrange(10**6):06}",
            "needs_isolation": number % 40 == 0,
            "created_at": self.now - _YEAR - timedelta(days=1),
            "version": 1,
        }

    async def people(self, place: Dispensary) -> _Ward:
        """The dispensary's patients and the stays of their year."""
        rows = [self._person(place, number) for number in range(1, _PATIENTS_EACH + 1)]
        keys = await self._insert(Patient, rows)
        patients = [{"id": key, **row} for key, row in zip(keys, rows, strict=True)]
        ward = _Ward(self.chance, self.now, ZoneInfo(place.time_zone), self.beds[place.id], patients)
        ward.live()
        stays = [
            {
                "patient_id": visit.patient["id"],
                "dispensary_id": place.id,
                "checked_in_at": visit.checked_in_at,
                "checked_out_at": visit.ended_at,
                "outcome": visit.outcome.value if visit.ended_at else None,
                "planned_check_out_on": visit.planned_on,
                "diagnosis_code": self.chance.choice(_DIAGNOSES),
                "attending_doctor_id": self.chance.choice(self.doctors[place.id]),
                "created_at": visit.checked_in_at,
                "version": len(visit.beds) + (visit.ended_at is not None),
            }
            for visit in ward.visits
        ]
        for visit, key in zip(ward.visits, await self._insert(Stay, stays), strict=True):
            visit.stay_id = key
        assignments = [
            {
                "stay_id": visit.stay_id,
                "bed_id": bed.id,
                "dispensary_id": place.id,
                "started_at": since,
                "ended_at": until,
            }
            for visit in ward.visits
            for (bed, since), until in zip(
                visit.beds, [*(since for _, since in visit.beds[1:]), visit.ended_at], strict=True
            )
        ]
        await self._insert(BedAssignment, assignments)
        return ward

    async def extras(self, place: Dispensary, ward: _Ward) -> int:
        """What makes a board look like one, and certificates; the patient who has been there most often."""
        doctor = self._doctor(place)
        ordinary = [(bed, room) for bed, room in ward.empty(self.now) if not room.isolation]
        (closed, _), *kept, (cleaned, _) = sorted(
            ordinary, key=lambda pair: ward.free_from.get(pair[0].id, self.now - _YEAR)
        )
        cleaned.service_state = ServiceState.CLEANING.value
        closed.service_state = ServiceState.CLOSED.value
        self.session.add(
            BedClosure(
                bed_id=closed.id,
                dispensary_id=place.id,
                closed_at=max(ward.free_from.get(closed.id, self.now - _YEAR), self.now - timedelta(days=4)),
                reason=self.chance.choice(_CLOSURES),
                closed_by_id=doctor.account_id,
            )
        )
        await self.session.flush()
        present = {visit.patient["id"] for visit in ward.lying.values()}
        for (bed, room), hours, named in zip(kept, (12, 36), (False, True), strict=False):
            expected = (p["id"] for p in ward.patients if _takes(room, p) and p["id"] not in present)
            await reserve_bed(
                self.session,
                actor=doctor,
                bed_id=bed.id,
                # From the clock's present, since it lapses by it.
                until=datetime.now(UTC) + timedelta(hours=hours),
                patient_id=next(expected) if named else None,
            )
        stays_of = Counter(visit.patient["id"] for visit in ward.visits)
        discharged = {
            visit.patient["id"]: visit
            for visit in ward.visits
            if visit.ended_at and visit.outcome is Outcome.DISCHARGED and not visit.patient["code_name"]
        }
        known = sorted(discharged.values(), key=lambda visit: -stays_of[visit.patient["id"]])
        for language, visit in zip(("ru", "ru", "en"), known, strict=False):
            await issue(
                self.session,
                actor=doctor,
                stay_id=visit.stay_id,
                request={
                    "language": language,
                    "neutral_header": True,
                    "purpose": "для предъявления по месту работы" if language == "ru" else None,
                },
                base_url=self.base_url,
            )
        most_often: int = known[0].patient["id"]
        return most_often

    async def link(self, place: Dispensary, patient_id: int) -> None:
        """The patient's account is of this patient."""
        patient = await link_account(
            self.session,
            actor=self._doctor(place),
            patient_id=patient_id,
            version=1,
            account_id=self.patient_account,
        )
        account = await self.session.get_one(Account, self.patient_account)
        account.name = " ".join(filter(None, (patient.family_name, patient.given_name, patient.patronymic)))

    def clinic(self, place: Dispensary, ward: _Ward) -> Clinic:
        """The dispensary's outpatient clinic, which is not open yet."""
        return Clinic(
            self.session,
            self.chance,
            self.now,
            place,
            self.doctors[place.id],
            [patient["id"] for patient in ward.patients],
            ward.holds,
        )

    def _doctor(self, place: Dispensary) -> Actor:
        return Actor(account_id=self.doctors[place.id][0], auth_version=1, doctor_of=frozenset({place.id}))


def _takes(room: Room, patient: dict[str, Any]) -> bool:
    """Whether the room is for this patient."""
    return room.isolation == patient["needs_isolation"] and room.sex in (RoomSex.ANY, patient["sex"])


async def _main() -> None:
    """The database of the environment holds the network, and whoever started it is told how to get in."""
    settings = Settings()
    assert settings.database_url is not None
    hasher = PasswordHasher(settings.password_hash_rounds)
    err = Console(stderr=True, highlight=False, soft_wrap=True)
    address = settings.database_url.get_secret_value()
    async with Database(address, settings, pooled=False, role=WARD_ROLE) as database:
        accounts = await fill(
            database,
            hasher=hasher,
            say=lambda message: err.print(f"[dim]·[/] {escape(message)}"),
            base_url=settings.base_url,
        )
    hasher.close()
    out, base, first = Console(highlight=False, soft_wrap=True), settings.base_url, accounts[0]
    out.print(f"\n[bold]ЭКойка {__version__}[/]  {base}")
    out.print(f"  GraphiQL      {base}/graphql")
    out.print(f"  метрики       {base}/metrics   состояние {base}/readyz")
    out.print("\n[bold]Учётные записи · accounts[/]")
    for account in accounts:
        out.print(f"  {account.role:<11} {account.email:<28} {account.password:<22} {escape(account.note)}")
    out.print(
        "\n[bold]Первый запрос · a first query[/] (GraphiQL, вкладка Headers: токен · the token goes to Headers)"
    )
    out.print(
        escape(
            f'  mutation {{ signIn(input: {{email: "{first.email}", password: "{first.password}"}}) '
            "{ ... on Tokens { accessToken } ... on Refusal { message } } }"
        )
    )
    out.print('  {"Authorization": "Bearer …"}', markup=False)
    out.print("\n" + escape(FIRST_QUERY.strip()) + "\n")
    out.print("[dim]Ctrl-C останавливает всё · stops everything[/]\n")


if __name__ == "__main__":
    asyncio.run(_main())
