"""What changes over training, as the published recipe has it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmim.config import Optim
from lmim.schedules import cosine_decay, learning_rate


@given(st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_cosine_decay_stays_between_its_ends(progress: float, start: float, end: float) -> None:
    """A momentum above one would make the target run away."""
    low, high = min(start, end), max(start, end)
    assert low - 1e-12 <= cosine_decay(progress, start, end) <= high + 1e-12


def test_learning_rate_has_the_published_shape() -> None:
    """Peak = base_lr x effective batch / 256; both ends at min_lr_ratio of it."""
    optim = Optim(epochs=800, warmup_epochs=40, base_lr=1.5e-4, batch_size=256, accumulate=16)
    peak = 1.5e-4 * 16
    assert learning_rate(optim, 40) == pytest.approx(peak)
    assert learning_rate(optim, 0) == pytest.approx(peak / 4)
    assert learning_rate(optim, 800) == pytest.approx(peak / 4)
