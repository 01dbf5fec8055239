"""The full method less each part."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.plan.conftest import Folder


def test_leave_one_out_is_the_full_method_less_each_part(folder: "Folder") -> None:
    """Else the table could not say what a component is worth."""
    text = "design: leave_one_out\naxes: {mask.similarity: 0, decoder.cues: false}\n"
    text += "claims: [full > without cues]\n"
    sweep = folder.load(text)
    assert [arm.name for arm in sweep.arms] == ["full", "without similarity", "without cues"]
    assert [t.config.section("mask").similarity for t in sweep.trials] == [0.1, 0.0, 0.1]
    assert [t.config.section("decoder").cues for t in sweep.trials] == [True, True, False]
    message = folder.error("design: leave_one_out\naxes:\n  mask.similarity: 0.1\n")
    assert message.startswith("sweep.yaml:5: mask.similarity: expected the value without it")


def test_it_says_whose_part_is_left_out(folder: "Folder") -> None:
    """Else `without depth` could be the encoder's, the projector's or the decoder's."""
    sweep = folder.load("design: leave_one_out\naxes: {projector.depth: 0, loss: mse, decoder.cues: false}\n")
    names = ["full", "without projector.depth", "without loss", "without cues"]
    assert [arm.name for arm in sweep.arms] == names
