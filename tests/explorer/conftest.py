"""The real server behind the explorer, with a doctor who can sign in and a free bed."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import bcrypt
import pytest

from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.servers import running

PASSWORD = "correct horse"


@dataclass(frozen=True)
class Served:
    """The server's address and what is in it."""

    url: str
    email: str
    dispensary: str
    bed: str
    patient: str


@pytest.fixture
async def served(database: Database, settings: Settings, make: Factory) -> AsyncIterator[Served]:
    place = await make.dispensary(name="Наркологический диспансер № 1")
    bed, patient = await make.bed(place), await make.patient(place, family_name="Соловьёв")
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    doctor = await make.account(doctor_of=(place,), password_hash=hashed)
    # Introspection before anybody has signed in is a demonstration's.
    async with running(settings, EKOYKA_MODE="demo") as (server,):
        yield Served(
            server.url, doctor.email, gid("Dispensary", place), gid("Bed", bed), gid("Patient", patient)
        )
