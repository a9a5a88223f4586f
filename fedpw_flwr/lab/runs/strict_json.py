"""Dataclasses as strict JSON and back: the base of everything that a run folder keeps.

A figure that is not finite is stored as ``null``, for JSON has no word for it, and read as NaN. A
field that is None is left out, and a key that is missing is its field's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Self

from cattrs import Converter
from cattrs.gen import make_dict_structure_fn


class StrictJson:
    """A dataclass with a JSON form; a class whose form is not that of its fields reshapes it."""

    def to_json(self) -> dict[str, Any]:
        """Return the strict JSON form."""
        return {name: strict(value) for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Rebuild from the JSON form; ValueError, KeyError, TypeError or AttributeError if bad."""
        kind: Any = cls
        built: Self = _reader(kind)(content, cls)
        return built


def strict(value: Any) -> Any:
    """Return what strict JSON can hold of a figure, a record, or a list or dictionary of them."""
    if isinstance(value, StrictJson):
        return value.to_json()
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_converter = Converter(detailed_validation=False)
for _figure in (float, float | None):
    _converter.register_structure_hook(
        _figure, lambda value, _: math.nan if value is None else float(value)
    )
_converter.register_structure_hook_func(
    lambda kind: isinstance(kind, type) and issubclass(kind, StrictJson),
    lambda content, kind: kind.from_json(content),
)


@cache
def _reader(cls: type[Any]) -> Callable[[Mapping[str, Any], Any], Any]:
    return make_dict_structure_fn(cls, _converter)
