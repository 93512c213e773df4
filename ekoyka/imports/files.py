"""Files of rows, and what became of the rows."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Progress = Callable[[int, int], None]


class BadFile(Exception):
    """A file that cannot be read as what it should be; the text says what is missing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A row that was not written, and why."""

    file: str
    line: int
    code: str
    reason: str


@dataclass(slots=True)
class Report:
    """What became of the rows."""

    read: int = 0
    written: int = 0
    unchanged: int = 0
    refused: list[Refused] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"прочитано · read {self.read}, записано · written {self.written}, "
            f"без изменений · unchanged {self.unchanged}, отклонено · refused {len(self.refused)}"
        ]
        lines += [f"  {item.file}:{item.line}  {item.code}  {item.reason}" for item in self.refused]
        return "\n".join(lines)


def rows_of(
    file: Path, columns: tuple[str, ...], delimiter: str, encoding: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with the numbers of the lines they end on. Raises `BadFile`."""
    try:
        with file.open(encoding=encoding, newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise BadFile(
                    f"{file.name}: нет столбцов · no columns {', '.join(missing)}; "
                    f"есть · there are {', '.join(reader.fieldnames or ()) or '—'}"
                )
            for row in reader:
                yield reader.line_num, {key: (row[key] or "").strip() for key in columns}
    except FileNotFoundError:
        raise BadFile(f"{file}: нет такого файла · no such file") from None
    except (OSError, ValueError, TypeError, csv.Error, LookupError) as error:
        # ValueError and TypeError are what the codecs and the reader say of bytes and delimiters they cannot use.
        raise BadFile(f"{file.name}: {error}") from error


def is_key(value: str) -> bool:
    """Whether a row can be found again by this key: there, printable, and no longer than an index takes."""
    return 0 < len(value) <= 100 and value.isprintable()
