"""One factor at a time."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


def test_one_factor_is_the_base_and_each_change_alone(folder: "Folder") -> None:
    """Else an arm would differ from the base in more than it says."""
    sweep = folder.load("design: one_factor\naxes: {loss: [mse, patch_discrimination], mask.gap: [1, 2]}\n")
    assert [arm.name for arm in sweep.arms] == [
        "base",
        "loss=mse",
        "gap=1",
        "gap=2",
    ]  # patch_discrimination is the base itself
    assert sweep.trials[2].axes == {"loss": "patch_discrimination", "mask.gap": 1}
