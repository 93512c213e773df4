"""The certificate as it is read back from the PDF, and the process that makes it."""

import asyncio
import io
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import segno
from markupsafe import Markup
from pypdf import PageObject, PdfReader

from ekoyka.certificates.paper import render
from ekoyka.certificates.render import CertificateFacts, RenderBusy, Renderer, RenderFailed, Unprintable

RUSSIAN = CertificateFacts(
    language="ru",
    organisation="ГБУЗ «Городская больница № 12»",
    address="190000, г. Санкт-Петербург, ул. Садовая, д. 5",
    number="12/2026",
    issued_on=date(2026, 3, 14),
    patient_name="Ёлкина Мария Сергеевна",
    birth_date=date(1984, 7, 2),
    checked_in_on=date(2026, 3, 3),
    checked_out_on=date(2026, 3, 14),
    bed_days=11,
    outcome="выписана с улучшением",
    diagnosis=None,
    doctor_name="Петров Пётр Петрович",
    doctor_position="врач-терапевт",
    purpose="для предъявления по месту работы",
    verification_url="https://koyka.example.org/verify/3Jk9xQ2mZt7LbV4s",
)
ENGLISH = replace(
    RUSSIAN,
    language="en",
    organisation="City Hospital No. 12",
    address="5 Sadovaya St, St Petersburg",
    patient_name="O’Brien-Müller José",
    outcome="discharged, improved",
    doctor_name="Petrov Pyotr",
    doctor_position=None,
    purpose="for the employer",
)
HOSTILE = (
    "<script>alert(1)</script>",
    "{{ 7*7 }}",
    "{% for x in y %}",
    "<img src=file:///etc/passwd>",
    '"><img src="http://127.0.0.1/x.png">',
    "<pdf:nextpage />",
    "<pdf:toc>",
    "</td></table></style><!--",
    "&amp; &#1046; &nbsp;",
    "<td colspan=99999999>",
    "%(title)s ${x} \\n ]]>",
)


def page_of(pdf: bytes) -> PageObject:
    (page,) = PdfReader(io.BytesIO(pdf)).pages
    return page


def text_of(pdf: bytes) -> str:
    return " ".join(page_of(pdf).extract_text().split())


def without_spaces(text: str) -> str:
    return "".join(text.split())


