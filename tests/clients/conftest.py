"""Clients in these tests come back at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance draws zero: the delay is what the hub asked for, and nothing else."""
    monkeypatch.setattr("headrace.client.random", SimpleNamespace(random=lambda: 0.0))
