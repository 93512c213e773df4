"""The documents of a client's build, read from files and checked against the schema before any is trusted.

Understands GraphQL files, whose whole text is one document, and the JSON manifests that GraphQL Code
Generator and Relay write: an object of ids and texts. An id is always made from the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson
from graphql import (
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    OperationDefinitionNode,
    parse,
    validate,
)

from ekoyka.documents import identify

SUFFIXES = (".graphql", ".gql", ".json")


class BadDocuments(Exception):
    """Some documents are not good, so none is registered; each line says where and why."""


@dataclass(frozen=True)
class Found:
    """A good document: its id, its text, the names of its operations."""

    id: str
    text: str
    operations: str


def read(schema: GraphQLSchema, paths: Iterable[Path]) -> list[Found]:
    """The documents in the files and folders, each once, in order. Raises `BadDocuments`."""
    found: dict[str, Found] = {}
    wrong: list[str] = []
    for path in _files(paths, wrong):
        try:
            texts = _texts(path)
        except (OSError, ValueError) as error:
            wrong.append(f"{path}: {error}")
            continue
        for place, text in texts:
            try:
                node = parse(text)
                errors: list[GraphQLError] = validate(schema, node)
                names = [
                    item.name.value if item.name else "—"
                    for item in node.definitions
                    if isinstance(item, OperationDefinitionNode)
                ]
                if not errors and not names:
                    wrong.append(f"{place}: no operation")
            except GraphQLSyntaxError as error:
                errors, names = [error], []
            for problem in errors:
                line, column = problem.locations[0] if problem.locations else (1, 1)
                wrong.append(f"{place}:{line}:{column}: {problem.message}")
            found.setdefault(identify(text), Found(identify(text), text, ", ".join(names)))
    if wrong:
        raise BadDocuments("\n".join(wrong))
    return list(found.values())


def _files(paths: Iterable[Path], wrong: list[str]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(item for item in path.rglob("*") if item.suffix in SUFFIXES) if path.is_dir() else []
        if path.is_file() and path.suffix in SUFFIXES:
            files.append(path)
        elif inside:
            files += inside
        else:
            wrong.append(f"{path}: no file or folder of {', '.join(SUFFIXES)}")
    return files


def _texts(path: Path) -> list[tuple[str, str]]:
    """The documents in a file, each with the name of its place. Raises `OSError`, `ValueError`."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [(str(path), content)]
    manifest = orjson.loads(content)
    if not isinstance(manifest, dict) or not all(isinstance(text, str) for text in manifest.values()):
        raise ValueError("a manifest is an object of ids and texts")
    return [(f"{path} {key}", text) for key, text in manifest.items()]
