"""Which providers have a key: names of variables, never their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: Any of these variables, not empty, makes a provider available to workers; a test compares them with theirs.
KEY_VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "openai": ("OPENAI_API_KEY",),
}
#: Where the providers' SDKs send requests instead, if set.
BASE_URL_VARIABLES: Final = ("ANTHROPIC_BASE_URL", "OPENAI_BASE_URL")


def providers(environ: Mapping[str, str]) -> dict[str, str | None]:
    """Each provider and the variable that holds its key, None where there is none."""
    return {
        name: next((variable for variable in variables if environ.get(variable)), None)
        for name, variables in KEY_VARIABLES.items()
    }
