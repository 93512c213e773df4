"""`python -m ekoyka`: the command line."""

from ekoyka.cli import app

app(prog_name="ekoyka")
