"""The demonstration network: made-up people in made-up dispensaries, the same for the same seed and day.

Owns nothing of the domain: rows are made in bulk under all of its constraints, and what has rules of its
own (certificates, reservations, the link of a record to an account) goes through the operations.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from faker import Faker
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from ekoyka.certificates.operations import issue
from ekoyka.database import Database
from ekoyka.facilities.tables import Bed, BedClosure, Dispensary, Room, RoomSex, ServiceState
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import PasswordHasher
from ekoyka.identity.tables import Account, Role, RoleGrant
from ekoyka.inpatient.availability import reserve_bed
from ekoyka.inpatient.patients import link_account
from ekoyka.inpatient.tables import BedAssignment, Outcome, Patient, Sex, Stay

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
    DemoAccount("DOCTOR", "doctor2@example.org", "demo-doctor-2026", "диспансер в Екатеринбурге"),
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


_PLACES = (
    _Place(
        "moscow",
        "Наркологический диспансер «Сокольники»",
        "Городская клиническая больница № 140",
        "107014, Москва, ул. Стромынка, д. 7",
        "+74950000101",
        "Europe/Moscow",
        55.7905,
        37.6975,
    ),
    _Place(
        "yekaterinburg",
        "Областной наркологический диспансер",
        "Областная больница № 12",
        "620030, Екатеринбург, ул. Халтурина, д. 44а",
        "+73430000102",
        "Asia/Yekaterinburg",
        56.8505,
        60.5511,
    ),
    _Place(
        "kaliningrad",
        "Наркологический диспансер «Янтарный берег»",
        "Медицинский центр «Янтарный берег»",
        "236006, Калининград, Московский пр-т, д. 80",
        "+74010000103",
        "Europe/Kaliningrad",
        54.7065,
        20.5330,
    ),
    _Place(
        "novosibirsk",
        "Наркологический диспансер № 2",
        "Клиническая больница «Обь»",
        "630099, Новосибирск, ул. Каинская, д. 15",
        "+73830000104",
        "Asia/Novosibirsk",
        55.0255,
        82.9180,
    ),
    _Place(
        "vladivostok",
        "Краевой наркологический диспансер",
        "Краевая больница «Тихая»",
        "690011, Владивосток, ул. Станюковича, д. 53",
        "+74230000105",
        "Asia/Vladivostok",
        43.1090,
        131.8740,
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
_PATIENTS_EACH = 150


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
    midnight, UTC) make the same rows.
    """
    if await database.fetch_value("SELECT EXISTS (SELECT FROM dispensary WHERE source_key LIKE 'demo:%')"):
        say("демонстрационные данные на месте · the demonstration data are there")
        return ACCOUNTS
    moment = now or datetime.combine(datetime.now(UTC).date(), time(), UTC)
    hashes = {account.password: await hasher.hash(account.password) for account in ACCOUNTS}
    say("диспансеры, палаты, койки, врачи · dispensaries, rooms, beds, doctors")
    async with database.transaction() as session:
        maker = _Maker(session, random.Random(seed), moment, base_url)  # noqa: S311 -- a believable network, no secret
        places = await maker.places()
        doctors = await maker.accounts(places, hashes)
        say("пациенты и год госпитализаций · patients and a year of stays")
        for place in places:
            await maker.people(place, doctors[place.id])
        say("справки, брони, закрытые койки · certificates, reservations, closed beds")
        await maker.extras(places)
    return ACCOUNTS


