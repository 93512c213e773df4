"""What is wrong with a file is said by line and name, and nothing is half-written."""

from pathlib import Path

import pytest

from ekoyka.database import Database
from ekoyka.imports.facilities import FacilityColumns, import_facilities
from ekoyka.imports.files import BadFile
from ekoyka.imports.stays import StayColumns, import_stays
from tests.invariants import broken_invariants

HEADER = "FACID,FACNAME,BED_CAPACITY_TYPE,BED_CAPACITY,COUNTY_NAME\n"


def write(file: Path, text: str, encoding: str = "utf-8") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding=encoding)
    return file


@pytest.fixture
async def facilities(database: Database, tmp_path: Path) -> None:
    register = write(tmp_path / "beds.csv", HEADER + "01,Clinic,REHAB,2,YOLO\n")
    await import_facilities(database, register, FacilityColumns())


def admissions(folder: Path, *rows: str) -> Path:
    write(
        folder / "patients.csv",
        "subject_id,gender,anchor_year\n1,F,2110\n2,M,2110\n3,X,2110\n4,M,2110\n5,M,2110\n",
    )
    head = "hadm_id,subject_id,admittime,dischtime,discharge_location,hospital_expire_flag\n"
    write(folder / "admissions.csv", head + "".join(f"{row}\n" for row in rows))
    write(
        folder / "diagnoses_icd.csv",
        "hadm_id,icd_code,icd_version,seq_num\n1,F1020,10,2\n1,I10,10,1\n2,4139,9,1\n",
    )
    return folder


async def test_bad_rows_are_refused_with_their_lines_and_the_good_ones_written(
    database: Database, tmp_path: Path
) -> None:
    register = write(
        tmp_path / "beds.csv",
        HEADER
        + "0001,Первая,REHAB,5,YOLO\n"
        + ",Нет ключа,REHAB,5,YOLO\n"
        + "0002,Вторая,REHAB,пять,YOLO\n"
        + "0002,Вторая,REHAB,-5,YOLO\n"
        + f"0003,{'Я' * 300},REHAB,5,YOLO\n"
        + "0001,Первая,DETOX,1,YOLO\n",
        "utf-8-sig",
    )

    report = await import_facilities(database, register, FacilityColumns())

    assert (report.read, report.written) == (6, 2)
    assert [(item.line, item.code) for item in report.refused] == [
        (3, "NO_KEY"),
        (4, "BAD_NUMBER"),
        (5, "BAD_NUMBER"),
        (6, "INVALID_INPUT"),
    ]
    assert "name" in report.refused[-1].reason
    rows = await database.fetch(
        "SELECT r.number, b.label FROM bed b JOIN room r ON r.id = b.room_id ORDER BY r.number, b.label"
    )
    assert [tuple(row) for row in rows] == [
        ("DETOX 1", "1"),
        *(("REHAB 1", label) for label in "1234"),
        ("REHAB 2", "1"),
    ]
    assert await database.fetch_value("SELECT count(*) FROM dispensary") == 1


async def test_a_second_import_adds_what_is_new_and_takes_nothing_away(
    database: Database, tmp_path: Path
) -> None:
    for number in (5, 7, 3):
        register = write(tmp_path / "beds.csv", HEADER + f"1,Clinic,REHAB,{number},YOLO\n")
        report = await import_facilities(database, register, FacilityColumns())
        assert report.written == (number != 3)

    assert await database.fetch_value("SELECT count(*) FROM bed") == 7


async def test_keys_and_numbers_that_no_column_takes_are_refused_by_line(
    database: Database, tmp_path: Path
) -> None:
    register = write(
        tmp_path / "beds.csv",
        HEADER
        + "1\x00,Clinic,REHAB,2,YOLO\n"
        + f"{'1' * 10_000},Clinic,REHAB,2,YOLO\n"
        + f"3,Clinic,REHAB,{'9' * 5000},YOLO\n"
        + "4,Cli\x00nic,REHAB,2,YOLO\n"
        + "5,Clinic,,2,YOLO\n"
        + "6,Clinic,REHAB,2,YOLO\n",
    )

    report = await import_facilities(database, register, FacilityColumns())

    assert [(item.line, item.code) for item in report.refused] == [
        (2, "NO_KEY"),
        (3, "NO_KEY"),
        (4, "BAD_NUMBER"),
        (5, "INVALID_INPUT"),
        (6, "INVALID_INPUT"),
    ]
    assert report.written == await database.fetch_value("SELECT count(*) FROM dispensary") == 1


