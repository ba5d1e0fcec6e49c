"""The golden vectors of the room."""

import pytest


@pytest.fixture(scope="session")
def vectors(golden):
    return golden("lexinvariant")
