"""docs/configuration.md and the code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from hub.settings import HubSettings
from workers.settings import WorkerSettings

PAGE = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
ROWS = {
    name: (default, unit, meaning)
    for name, default, unit, meaning in re.findall(
        r"^\| `(HEADRACE_\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE
    )
}
FIELDS = {
    f"HEADRACE_{name.upper()}": (name, field)
    for settings in (HubSettings, WorkerSettings)
    for name, field in settings.model_fields.items()
}


@pytest.mark.parametrize("variable", FIELDS)
def test_every_setting_is_documented_with_its_default_unit_and_meaning(variable: str) -> None:
    name, field = FIELDS[variable]
    default, unit, meaning = ROWS[variable]
    assert default == shown(field)
    assert meaning == field.description
    if name.endswith("_s"):
        assert unit == "seconds"
    if name.endswith("_bytes"):
        assert unit == "bytes"


def test_nothing_is_documented_that_does_not_exist() -> None:
    assert set(ROWS) == set(FIELDS)


def shown(field: FieldInfo) -> str:
    value = field.default
    if value in (None, ""):
        return "unset"
    return f"`{int(value) if isinstance(value, float) and value == int(value) else value}`"
