"""What all trainings need that are stopped on purpose."""

import pytest

from vitreous.tasks import loop


@pytest.fixture
def save_always(monkeypatch):
    """Save the state at every epoch's end, however long that takes."""
    monkeypatch.setattr(loop, "SAVE_SHARE", 0)
