import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depth_control import fidelity, pooled_fidelity
from depth_model.errors import InputError

RNG = np.random.default_rng(0)


def scene(seed: int, height: int = 37, width: int = 50) -> np.ndarray:
    """A floor that comes nearer below, with boxes on it."""
    rng = np.random.default_rng(seed)
    depth = np.repeat(np.linspace(0, 0.6, height)[:, None], width, axis=1)
    for _ in range(6):
        y, x = rng.integers(0, height - 8), rng.integers(0, width - 8)
        depth[y : y + 8, x : x + 8] += rng.random() * 0.4
    return depth.astype(np.float32)


@given(st.floats(0.1, 20.0), st.floats(-5.0, 5.0))
def test_identical_up_to_scale_and_shift_is_perfect(scale, shift):
    condition = scene(0)
    numbers = fidelity(condition, condition * scale + shift)
    assert numbers["structure"] == pytest.approx(1.0, abs=1e-4)
    assert numbers["detail"] == pytest.approx(1.0, abs=1e-4)
    assert numbers["rmse"] == pytest.approx(0.0, abs=0.3)


def test_structure_is_the_formula():
    condition, result = scene(1).astype(float), scene(2).astype(float)
    fit = np.polyfit(result.ravel(), condition.ravel(), 1)
    error = ((condition - np.polyval(fit, result)) ** 2).sum()
    total = ((condition - condition.mean(axis=1, keepdims=True)) ** 2).sum()
    numbers = fidelity(condition, result)
    assert fit[0] > 0
    assert numbers["structure"] == pytest.approx(1 - error / total, rel=1e-4)
    assert numbers["rmse"] == pytest.approx(255 * np.sqrt(error / condition.size), rel=1e-4)


def test_detail_is_measured_without_the_cell_averages():
    condition, result = scene(1, 32, 48).astype(float), scene(2, 32, 48).astype(float)

    def fine(values):
        means = values.reshape(8, 4, 8, 6).mean(axis=(1, 3))
        return values - np.kron(means, np.ones((4, 6)))

    c, r = fine(condition), fine(result)
    scale = max(0.0, (c * r).sum() / (r * r).sum())
    expected = 1 - ((c - scale * r) ** 2).sum() / (c * c).sum()
    assert fidelity(condition, result)["detail"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_row_means_earn_nothing_and_inversion_less():
    condition = scene(3)
    rows = np.repeat(condition.mean(axis=1, keepdims=True), condition.shape[1], axis=1)
    assert fidelity(condition, rows)["structure"] == pytest.approx(0.0, abs=1e-4)
    inverted = fidelity(condition, -condition)
    assert inverted["structure"] < 0 and inverted["detail"] == pytest.approx(0.0, abs=1e-6)
    assert inverted["spearman"] == pytest.approx(-1.0)


def test_spearman_averages_ties():
    # By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    numbers = fidelity(np.array([[1.0, 2.0, 2.0, 3.0]]), np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert numbers["spearman"] == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))


def test_result_is_resized_to_the_condition():
    condition = scene(4, 64, 96)
    assert fidelity(condition, np.kron(condition, np.ones((3, 3))))["structure"] > 0.95


@pytest.mark.parametrize(
    "condition", [np.full((9, 9), 0.1), np.repeat(np.linspace(0, 1, 9)[:, None], 9, axis=1), np.zeros((1, 1))]
)
def test_conditions_without_structure_give_finite_numbers(condition):
    for result in (condition, RNG.random(condition.shape), np.full(condition.shape, 0.3)):
        numbers = fidelity(condition, result)
        assert np.isfinite(list(numbers.values())).all()
        assert numbers["structure"] == 0.0


def test_pooling_divides_once():
    pairs = [(scene(5), scene(5)), (scene(6) * 0.1, RNG.random((37, 50)))]
    pooled = pooled_fidelity(pairs)
    singles = [fidelity(*pair)["structure"] for pair in pairs]
    totals = [((c - c.mean(axis=1, keepdims=True)) ** 2).sum() for c, _ in pairs]
    assert pooled["structure"] == pytest.approx(np.average(singles, weights=totals), rel=1e-4)
    assert pooled_fidelity(iter(pairs[:1])) == fidelity(*pairs[0])


def test_what_cannot_be_compared_is_refused():
    good = scene(7)
    for condition, result in ((good, good * np.nan), (good[0], good), (good, np.zeros((0, 3)))):
        with pytest.raises(InputError):
            fidelity(condition, result)
    with pytest.raises(InputError):
        pooled_fidelity([])
