import pytest
from tiny_steps import release_steps


@pytest.fixture(scope="module", autouse=True)
def _release_steps():
    yield
    release_steps()
