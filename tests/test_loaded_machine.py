"""Tests by Hypothesis pass on a machine that other programs load."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=3)
@given(drawn=st.builds(time.sleep, st.just(0.5)))
def test_slow_examples_and_slow_calls_are_no_failure(drawn: None) -> None:
    time.sleep(0.3)


def test_no_test_by_hypothesis_depends_on_speed(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        test = getattr(item, "obj", None)
        options: settings | None = getattr(test, "_hypothesis_internal_use_settings", None)
        if options is not None:
            assert options.deadline is None, item.nodeid
            assert HealthCheck.too_slow in options.suppress_health_check, item.nodeid
