"""The config is the contract between the sweep file, the trial's folder and the report."""

import json

import pytest
from pydantic import ValidationError

from lmim.config import CombinationError, Config, choices, flatten, merge


def test_identity_survives_a_round_trip_through_json() -> None:
    """Else a finished trial read back from disk would count as another one and run again."""
    config = Config.model_validate({"seed": 3, "mask": {"gap": 1}})
    assert Config.model_validate(json.loads(config.model_dump_json())).identity == config.identity


def test_identity_ignores_orchestration_and_nothing_else() -> None:
    """Else more threads would train everything again, or a changed recipe would be taken for done."""
    plain = Config()
    assert Config.model_validate({"run": {"threads": 7, "device": "cpu"}}).identity == plain.identity
    changes = [
        {"seed": 1},
        {"mask": {"similarity": 0.2}},
        {"optim": {"epochs": 1}},
        {"evaluate": {"neighbours": 3}},
    ]
    others = {Config.model_validate(change).identity for change in changes}
    assert len(others) == len(changes)
    assert plain.identity not in others


def test_a_whole_number_and_its_float_are_one_identity() -> None:
    """Else `similarity: 0` and `similarity: 0.0` would be two arms."""
    whole, real = (Config.model_validate({"mask": {"similarity": value}}) for value in (0, 0.0))
    assert whole.identity == real.identity


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
    ],
)
def test_an_impossible_combination_names_its_key(change: dict[str, object], key: str) -> None:
    """Else a trial would fail in the middle of a sweep, in the words of a tensor library."""
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(change)
    cause = caught.value.errors()[0]["ctx"]["error"]
    assert isinstance(cause, CombinationError)
    assert cause.key == key


@pytest.mark.parametrize(
    "change",
    [
        {"optim": {"epochs": 1.5}},
        {"optim": {"epochs": True}},
        {"optim": {"epoch": 1}},
        {"mask": {"similarity_start": float("nan")}},
        {"loss": {"kind": "msee"}},
        {"run": {"gpus": float("inf")}},
        {"seed": -1},
    ],
)
def test_what_is_not_in_the_schema_is_refused(change: dict[str, object]) -> None:
    """Else a typing error would run for hours as the default."""
    with pytest.raises(ValidationError):
        Config.model_validate(change)


def test_flat_keys_build_the_config_again() -> None:
    """Else MLflow's params could not be turned back into the config that they came from."""
    config = Config.model_validate({"loss": {"kind": "mse", "tau": 0.5}, "decoder": {"cues": False}})
    assert Config.model_validate(merge({}, config.flat())) == config


def test_a_kind_may_be_set_before_or_after_the_rest_of_its_section() -> None:
    """Else `loss: mse` in an arm would drop the base's tau."""
    assert merge({"loss": "mse"}, {"loss.tau": 1.0}) == {"loss": {"kind": "mse", "tau": 1.0}}
    assert merge({"loss": {"tau": 1.0}}, {"loss": "mse"}) == {"loss": {"tau": 1.0, "kind": "mse"}}
    assert flatten({"loss": {"kind": "mse", "tau": 1.0}}) == {"loss": "mse", "loss.tau": 1.0}


@pytest.mark.parametrize(
    ("module", "table", "name"),
    [
        ("axes/collapse", "TARGETS", "ema"),
        ("axes/loss", "LOSSES", "patch_discrimination"),
        ("axes/decoder", "DECODERS", "cross_attention"),
        ("objectives/__init__", "OBJECTIVES", "raw_pixels"),
        ("data/datasets", "DATASETS", "glyphs"),
    ],
)
def test_choices_are_read_from_each_axis_file(module: str, table: str, name: str) -> None:
    """Else adding a variant to its dict would not be enough to use it in a sweep."""
    assert name in choices(module, table)


def test_choices_of_a_table_that_is_not_there() -> None:
    """Else a renamed dict would silently accept no name at all."""
    with pytest.raises(LookupError, match="NOWHERE"):
        choices("axes/loss", "NOWHERE")
