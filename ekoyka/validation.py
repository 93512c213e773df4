"""Values that people type: checked by the tables' own models, refused by the field's name."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ekoyka.errors import Invalid

_Model = TypeVar("_Model", bound=BaseModel)

_RUSSIAN = {
    "string_too_short": "Поле не может быть пустым.",
    "string_too_long": "Слишком длинно: не больше {max_length} знаков.",
    "string_pattern_mismatch": "Недопустимые знаки или форма.",
    "greater_than_equal": "Должно быть не меньше {ge}.",
    "less_than_equal": "Должно быть не больше {le}.",
    "missing": "Поле обязательно.",
    "int_type": "Должно быть целым числом.",
    "float_type": "Должно быть числом.",
}
_ENGLISH = {
    "string_too_short": "The field must not be empty.",
    "string_too_long": "Too long: at most {max_length} characters.",
    "string_pattern_mismatch": "Characters or a form that are not allowed here.",
    "greater_than_equal": "Must be at least {ge}.",
    "less_than_equal": "Must be at most {le}.",
    "missing": "The field is required.",
}


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def validated(model: type[_Model], values: dict[str, Any]) -> _Model:
    """The values as the model, trimmed and normalised. Raises `Invalid`, naming the first field refused."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # Never the value itself: an error message may be logged by whoever receives it.
        first = error.errors(include_url=False, include_input=False)[0]
        kind, context = first["type"], first.get("ctx", {})
        message = str(context.get("error", first["msg"]))
        raise Invalid(
            tuple(_camel(str(part)) for part in first["loc"]),
            ru=_RUSSIAN.get(kind, "Недопустимое значение: {reason}.").format(
                **{"reason": message, **context}
            ),
            en=_ENGLISH.get(kind, "{reason}.").format(**{"reason": message, **context}),
        ) from None


def changed(row: BaseModel, model: type[_Model], changes: dict[str, Any]) -> _Model:
    """The row's details with some of them changed, checked as a whole. Raises `Invalid`."""
    current = {name: getattr(row, name) for name in model.model_fields}
    return validated(model, {**current, **changes})