async def test_types_that_begin_alike_get_rooms_of_their_own(database: Database, tmp_path: Path) -> None:
    kind = "CHEMICAL DEPENDENCY RECOVERY, INPATIENT"
    register = write(tmp_path / "beds.csv", HEADER + f'1,C,"{kind} A",2,YOLO\n1,C,"{kind} B",2,YOLO\n')

    report = await import_facilities(database, register, FacilityColumns())

    assert report.written == 2
    rooms = await database.fetch("SELECT array_agg(DISTINCT profile) FROM bed GROUP BY room_id ORDER BY 1")
    assert [row[0] for row in rooms] == [[f"{kind} A"], [f"{kind} B"]]


async def test_a_place_that_somebody_gave_to_a_bed_is_passed_over(database: Database, tmp_path: Path) -> None:
    register = write(tmp_path / "beds.csv", HEADER + "1,Clinic,REHAB,3,YOLO\n")
    await import_facilities(database, register, FacilityColumns())
    await database.fetch(
        "INSERT INTO bed (dispensary_id, room_id, label, profile, service_state, version) "
        "SELECT dispensary_id, id, '4', 'by hand', 'IN_SERVICE', 1 FROM room"
    )

    write(register, HEADER + "1,Clinic,REHAB,4,YOLO\n")
    report = await import_facilities(database, register, FacilityColumns())

    rows = await database.fetch(
        "SELECT r.number, b.label, b.profile FROM bed b JOIN room r ON r.id = b.room_id ORDER BY b.id"
    )
    assert (report.written, report.refused) == (1, [])
    assert [tuple(row) for row in rows[-2:]] == [("REHAB 1", "4", "by hand"), ("REHAB 2", "1", "REHAB")]


async def test_other_columns_delimiters_and_encodings_are_options(database: Database, tmp_path: Path) -> None:
    register = write(tmp_path / "b.csv", "ключ;имя;тип;коек;где\n1;Клиника;общий;2;Тверь\n", "cp1251")
    columns = FacilityColumns(
        key="ключ",
        name="имя",
        bed_type="тип",
        beds="коек",
        place="где",
        address="г. {place}",
        time_zone="Europe/Moscow",
        delimiter=";",
        encoding="cp1251",
    )

    report = await import_facilities(database, register, columns)

    row = (await database.fetch("SELECT name, address, time_zone FROM dispensary"))[0]
    assert (report.written, tuple(row)) == (1, ("Клиника", "г. Тверь", "Europe/Moscow"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "FACID"),
        ("FACID,FACNAME\n1,x\n", "BED_CAPACITY_TYPE"),
        (HEADER + '1,"unfinished,REHAB,2,YOLO\n', "beds.csv"),
    ],
)
async def test_a_file_that_is_something_else_is_named(
    database: Database, tmp_path: Path, content: str, says: str
) -> None:
    with pytest.raises(BadFile, match=says):
        await import_facilities(database, write(tmp_path / "beds.csv", content), FacilityColumns())

    assert await database.fetch_value("SELECT count(*) FROM dispensary") == 0


@pytest.mark.parametrize(
    "columns",
    [FacilityColumns(delimiter=";;"), FacilityColumns(encoding="utf-16"), FacilityColumns(encoding="?")],
)
async def test_a_delimiter_or_an_encoding_that_cannot_be_is_said_with_the_file(
    database: Database, tmp_path: Path, columns: FacilityColumns
) -> None:
    register = write(tmp_path / "beds.csv", HEADER + "1,Clinic,REHAB,2,YOLO\n")

    with pytest.raises(BadFile, match=r"beds\.csv"):
        await import_facilities(database, register, columns)


async def test_a_file_that_is_not_there_is_named(database: Database, tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="nowhere"):
        await import_facilities(database, tmp_path / "nowhere.csv", FacilityColumns())


