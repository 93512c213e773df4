"""Refusals: what an operation says when it does not do what it was asked.

A refusal is data, not a failure: it has a code that never changes, a message for a person in Russian and
English, and the fields that the client needs to act on. Domains declare theirs above the operation that
raises them; the API turns each into the GraphQL type of the same name.
"""

from typing import Any, ClassVar


class Refusal(Exception):
    """An operation's named answer «no».

    ``fields`` are the columns of the refusal's GraphQL type: ids as integers, instants as datetimes. They
    are shown to the actor, so they hold only what the actor may know.
    """

    code: ClassVar[str]
    ru: ClassVar[str]
    en: ClassVar[str]

    def __init__(self, path: tuple[str, ...] = (), **fields: Any) -> None:
        super().__init__(self.code)
        self.path = path
        self.fields = fields

    def message(self, language: str) -> str:
        """The sentence for a person, with the fields filled in."""
        return (self.ru if language == "ru" else self.en).format(**self.fields)


class NotFound(Refusal):
    """No such row, or none that the actor may know of: the two are the same answer."""

    code = "NOT_FOUND"
    ru = "Такой записи нет или она вам недоступна."
    en = "There is no such record, or it is not yours to see."


class Forbidden(Refusal):
    """The actor's role may not do this."""

    code = "FORBIDDEN"
    ru = "Ваша роль не позволяет это сделать."
    en = "Your role does not allow this."


class Conflict(Refusal):
    """The state of the rows does not allow it; another state would."""


class Invalid(Refusal):
    """A value that no state would make right; ``path`` names it, ``reason_ru``/``reason_en`` say why."""

    code = "INVALID_INPUT"
    ru = "{reason_ru}"
    en = "{reason_en}"

    def __init__(self, path: tuple[str, ...], *, ru: str, en: str) -> None:
        super().__init__(path, reason_ru=ru, reason_en=en)


class VersionConflict(Conflict):
    """Somebody changed the row since the actor read it; ``current_version`` is what it is now."""

    code = "VERSION_CONFLICT"
    ru = "Запись изменена после того, как вы её прочитали: посмотрите текущую и повторите."
    en = "The record has changed since you read it: look at the current one and try again."


class IdempotencyKeyReused(Conflict):
    """The idempotency key was used before, with another input."""

    code = "IDEMPOTENCY_KEY_REUSED"
    ru = "Этот ключ идемпотентности уже использован с другими данными: возьмите новый ключ."
    en = "This idempotency key was already used with another input: use a new key."
