"""The curves that the cost model learns, and the profile that they start from."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llmtaskpool_worker.scheduling.cost import CostModel, ModelCost
from llmtaskpool_worker.scheduling.curves import Curve, RobustMean
from llmtaskpool_worker.scheduling.profile import CalibrationProfile, read, write


def test_an_unmeasured_curve_is_its_prior() -> None:
    curve = Curve(0.1, 0.01)
    for size in (1, 7, 33, 500):
        assert curve.seconds(size) == pytest.approx(0.1 + 0.01 * size)


def test_a_measured_curve_goes_through_its_points_and_keeps_the_priors_shape_beyond() -> None:
    curve = Curve(0.1, 0.01)
    curve.load({8: 0.36})  # twice the prior
    assert curve.seconds(8) == pytest.approx(0.36)
    assert curve.seconds(64) == pytest.approx(2 * 0.74)


@given(st.lists(st.tuples(st.integers(1, 9000), st.floats(1e-5, 100)), max_size=60))
def test_a_larger_size_never_takes_less_time(seen: list[tuple[int, float]]) -> None:
    curve = Curve(0.02, 0.001)
    for size, seconds in seen:
        curve.observe(size, seconds)
    told = [curve.seconds(size) for size in range(1, 20_000, 37)]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(told))
    assert told[0] > 0


@pytest.mark.parametrize(
    ("size", "seconds"), [(0, 1.0), (4, 0.0), (4, -1.0), (4, float("nan")), (4, float("inf"))]
)
def test_what_cannot_be_a_measurement_changes_nothing(size: int, seconds: float) -> None:
    curve = Curve(0.02, 0.001)
    curve.observe(size, seconds)
    assert curve.measured() == {}


def test_one_outlier_hardly_moves_a_mean_and_a_lasting_change_does() -> None:
    mean = RobustMean()
    for _ in range(50):
        mean.observe(1.0)
    mean.observe(1000.0)
    assert mean.value < 1.2
    for _ in range(100):
        mean.observe(3.0)
    assert mean.value == pytest.approx(3.0, rel=0.05)


def test_an_outlier_among_the_first_samples_is_outvoted() -> None:
    mean = RobustMean()
    for sample in (500.0, 1.0, 1.1, 0.9):
        mean.observe(sample)
    assert mean.value < 1.2


def model(step: dict[int, float]) -> ModelCost:
    curves = ModelCost(max_batch=64)
    curves.step.load(step)
    return curves


def test_the_knee_is_the_largest_batch_within_its_share_of_the_objective() -> None:
    curves = model({size: 0.009 + 0.001 * size for size in (1, 4, 16, 24, 32, 48, 64)})
    assert curves.knee(0.1) == pytest.approx(31, abs=1)
    assert curves.knee(0.001) == 1
    assert curves.knee(10.0) == 64


def test_the_efficient_batch_is_small_where_steps_grow_with_the_batch() -> None:
    flat = model({1: 0.02, 64: 0.021})
    steep = model({size: 0.02 * size for size in (1, 2, 4, 8, 16, 32, 64)})
    assert flat.efficient_batch() >= 48
    assert steep.efficient_batch() == 1
    assert steep.seconds_per_token() == pytest.approx(0.02, rel=0.1)


def test_a_mixed_step_teaches_prefill_without_its_decoding_part() -> None:
    curves = model({8: 0.05})
    for _ in range(5):
        curves.observe(8, 128, 0.25)
    assert curves.prefill.seconds(128) == pytest.approx(0.2, rel=0.05)


def profile() -> CalibrationProfile:
    return CalibrationProfile(
        model="m",
        device="cpu",
        dtype="float32",
        threads=2,
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        step_seconds={1: 0.1, 32: 0.2},
        prefill_seconds={16: 0.15, 512: 1.0},
        prefill_chunk_tokens=128,
    )


def test_a_profile_is_read_as_it_was_written_and_the_cost_model_starts_from_it(
    tmp_path: Path,
) -> None:
    write(profile(), tmp_path / "m.json")
    cost = CostModel()
    cost.load_profile(read(tmp_path / "m.json"))
    step, prefill = cost.measured("m")
    assert step == pytest.approx({1: 0.1, 32: 0.2})
    # A prompt costs what it adds to its steps: 512 tokens are four of them.
    assert prefill == pytest.approx({16: 0.05, 512: 0.6})
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Invalid JSON"),
        ('{"version": 2}', "version"),
        ('{"model": ""}', "model"),
    ],
)
def test_a_bad_profile_is_refused_by_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match=rf"m\.json: .*{says}"):
        read(tmp_path / "m.json")


def test_a_missing_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: No such file"):
        read(tmp_path / "none.json")