@pytest.mark.usefixtures("facilities")
async def test_admissions_are_replayed_and_overlaps_refused_by_name(
    database: Database, tmp_path: Path
) -> None:
    folder = admissions(
        tmp_path / "stays",
        "1,1,1/1/10 8:00,1/9/10 8:00,HOME,0",
        "2,1,1/5/10 8:00,1/12/10 8:00,HOME,0",  # overlaps the first
        "3,1,1/9/10 8:00,1/12/10 8:00,AGAINST ADVICE,0",  # begins when the first ends
        "4,2,1/2/10 8:00,1/3/10 8:00,REHAB,0",
        "5,3,1/2/10 8:00,1/3/10 8:00,HOME,0",
        "6,9,1/2/10 8:00,1/3/10 8:00,HOME,0",
        "7,4,31/2/10 8:00,1/3/10 8:00,HOME,0",
        "8,4,1/5/10 8:00,1/4/10 8:00,HOME,0",
        "4,4,1/5/10 8:00,1/6/10 8:00,HOME,0",
        "9,4,1/2/10 8:00,1/3/10 8:00,HOME,0",  # both beds are taken
        "10,5,2/28/12 8:00,2/29/12 8:00,,1",
    )

    report = await import_stays(database, folder, StayColumns())

    assert (report.read, report.written) == (11, 4)
    assert {(item.line, item.code) for item in report.refused} == {
        (3, "PATIENT_ALREADY_ADMITTED"),
        (6, "BAD_SEX"),
        (7, "NO_PATIENT"),
        (8, "BAD_TIME"),
        (9, "CHECK_OUT_BEFORE_CHECK_IN"),
        (10, "BAD_KEY"),
        (11, "NO_BED"),
    }
    rows = await database.fetch("SELECT source_key, outcome, diagnosis_code FROM stay ORDER BY checked_in_at")
    assert [tuple(row) for row in rows] == [
        ("admissions:1", "DISCHARGED", "I10"),
        ("admissions:4", "TRANSFERRED", None),
        ("admissions:3", "LEFT_AGAINST_ADVICE", None),
        ("admissions:10", "DIED", None),
    ]
    assert await broken_invariants(database) == []


@pytest.mark.usefixtures("facilities")
async def test_an_admission_that_ends_when_it_begins_is_ended(database: Database, tmp_path: Path) -> None:
    folder = admissions(
        tmp_path / "stays",
        "1,1,1/1/10 8:00,1/1/10 8:00,HOME,0",
        "2,1,1/1/10 8:00,1/2/10 8:00,HOME,0",
        "3\x00,2,1/1/10 8:00,1/2/10 8:00,HOME,0",
    )

    report = await import_stays(database, folder, StayColumns())

    assert (report.written, [(item.line, item.code) for item in report.refused]) == (2, [(4, "BAD_KEY")])
    assert await database.fetch_value("SELECT count(*) FROM stay WHERE checked_out_at IS NULL") == 0
    assert await broken_invariants(database) == []


@pytest.mark.usefixtures("facilities")
async def test_a_row_that_was_mended_comes_in_later_into_a_bed_that_was_free_then(
    database: Database, tmp_path: Path
) -> None:
    other = "2,2,1/2/10 8:00,1/9/10 8:00,HOME,0"
    await import_stays(
        database,
        admissions(tmp_path / "stays", "1,1,31/1/10 8:00,1/3/10 8:00,HOME,0", other),
        StayColumns(),
    )

    report = await import_stays(
        database, admissions(tmp_path / "stays", "1,1,1/1/10 8:00,1/3/10 8:00,HOME,0", other), StayColumns()
    )

    assert (report.written, report.unchanged, report.refused) == (1, 1, [])
    assert await database.fetch_value("SELECT count(DISTINCT bed_id) FROM bed_assignment") == 2
    assert await broken_invariants(database) == []


@pytest.mark.usefixtures("facilities")
async def test_an_import_that_was_cut_off_goes_on_where_it_was(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = admissions(
        tmp_path / "stays",
        *(f"{number},1,{number}/1/10 8:00,{number}/9/10 8:00,HOME,0" for number in range(1, 10)),
    )
    monkeypatch.setattr("ekoyka.imports.stays.BATCH", 3)

    def pull_the_plug(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await import_stays(database, folder, StayColumns(), progress=pull_the_plug)
    half = await database.fetch_value("SELECT count(*) FROM stay")
    whole = await import_stays(database, folder, StayColumns())

    assert 0 < half < 9
    assert await database.fetch_value("SELECT count(*) FROM stay WHERE outcome = 'DISCHARGED'") == 9
    assert whole.written + whole.unchanged == 9
    assert await broken_invariants(database) == []
