# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Random legacy databases through the transformation, judged by the oracle, on every major and spelling.

The databases are the same in every run. To see others, or more:

* ``--hypothesis-seed=N`` draws another set.
* ``UNIFIED_USER_PROPERTY_BATCHES=N`` (default 1) runs N times as many.

A failure prints the smallest database that hypothesis could find.
"""

from __future__ import annotations

import contextlib
import os
import zlib

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import engine

from tests.integration.subject import Subject, blockers_of, differing_counts
from tests.oracle.database import compare, compare_legacy
from tests.oracle.model import project
from tests.oracle.schema import NAMINGS, SHAPES
from tests.oracle.strategies import legacy_databases

BATCHES = int(os.environ.get("UNIFIED_USER_PROPERTY_BATCHES", "1"))

# Hypothesis stops drawing fresh examples after ten and mutates the ones it has; many runs of ten see more.
EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def _short_shrinking(monkeypatch):
    """A minute is enough to make a failure readable; hypothesis takes five."""
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", 60)


@pytest.fixture(params=NAMINGS)
def naming(request):
    return request.param


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def shape(request):
    return request.param


@pytest.fixture(params=range(BATCHES))
def batch_seed(request, shape, naming):
    base = request.config.getoption("--hypothesis-seed", None) or "0"
    return zlib.crc32(f"{base} {request.param} {shape.name} {naming}".encode())


@pytest.fixture
def subject(cluster, shape, naming):
    with contextlib.closing(Subject(cluster, f"properties_{os.getpid()}", shape, naming)) as made:
        yield made


def test_the_transformation_is_what_the_oracle_says(subject, shape, batch_seed):
    @seed(batch_seed)
    @EXAMPLES
    @given(legacy_databases("legal", shape))
    def check(case):
        subject.write(case.legacy)
        warned = subject.warnings(case.policies)
        result = subject.transform(case.policies)
        expected = project(case.legacy, case.policies, subject.started_at())
        assert warned == subject.expected_warnings(expected)
        assert compare(expected, subject.unified(), shape) == []
        assert differing_counts(result, expected) == []
        assert compare_legacy(case.legacy, subject.legacy()) == []
        assert result["changed"] and result["finished"]
        assert subject.failed_checks(case.policies) == {}
        again = subject.transform(case.policies)
        assert not again["changed"] and again["finished"]

    check()
    assert subject.catalogue() == subject.made


def test_what_the_oracle_blocks_is_refused_and_nothing_is_changed(subject, shape, batch_seed):
    @seed(batch_seed)
    @EXAMPLES
    @given(legacy_databases("any", shape))
    def check(case):
        subject.write(case.legacy)
        expected = project(case.legacy, case.policies)
        blocked = blockers_of(expected)
        assert subject.refusal(subject.plan, case.policies) == blocked
        if blocked:
            assert subject.refusal(subject.transform, case.policies) == blocked
        assert subject.is_untouched()
        assert compare_legacy(case.legacy, subject.legacy()) == []

    check()
