"""The level that tests are compiled at holds for the fixtures of their module too."""

from __future__ import annotations

import jax
import pytest

pytestmark = pytest.mark.unoptimized


@pytest.fixture(scope="module")
def level() -> bool:
    return jax.config.read("jax_disable_most_optimizations")


def test_fixtures_of_a_module_are_compiled_at_the_level_of_its_tests(level):
    assert level