class _Maker:
    """One filling, in one transaction."""

    def __init__(self, session: AsyncSession, chance: random.Random, now: datetime, base_url: str) -> None:
        self.base_url = base_url
        self.session = session
        self.chance = chance
        self.now = now
        self.faker = Faker("ru_RU")
        self.faker.seed_instance(chance.random())
        self.beds: dict[int, list[tuple[Bed, Room]]] = {}
        self.admin: Actor | None = None
        self.patient_account = 0

    async def _insert(self, table: type[SQLModel], rows: list[dict[str, Any]]) -> list[int]:
        """The rows are there; their keys, in order."""
        keys: list[int] = []
        for start in range(0, len(rows), 500):
            statement = insert(table).returning(table.__table__.c.id, sort_by_parameter_order=True)  # type: ignore[attr-defined]
            keys += list(await self.session.scalars(statement, rows[start : start + 500]))
        return keys

    async def places(self) -> list[Dispensary]:
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
                staffed_beds=sum(beds for *_, beds in _ROOMS) - self.chance.randint(0, 4),
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

    async def accounts(self, places: list[Dispensary], hashes: dict[str, str]) -> dict[int, list[int]]:
        """The accounts; each dispensary's doctors."""
        doctors: dict[int, list[int]] = {place.id: [] for place in places}
        places_of = iter(places)
        for known in ACCOUNTS:
            account = Account(
                email=known.email,
                password_hash=hashes[known.password],
                name=_full_name(self.faker, Sex.FEMALE if known.role == "DOCTOR" else Sex.MALE),
                position="врач психиатр-нарколог" if known.role == "DOCTOR" else None,
                created_at=self.now - _YEAR,
            )
            self.session.add(account)
            await self.session.flush()
            match known.role:
                case Role.SUPERADMIN:
                    self.session.add(RoleGrant(account_id=account.id, role=known.role))
                    self.admin = Actor(account_id=account.id, auth_version=1, superadmin=True)
                case Role.DOCTOR:
                    doctors[next(places_of).id].append(account.id)
                case Role.DISPATCHER:
                    self.session.add(
                        RoleGrant(account_id=account.id, role=known.role, dispensary_id=places[0].id)
                    )
                case _:
                    self.patient_account = account.id
        for place in places:
            for number in range(3):
                # Colleagues without a usable password: names for stays, nobody to sign in as.
                account = Account(
                    email=f"colleague-{place.id}-{number}@example.org",
                    password_hash="-",  # noqa: S106 -- no password has this hash
                    name=_full_name(self.faker, self.chance.choice(list(Sex))),
                    position="врач психиатр-нарколог",
                    created_at=self.now - _YEAR,
                )
                self.session.add(account)
                await self.session.flush()
                doctors[place.id].append(account.id)
            for account_id in doctors[place.id]:
                self.session.add(
                    RoleGrant(account_id=account_id, role=Role.DOCTOR.value, dispensary_id=place.id)
                )
        await self.session.flush()
        return doctors

    def _person(self, place: Dispensary, number: int) -> dict[str, Any]:
        sex = Sex.MALE if self.chance.random() < 0.72 else Sex.FEMALE
        row: dict[str, Any] = {
            "dispensary_id": place.id,
            "record_number": f"{self.now.year - 1}-{number:04}",
            "sex": sex.value,
            "family_name": None,
            "given_name": None,
            "patronymic": None,
            "code_name": None,
            "birth_date": date(1950, 1, 1) + timedelta(days=self.chance.randrange(56 * 365)),
            "phone": f"+7900{self.chance.randrange(10**7):07}",
            "address": None,
            "needs_isolation": self.chance.random() < 0.02,
            "created_at": self.now - _YEAR,
            "version": 1,
        }
        if self.chance.random() < 0.04:
            row["code_name"] = f"{self.chance.choice(_CODE_NAMES)}-{number}"
            row["phone"] = None
        else:
            family, given, patronymic = _names(self.faker, sex)
            row |= {"family_name": family, "given_name": given}
            row["patronymic"] = patronymic if self.chance.random() < 0.93 else None
        return row

    async def people(self, place: Dispensary, doctors: list[int]) -> None:
        """The dispensary's patients and their stays: bed by bed through the year, until now."""
        rows = [self._person(place, number) for number in range(1, _PATIENTS_EACH + 1)]
        patients = list(zip(await self._insert(Patient, rows), rows, strict=True))
        free_from: dict[int, datetime] = {}
        stays: list[dict[str, Any]] = []
        beds: list[int] = []
        for bed, room in self.beds[place.id]:
            moment = self.now - _YEAR + timedelta(hours=self.chance.randrange(24 * 20))
            while moment < self.now - timedelta(hours=2):
                fitting = [
                    key
                    for key, row in patients
                    if room.sex in (RoomSex.ANY, row["sex"])
                    and row["needs_isolation"] == room.isolation
                    and free_from.get(key, moment) <= moment
                ]
                if not fitting:
                    moment += timedelta(days=3)
                    continue
                patient = self.chance.choice(fitting)
                days = min(45.0, 3 + self.chance.expovariate(1 / 11))
                end = moment + timedelta(days=days)
                is_open = end >= self.now
                stays.append(
                    {
                        "patient_id": patient,
                        "dispensary_id": place.id,
                        "checked_in_at": moment,
                        "checked_out_at": None if is_open else end,
                        "outcome": None if is_open else self.chance.choice(_OUTCOMES).value,
                        "planned_check_out_on": _day(
                            place, end + timedelta(days=self.chance.choice((-3, 0, 0, 1)))
                        ),
                        "diagnosis_code": self.chance.choice(_DIAGNOSES),
                        "attending_doctor_id": self.chance.choice(doctors),
                        "created_at": moment,
                        "version": 1,
                    }
                )
                beds.append(bed.id)
                # Nobody is admitted twice at once; an open stay ends in the future.
                free_from[patient] = end + timedelta(days=20)
                moment = end + timedelta(hours=self.chance.randint(3, 90))
        keys = await self._insert(Stay, stays)
        assignments = [
            {
                "stay_id": key,
                "bed_id": bed,
                "dispensary_id": place.id,
                "started_at": stay["checked_in_at"],
                "ended_at": stay["checked_out_at"],
            }
            for key, stay, bed in zip(keys, stays, beds, strict=True)
        ]
        await self._insert(BedAssignment, assignments)

    async def extras(self, places: list[Dispensary]) -> None:
        """What has rules of its own, and what makes a board look like one."""
        assert self.admin is not None
        for place in places:
            taken = set(
                await self.session.scalars(
                    text(
                        "SELECT bed_id FROM bed_assignment WHERE dispensary_id = :place AND ended_at IS NULL"
                    ),
                    {"place": place.id},
                )
            )
            empty = [bed for bed, _ in self.beds[place.id] if bed.id not in taken]
            self.chance.shuffle(empty)
            if len(empty) > 2:
                empty[0].service_state = ServiceState.CLEANING.value
                empty[1].service_state = ServiceState.CLOSED.value
                self.session.add(
                    BedClosure(
                        bed_id=empty[1].id,
                        dispensary_id=place.id,
                        closed_at=self.now - timedelta(days=4),
                        reason="ремонт палаты",
                        closed_by_id=self.admin.account_id,
                    )
                )
            await self.session.flush()
            if len(empty) > 3:
                # From the clock's present, since it lapses by it.
                await reserve_bed(
                    self.session,
                    actor=self.admin,
                    bed_id=empty[2].id,
                    until=datetime.now(UTC) + timedelta(hours=12),
                    patient_id=None,
                )
        ended = (
            await self.session.execute(
                text(
                    "SELECT min(s.id) AS stay, s.patient_id FROM stay s JOIN patient p ON p.id = s.patient_id "
                    "WHERE s.dispensary_id = :place AND s.outcome = 'DISCHARGED' AND p.code_name IS NULL "
                    "GROUP BY s.patient_id HAVING count(*) > 1 ORDER BY 2 LIMIT 3"
                ),
                {"place": places[0].id},
            )
        ).all()
        for stay, _ in ended:
            await issue(
                self.session,
                actor=self.admin,
                stay_id=stay,
                request={
                    "language": "ru",
                    "neutral_header": True,
                    "purpose": "для предъявления по месту работы",
                },
                base_url=self.base_url,
            )
        await link_account(
            self.session,
            actor=self.admin,
            patient_id=ended[0].patient_id,
            version=1,
            account_id=self.patient_account,
        )


def _day(place: Dispensary, moment: datetime) -> date:
    return moment.astimezone(ZoneInfo(place.time_zone)).date()


def _names(faker: Faker, sex: Sex) -> tuple[str, str, str]:
    if sex is Sex.MALE:
        return faker.last_name_male(), faker.first_name_male(), faker.middle_name_male()
    return faker.last_name_female(), faker.first_name_female(), faker.middle_name_female()


def _full_name(faker: Faker, sex: Sex) -> str:
    return " ".join(_names(faker, sex))
