"""The certificate's page, and the worker process that makes it.

The content is the free form of the Ministry of Health's order 972н of 14.09.2020 (the procedure for issuing
medical certificates): organisation and address, number, date of issue, patient, period, the doctor's name,
places for the signature and for the seals of the doctor and the organisation.

Only the worker imports this module. It refuses to read anything but the fonts, whatever the text says, and
to make a page that does not show every character it was given.
"""

import io
import logging
import os
import pickle
import sys
import unicodedata
import warnings
from datetime import date
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import segno
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pypdf import PdfReader
from xhtml2pdf.config.resources import ResourceAccessPolicy  # type: ignore[import-untyped]
from xhtml2pdf.document import pisaDocument  # type: ignore[import-untyped]

from ekoyka.certificates.render import ANSWER, CertificateFacts, RenderFailed, Unprintable

# matplotlib is here for its fonts; importing it would take a second and 50 MB.
FONTS = Path(str(distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf")))

POLICY = ResourceAccessPolicy.server(FONTS, allow_remote=False)

# A certificate is one page: text that does not fit is set smaller.
SIZES_PT = (11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0)

MONTHS = {
    "ru": (
        *("января", "февраля", "марта", "апреля", "мая", "июня"),
        *("июля", "августа", "сентября", "октября", "ноября", "декабря"),
    ),
    "en": (
        *("January", "February", "March", "April", "May", "June"),
        *("July", "August", "September", "October", "November", "December"),
    ),
}


def _clean(value: Any) -> Any:
    """Text as it is printed: accents joined to their letters, and no invisible or reordering characters."""
    if type(value) is not str:  # Markup is a macro's output, cleaned inside it
        return value
    return "".join(c for c in unicodedata.normalize("NFC", value) if unicodedata.category(c) != "Cf")


def _day(day: date, language: str) -> str:
    return f"{day.day} {MONTHS[language][day.month - 1]} {day.year}" + (" г." if language == "ru" else "")


def _bed_days(count: int, language: str) -> str:
    if language == "en":
        return f"{count} bed-day" if count == 1 else f"{count} bed-days"
    if count % 10 == 1 and count % 100 != 11:
        return f"{count} койко-день"
    if count % 10 in (2, 3, 4) and count % 100 not in (12, 13, 14):
        return f"{count} койко-дня"
    return f"{count} койко-дней"


# Autoescape is said outright: choosing it by the file's ending would not know .j2.
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_clean,
)
_TEMPLATES.filters |= {"day": _day, "bed_days": _bed_days}


def render(facts: CertificateFacts) -> bytes:
    """The certificate as a PDF of one page, made in this process.

    Raises Unprintable, and RenderFailed if it does not fit on the page in the smallest type.
    """
    template = _TEMPLATES.get_template("certificate.html.j2")
    qr = segno.make_qr(facts.verification_url, error="m").png_data_uri(scale=8, border=0)
    for size_pt in SIZES_PT:
        pages, pdf = _typeset(template.render(facts=facts, qr=qr, size_pt=size_pt))
        if pages == 1:
            return pdf
    raise RenderFailed("more than one page")


def _typeset(html: str) -> tuple[int, bytes]:
    out = io.BytesIO()
    # The path names a document beside the fonts, so that their file names are enough to find them.
    result = pisaDocument(html, out, path=str(FONTS / "certificate.html"), resource_policy=POLICY)
    if result.err:
        raise RenderFailed("the page has errors")
    # A missing glyph is only a warning to xhtml2pdf, and the template gives cause for no other.
    if result.warn:
        raise Unprintable("a character has no glyph")
    return len(PdfReader(out).pages), out.getvalue()


def main() -> None:
    """Answers each pickled CertificateFacts on standard input until that ends with its parent.

    The first answer is empty and says that the imports are done. A failure's answer is the name of its
    exception: its message may quote the certificate.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    # Both quote the text that they are about.
    logging.disable()
    warnings.simplefilter("ignore")
    made, body = True, b""
    while True:
        try:
            answers.write(ANSWER.pack(made, len(body)) + body)
            answers.flush()
            facts = pickle.load(sys.stdin.buffer)  # noqa: S301 -- our own parent's  # nosec B301
        except (EOFError, BrokenPipeError):
            os._exit(0)  # nobody is left whom anything could be told
        try:
            made, body = True, render(facts)
        except Exception as error:
            made, body = False, type(error).__name__.encode()


if __name__ == "__main__":
    main()