def workers_of(parent: int) -> list[int]:
    """The render workers among a process's children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if b"ekoyka.certificates.paper" in command and int(status.rpartition(")")[2].split()[1]) == parent:
            found.append(int(folder.name))
    return found


def environ_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


@pytest.fixture
async def renderer() -> AsyncIterator[Renderer]:
    """A renderer whose worker is warm."""
    renderer = Renderer(timeout_s=3, queue=1)
    await renderer.render(RUSSIAN)
    yield renderer
    await renderer.close()


def test_a_russian_certificate_says_everything_on_one_page() -> None:
    text = text_of(render(RUSSIAN))

    for said in (
        "ГБУЗ «Городская больница № 12»",
        "190000, г. Санкт-Петербург, ул. Садовая, д. 5",
        "Справка о нахождении на стационарном лечении",
        "№ 12/2026 от 14 марта 2026 г.",
        "Пациент Ёлкина Мария Сергеевна",
        "Дата рождения 2 июля 1984 г.",
        "с 3 марта 2026 г. по 14 марта 2026 г., 11 койко-дней",
        "Исход выписана с улучшением",
        "Цель выдачи для предъявления по месту работы",
        "врач-терапевт Петров Пётр Петрович",
        "подпись",
        "М.П. врача",
        "М.П. организации",
        "https://koyka.example.org/verify/3Jk9xQ2mZt7LbV4s",
    ):
        assert said in text


def test_an_english_certificate_says_everything_on_one_page() -> None:
    text = text_of(render(ENGLISH))

    for said in (
        "City Hospital No. 12",
        "5 Sadovaya St, St Petersburg",
        "Certificate of inpatient treatment",
        "No. 12/2026 issued on 14 March 2026",
        "Patient O’Brien-Müller José",
        "Date of birth 2 July 1984",
        "from 3 March 2026 to 14 March 2026, 11 bed-days",
        "Outcome discharged, improved",
        "Purpose for the employer",
        "Doctor Petrov Pyotr",
        "signature",
        "Doctor’s seal",
        "Seal of the organisation",
        "https://koyka.example.org/verify/3Jk9xQ2mZt7LbV4s",
    ):
        assert said in text


def test_what_is_absent_has_no_line() -> None:
    bare = replace(RUSSIAN, birth_date=None, purpose=None, doctor_position=None, patient_name="Берёза-7")

    text = text_of(render(bare))

    assert "Пациент Берёза-7 Период лечения" in text
    assert "Врач Петров" in text
    assert not any(label in text for label in ("Дата рождения", "Диагноз", "Цель выдачи", "None"))


def test_the_diagnosis_is_printed_when_it_is_given() -> None:
    assert "Диагноз F10.2 Синдром зависимости" in text_of(
        render(replace(RUSSIAN, diagnosis="F10.2 Синдром зависимости"))
    )


def test_the_metadata_names_the_number_and_nobody() -> None:
    metadata = PdfReader(io.BytesIO(render(RUSSIAN))).metadata

    assert metadata is not None
    assert metadata.title == "№ 12/2026"
    assert not metadata.author
    assert not metadata.subject
    assert "Ёлкина" not in str(metadata)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (1, "1 койко-день"),
        (2, "2 койко-дня"),
        (4, "4 койко-дня"),
        (5, "5 койко-дней"),
        (11, "11 койко-дней"),
        (12, "12 койко-дней"),
        (21, "21 койко-день"),
        (22, "22 койко-дня"),
        (111, "111 койко-дней"),
        (365, "365 койко-дней"),
    ],
)
def test_bed_days_agree_with_their_number(count: int, words: str) -> None:
    assert f"г., {words} Исход" in text_of(render(replace(RUSSIAN, bed_days=count)))


def test_a_stay_of_one_day_and_of_a_year_name_both_their_ends() -> None:
    day = replace(ENGLISH, checked_in_on=date(2026, 3, 14), bed_days=1)
    year = replace(RUSSIAN, checked_in_on=date(2025, 3, 14), bed_days=365)

    assert "from 14 March 2026 to 14 March 2026, 1 bed-day Outcome" in text_of(render(day))
    assert "с 14 марта 2025 г. по 14 марта 2026 г., 365 койко-дней" in text_of(render(year))


def test_the_longest_texts_are_whole_and_on_one_page() -> None:
    unbroken = " ".join(("Александрийско" * 8)[:100] for _ in range(3))
    longest = replace(
        RUSSIAN,
        organisation="Государственное бюджетное учреждение здравоохранения " * 6,
        address="Очень Длинная область, Ещё Длиннее район, " * 8,
        patient_name=unbroken,
        outcome="выписана с улучшением " * 20,
        diagnosis="F10.2 Психические и поведенческие расстройства " * 20,
        purpose="для предъявления по месту требования " * 20,
        doctor_name=unbroken,
        doctor_position="заведующий отделением " * 10,
        verification_url="https://koyka.example.org/" + "a" * 300,
    )

    text = without_spaces(text_of(render(longest)))

    assert text.count(without_spaces(unbroken)) == 2
    for said in (longest.organisation, longest.address, longest.outcome, longest.diagnosis, longest.purpose):
        assert without_spaces(said or "") in text
    assert longest.verification_url in text


def test_a_text_that_no_type_size_fits_is_refused() -> None:
    with pytest.raises(RenderFailed, match="more than one page"):
        render(replace(RUSSIAN, address="ш" * 30_000))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_printed_as_it_is_written(hostile: str) -> None:
    facts = replace(
        RUSSIAN,
        organisation=hostile,
        address=hostile,
        patient_name=hostile,
        outcome=hostile,
        diagnosis=hostile,
        doctor_name=hostile,
        doctor_position=hostile,
        purpose=hostile,
    )

    page = page_of(render(facts))

    assert without_spaces(page.extract_text()).count(without_spaces(hostile)) == 8
    assert len(page.images) == 1
    links = [note.get_object()["/A"]["/URI"] for note in page.annotations or ()]
    assert links == [RUSSIAN.verification_url]


def test_invisible_characters_cannot_rearrange_a_name() -> None:
    assert "Пациент Ёлкин Андрей Дата" in text_of(
        render(replace(RUSSIAN, patient_name="\u202eЕ\u0308лкин\u200b Андреи\u0306"))
    )


@pytest.mark.parametrize("name", ["李雷", "Мария 🙂", "Мар\x07ия"])
def test_a_character_without_a_glyph_is_refused_rather_than_boxed(name: str) -> None:
    with pytest.raises(Unprintable):
        render(replace(RUSSIAN, patient_name=name))


def test_names_of_the_neighbourhood_have_their_letters() -> None:
    names = "Əliyev Гүлнәр Қанатқызы Нүрғалиев Їжак Ґудзь გიორგი Արմեն Nguyễn"

    assert names in text_of(render(replace(RUSSIAN, patient_name=names)))


@pytest.mark.parametrize("facts", [RUSSIAN, ENGLISH])
def test_the_qr_code_holds_the_verification_address(facts: CertificateFacts) -> None:
    symbol = segno.make_qr(facts.verification_url, error="m").matrix

    (image,) = page_of(render(facts)).images

    assert image.image is not None
    picture = image.image.convert("L")
    module = picture.width / len(symbol)
    dark = [
        [
            picture.getpixel((int((x + 0.5) * module), int((y + 0.5) * module))) == 0
            for x in range(len(symbol))
        ]
        for y in range(len(symbol))
    ]
    assert dark == [[bool(cell) for cell in row] for row in symbol]


def test_the_server_does_not_import_the_pdf_libraries() -> None:
    code = (
        "import sys, ekoyka.certificates.render;"
        "print([m for m in ('xhtml2pdf', 'reportlab', 'matplotlib', 'segno') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


async def test_the_renderer_makes_the_same_page_in_one_warm_worker(renderer: Renderer) -> None:
    before = workers_of(os.getpid())

    russian, english = await asyncio.gather(renderer.render(RUSSIAN), renderer.render(ENGLISH))

    assert text_of(russian) == text_of(render(RUSSIAN))
    assert text_of(english) == text_of(render(ENGLISH))
    assert len(before) == 1
    assert workers_of(os.getpid()) == before


async def test_a_failed_page_is_named_and_costs_no_worker(renderer: Renderer) -> None:
    before = workers_of(os.getpid())

    with pytest.raises(Unprintable):
        await renderer.render(replace(RUSSIAN, patient_name="李雷"))
    with pytest.raises(RenderFailed, match="DataOverflowError"):
        await renderer.render(replace(RUSSIAN, verification_url="https://" + "a" * 9_000))

    assert "Ёлкина" in text_of(await renderer.render(RUSSIAN))
    assert workers_of(os.getpid()) == before


async def test_a_worker_that_exceeds_the_time_limit_is_killed_and_replaced(renderer: Renderer) -> None:
    (stuck,) = workers_of(os.getpid())
    os.kill(stuck, signal.SIGSTOP)

    with pytest.raises(RenderFailed, match="no answer within 3 s"):
        await renderer.render(RUSSIAN)

    assert workers_of(os.getpid()) == []
    assert "Ёлкина" in text_of(await renderer.render(RUSSIAN))
    assert workers_of(os.getpid()) != [stuck]


async def test_a_page_that_holds_the_pdf_library_is_given_up_in_five_seconds_and_the_next_ones_are_made() -> (
    None
):
    """By default, with a real one: a cell that spans as many columns as the library cares to lay out."""
    hostile = replace(RUSSIAN, purpose=Markup("<table><tr><td colspan=99999999>x</td></tr></table>"))
    renderer = Renderer(queue=2)
    await renderer.render(RUSSIAN)
    (worker,) = workers_of(os.getpid())
    began, turns = time.monotonic(), 0
    held = asyncio.create_task(renderer.render(hostile))
    waiting = [asyncio.create_task(renderer.render(facts)) for facts in (RUSSIAN, ENGLISH)]
    await asyncio.sleep(0)
    with pytest.raises(RenderBusy):
        await renderer.render(RUSSIAN)
    while not held.done():
        await asyncio.sleep(0.01)
        turns += 1

    with pytest.raises(RenderFailed, match="no answer within 5 s"):
        await held
    assert 5 <= time.monotonic() - began < 7
    assert turns > 100  # the server has done other things meanwhile
    assert worker not in workers_of(os.getpid())
    made = await asyncio.gather(*waiting)
    assert ["Ёлкина" in text_of(made[0]), "O’Brien" in text_of(made[1])] == [True, True]
    await renderer.close()


async def test_a_worker_that_dies_over_a_page_is_replaced(renderer: Renderer) -> None:
    (worker,) = workers_of(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    rendering = asyncio.create_task(renderer.render(RUSSIAN))
    await asyncio.sleep(0)
    os.kill(worker, signal.SIGKILL)

    with pytest.raises(RenderFailed, match="the worker ended"):
        await rendering

    assert "Ёлкина" in text_of(await renderer.render(RUSSIAN))


async def test_the_page_of_a_caller_who_went_away_is_given_to_nobody_else(renderer: Renderer) -> None:
    (worker,) = workers_of(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    rendering = asyncio.create_task(renderer.render(RUSSIAN))
    await asyncio.sleep(0)
    rendering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await rendering

    assert "O’Brien" in text_of(await renderer.render(ENGLISH))


async def test_the_event_loop_runs_on_while_a_page_is_made(renderer: Renderer) -> None:
    rendering = asyncio.create_task(renderer.render(RUSSIAN))
    turns = 0
    while not rendering.done():
        turns += 1
        await asyncio.sleep(0)

    assert rendering.result().startswith(b"%PDF")
    assert turns > 10  # a page made in the loop itself would be done after one or two


async def test_no_more_certificates_wait_than_may(renderer: Renderer) -> None:
    (worker,) = workers_of(os.getpid())
    os.kill(worker, signal.SIGSTOP)
    made, waiting = (asyncio.create_task(renderer.render(facts)) for facts in (RUSSIAN, ENGLISH))
    await asyncio.sleep(0)

    with pytest.raises(RenderBusy):
        await renderer.render(RUSSIAN)

    os.kill(worker, signal.SIGCONT)
    assert "Ёлкина" in text_of(await made)
    assert "O’Brien" in text_of(await waiting)
    assert "Ёлкина" in text_of(await renderer.render(RUSSIAN))


async def test_a_closed_renderer_has_no_worker_and_makes_no_page(renderer: Renderer) -> None:
    made, waiting = (asyncio.create_task(renderer.render(facts)) for facts in (RUSSIAN, ENGLISH))
    await asyncio.sleep(0)

    await renderer.close()

    assert workers_of(os.getpid()) == []
    assert "Ёлкина" in text_of(await made)
    for refused in (waiting, renderer.render(RUSSIAN)):
        with pytest.raises(RenderFailed, match="closed"):
            await refused
    assert workers_of(os.getpid()) == []


async def test_the_worker_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EKOYKA_TOKEN_KEY", "secret-of-tokens")
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret-of-database")
    renderer = Renderer()
    await renderer.render(RUSSIAN)

    (worker,) = workers_of(os.getpid())
    environ = environ_of(worker)
    await renderer.close()

    assert b"PYTHONPATH=" in environ
    assert b"secret-of" not in environ


async def test_the_terminals_ctrl_c_does_not_reach_the_worker(renderer: Renderer) -> None:
    (worker,) = workers_of(os.getpid())

    assert os.getpgid(worker) != os.getpgid(0)


def test_the_worker_ends_with_a_parent_that_was_killed() -> None:
    code = (
        "import asyncio\n"
        "from ekoyka.certificates.render import Renderer, RenderFailed\n"
        "async def main():\n"
        "    renderer = Renderer()\n"
        "    try:\n"
        "        await renderer.render(None)\n"
        "    except RenderFailed:\n"
        "        print('warm', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line == b"warm\n":
                break
        (worker,) = workers_of(parent.pid)
        ended = os.pidfd_open(worker)

        parent.kill()

        assert select.select([ended], [], [], 10)[0] == [ended]
        os.close(ended)
