"""The list of keys: whole, from the source, and what editors check files by."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from lmim import config, variants
from lmim.errors import UserError
from lmim.plan import keys
from lmim.sweep import command

ABLATIONS = Path(__file__).parents[2] / "ablations"
SHIPPED = sorted(ABLATIONS.rglob("*.yaml"))


def test_what_is_committed_is_what_the_source_says() -> None:
    """Else the page or an editor names a key that is gone; `python -m lmim.plan.keys` writes them again."""
    for path, text in keys.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m lmim.plan.keys"


def test_every_key_has_a_meaning() -> None:
    """Else the user reads the trainer's source to know what to vary."""
    found = {key.name: key for key in [*keys.sweep_keys(), *keys.config_keys(), *keys.protocol_keys()]}
    found |= {key.name: key for key in keys.figure_keys()}
    assert config.fields({}, {}).keys() <= found.keys()
    assert not [name for name, key in found.items() if not key.meaning]
    assert not [f"{n}: {c}" for n, key in found.items() for c, meaning in key.choices.items() if not meaning]
    assert found["loss.tau"].read_by == ["patch_discrimination"]
    assert found["mask.similarity"].read_by == ["latent_mim"]
    assert {"latent_mim", "pixel_mim"} < {*found["mask.ratio"].read_by}
    assert (
        found["loss.tau"].default
        == variants.describe("loss", "patch_discrimination", {}).settings["tau"].neutral
    )


def test_a_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """Else what a key may be is learnt from error messages."""
    with pytest.raises(SystemExit) as left:
        command.main(["--explain", "loss.kind"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "loss: What the predicted latents are compared with the target's by.\n  values: mse, "
    )
    assert "\n    cosine: One minus the cosine of prediction and target" in printed
    assert re.search(r"\n  read by: .*\blatent_mim\b", printed)
    assert keys.explain("tau") == keys.explain("loss.tau")
    assert keys.explain("loss.tau") == (
        "loss.tau: `tau` is the temperature, and 2 tau rescales the loss.\n"
        "  values: number > 0\n  default: 0.2\n  read by: patch_discrimination\n  in base.yaml: 0.2"
    )
    assert re.findall(r"^(\S+): ", keys.explain("depth"), re.M) == [
        "encoder.depth",
        "projector.depth",
        "decoder.depth",
    ]
    assert keys.explain("ema") == keys.explain("collapse")
    assert keys.explain("all").count("  values: ") > 50
    assert command.main(["--explain", "loss.taus"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: --explain loss.taus: expected a key, or all, found none of that name")
    assert message.endswith("; did you mean loss.tau?\n")
    with pytest.raises(UserError, match="did you mean cosine"):
        keys.explain("cosin")


def schema_of(path: Path) -> tuple[dict[str, Any], Any]:
    """What the first line of a shipped file names, and the file."""
    text = path.read_text(encoding="utf-8")
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", text.splitlines()[0])
    assert found, f"{path}: the first line names no schema"
    schema = YAML(typ="safe").load((path.parent / found[1]).read_text(encoding="utf-8"))
    return schema, YAML(typ="safe").load(text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_what_its_schema_says(path: Path) -> None:
    """Else an editor underlines what is right, and people stop looking at it."""
    schema, tree = schema_of(path)
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(tree)


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({"axes": {"loss": [{"kind": "patch_discrimination", "tau": 0.5}, "mse", "my.py:huber"]}}, True),
        ({"axes": {"loss.delta": [0.5, 1.0], "mask": [{"ratio": 0.5, "gap": 1}]}}, True),
        ({"design": "list", "arms": {"a": {}, "b": {"encoder": {"width": 8}, "optim.epochs": 3}}}, True),
        ({"evaluate": ["nn", {"knn": {"k": 5}}, "mine.py:gap"], "metric": "gap"}, True),
        ({"axes": {"los": ["mse"]}}, False),
        ({"axes": {"mask.gaps": [1]}}, False),
        ({"axes": {"mask.gap": [-1]}}, False),
        ({"axes": {"loss": ["msee"]}}, False),
        ({"axes": {"mask": [{"gaps": 1}]}}, False),
        ({"axes": {"loss": [{"kind": "patch_discrimination", "tau": 0}]}}, False),
        ({"seeds": [-1]}, False),
        ({"seed": [1]}, False),
        ({"design": "gird"}, False),
        ({"name": "a b"}, False),
        ({"stages": [{"axes": {"loss": ["mse"]}, "selects": "best"}]}, False),
        ({"evaluate": ["knnn"]}, False),
        ({"figures": ["tsne", {"attention": {"images": 4}}, {"heatmap": {"x": "mask.gap"}}]}, True),
        ({"figures": ["tsn"]}, False),
        ({"figures": [{"attention": {"image": 4}}]}, False),
        ({"figures": [{"attention": {"images": 0}}]}, False),
    ],
)
def test_an_editor_tells_right_from_wrong(change: dict[str, Any], valid: bool) -> None:
    """Else a typing error shows when the command runs, or what is right is underlined."""
    found = jsonschema.Draft7Validator(keys.sweep_schema()).is_valid({"name": "x"} | change)
    assert found == valid
