"""Settings that cannot be used, found before a process trips over them. Values are never shown: they may be secret."""

from __future__ import annotations

from hub.cli.failure import Failure


def wrong_settings() -> list[str]:
    """What is wrong with the `HEADRACE_…` variables of hubs, one short sentence each."""
    from pydantic import ValidationError

    from hub.broker.settings import wrong_settings as describe
    from hub.settings import HubSettings

    try:
        HubSettings()
    except ValidationError as error:
        return describe(error)
    return []


def check_settings() -> None:
    """Raises Failure if a setting cannot be used."""
    wrong = wrong_settings()
    if wrong:
        raise Failure(f"{'; '.join(wrong)} (mend or unset {'it' if len(wrong) == 1 else 'them'})")
