"""The config is the contract between the sweep file, the trial's folder and the report."""

import json
import pickle
from typing import Any

import pytest
from pydantic import ValidationError

from lmim.config import CombinationError, Config, flatten, merge

LOSS = """
def huber(prediction, target, *, delta: float = 1.0):
    return (prediction - target).abs().clamp(max=delta).mean()
"""

GOLDEN: dict[str, dict[str, Any]] = {
    "44136fa355b3": {},
    "a9c8f35b149c": {"seed": 3, "loss": {"kind": "mse"}, "data": {"version": "d"}},
    "6188837764cb": {"collapse": {"kind": "joint", "target_sees": "all"}, "optim": {"epochs": 3}},
    "b9c399b90f4f": {"objective": "raw_pixels", "optim": {"epochs": 0}},
    "d51168435e5b": {"decoder": {"kind": "self_attention", "cues": False}, "projector": {"depth": 0}},
}
"""Frozen: whoever changes a neutral value, or what is read, makes every finished trial another one."""


@pytest.mark.parametrize(("identity", "tree"), GOLDEN.items())
def test_identities_stand_still(identity: str, tree: dict[str, Any]) -> None:
    """Else every trial of every user would be trained again, for a change that concerns none of them."""
    assert Config.read(tree).identity == identity


def test_a_new_key_with_a_neutral_value_changes_no_identity() -> None:
    """Else each new option of lmim would cost its users all that they have trained."""
    before = Config.read({"sources": {"mine.py": LOSS}, "loss": {"kind": "mine.py:huber"}})
    more = LOSS.replace("delta: float = 1.0", "delta: float = 1.0, power: float = 2.0")
    after = Config.read({"sources": {"mine.py": more}, "loss": {"kind": "mine.py:huber"}})
    assert "loss.power" not in after.used()
    assert {k: v for k, v in before.used().items() if "source" not in k} == {
        k: v for k, v in after.used().items() if "source" not in k
    }


def test_identity_survives_a_round_trip_through_json_and_another_process() -> None:
    """Else a finished trial read back from disk would count as another one and run again."""
    for tree in ({"seed": 3, "mask": {"gap": 1}}, {"objective": "raw_pixels"}, {"loss": {"kind": "mse"}}):
        config = Config.read(tree)
        assert Config.read(json.loads(config.model_dump_json())).identity == config.identity
        assert pickle.loads(pickle.dumps(config)) == config


def test_identity_is_what_training_uses_and_nothing_else() -> None:
    """Else more threads or a moved dataset would train everything again, or a change pass for done."""
    plain = Config.read({})
    for same in (
        {"run": {"threads": 7, "device": "cpu"}},
        {"data": {"path": "/elsewhere"}},
        {"loss": {"tau": 0.2}},
        {"mask": {"similarity": 0.1}},
    ):
        assert Config.read(same).identity == plain.identity, same
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"mask": {"similarity": 0.2}},
        {"optim": {"epochs": 1}},
        {"data": {"version": "another dataset under the same settings"}},
        {"loss": {"tau": 0.3}},
        {"loss": {"kind": "mse"}},
    ]
    others = {Config.read(change).identity for change in changes}
    assert len(others) == len(changes)
    assert plain.identity not in others


def test_what_makes_steps_is_no_part_of_a_trial_that_makes_none() -> None:
    """Else every learning rate would have a random encoder of its own."""
    one, other = (
        Config.read({"optim": {"epochs": 0, "base_lr": rate}, "objective": "raw_pixels"})
        for rate in (1.0, 2.0)
    )
    assert one.identity == other.identity


def test_an_arm_is_its_trials_whatever_the_seed() -> None:
    """Else one replay could not speak for the seeds of its arm."""
    one, other, third = (Config.read(t) for t in ({"seed": 1}, {"seed": 2}, {"seed": 1, "mask": {"gap": 1}}))
    assert one.arm == other.arm != third.arm


def test_a_whole_number_and_its_float_are_one_identity() -> None:
    """Else `similarity: 0` and `similarity: 0.0` would be two arms."""
    whole, real = (Config.read({"mask": {"similarity": value}}) for value in (0, 0.0))
    assert whole.identity == real.identity


def test_the_users_own_code_is_part_of_the_identity_and_its_comments_are_not() -> None:
    """Else another loss under the same name would pass for the first; a comment must retrain nothing."""

    def identity(source: str) -> str:
        return Config.read({"loss": {"kind": "my.py:huber"}, "sources": {"my.py": source}}).identity

    assert identity(LOSS) == identity("# mine\n" + LOSS + "\n\n")
    assert identity(LOSS) != identity(LOSS.replace("abs()", "square()"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"mask": {"ratio": 0.99}}, "mask.ratio"),
        ({"mask": {"ratio": 0.01}}, "mask.ratio"),
        ({"mask": {"ratio": 0.04}}, "mask.ratio"),
        ({"encoder": {"heads": 5}}, "encoder.width"),
        ({"decoder": {"heads": 3}}, "decoder.width"),
        ({"encoder": {"width": 6, "heads": 2}}, "encoder.width"),
        ({"data": {"image_size": 21}}, "data.image_size"),
        ({"collapse": {"kind": "vicreg"}, "optim": {"batch_size": 1}}, "optim.batch_size"),
        ({"collapse": {"kind": "sigreg"}, "optim": {"batch_size": 1}}, "optim.batch_size"),
    ],
)
def test_an_impossible_combination_names_its_key(change: dict[str, object], key: str) -> None:
    """Else a trial would fail in the middle of a sweep, in the words of a tensor library."""
    with pytest.raises(ValidationError) as caught:
        Config.read(change)
    cause = caught.value.errors()[0]["ctx"]["error"]
    assert isinstance(cause, CombinationError)
    assert cause.key == key


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"contrastive_mim": {"cell": 3}}, "contrastive_mim.cell"),
        ({"contrastive_mim": {"cell": 8}}, "contrastive_mim.cell"),
        ({"contrastive_mim": {"cell": 2}, "mask": {"ratio": 0.95}}, "mask.ratio"),
        ({"contrastive_mim": {"withheld": 0.05}}, "contrastive_mim.withheld"),
        ({"optim": {"batch_size": 1}}, "optim.batch_size"),
    ],
)
def test_what_contrastive_mim_cannot_do_is_said_by_its_key(change: dict[str, Any], key: str) -> None:
    """Without others a contrast is 0, and without patches a place: a loss that teaches nothing, or is NaN."""
    tree = {"objective": "contrastive_mim", "encoder": {"patch_size": 5}}
    with pytest.raises(ValidationError) as caught:
        Config.read(tree | change)
    cause = caught.value.errors()[0]["ctx"]["error"]
    assert isinstance(cause, CombinationError)
    assert cause.key == key
    own = {"contrast": 0.0, "position": 0.0, "withheld": 0.0}
    Config.read(tree | {"contrastive_mim": own, "optim": {"batch_size": 1}})


@pytest.mark.parametrize("branches", ["both", "video", "image"])
def test_a_lone_clip_is_not_contrasted(branches: str) -> None:
    """Every contrast would be exactly 0, and the arms that leave one out the same as the full method."""
    tree = {"objective": "video_mim", "optim": {"batch_size": 1}, "video_mim": {"branches": branches}}
    with pytest.raises(ValidationError, match="1 clip has no other to be told from"):
        Config.read(tree)
    without = dict.fromkeys(("within_video", "within_image", "across_video", "across_frame"), 0.0)
    Config.read(merge(tree, {"video_mim": without}))


@pytest.mark.parametrize(
    "change",
    [
        {"optim": {"epochs": 1.5}},
        {"optim": {"epochs": True}},
        {"optim": {"epoch": 1}},
        {"mask": {"similarity_start": float("nan")}},
        {"loss": {"kind": "msee"}},
        {"loss": {"kind": "mse", "tau": 0.2}},
        {"collapse": {"kind": "joint", "momentum": 0.9}},
        {"objective": "raw_pixels", "loss": {"kind": "mse"}},
        {"run": {"gpus": float("inf")}},
        {"seed": -1},
    ],
)
def test_what_nothing_reads_is_refused(change: dict[str, object]) -> None:
    """Else a typing error, or a setting of another loss, would run for hours as if it did something."""
    with pytest.raises(ValidationError):
        Config.read(change)


def test_flat_keys_build_the_config_again() -> None:
    """Else MLflow's params could not be turned back into the config that they came from."""
    config = Config.read({"loss": {"tau": 0.5}, "decoder": {"cues": False}})
    assert Config.read(merge({}, config.flat())) == config


def test_a_kind_may_be_set_before_or_after_the_rest_of_its_section() -> None:
    """Else `loss: mse` in an arm would drop the base's tau."""
    assert merge({"loss": "mse"}, {"loss.tau": 1.0}) == {"loss": {"kind": "mse", "tau": 1.0}}
    assert merge({"loss": {"tau": 1.0}}, {"loss": "mse"}) == {"loss": {"tau": 1.0, "kind": "mse"}}
    assert flatten({"loss": {"kind": "mse", "tau": 1.0}}) == {"loss": "mse", "loss.tau": 1.0}
