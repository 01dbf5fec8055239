"""A trial out: a folder that timm and the hub read, and a card that says where its figures are from."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import timm
from huggingface_hub import ModelCard, ModelCardData
from timm.models import save_for_hf

from lmim import variants
from lmim.config import Config
from lmim.errors import UserError
from lmim.evaluate.fewshot import interval
from lmim.interop.timm_models import ARCHITECTURE, timm_arguments, to_timm
from lmim.loading import LoadedTrial, load_trial
from lmim.tracking import runs_of
from lmim.trial.folder import TrialFolder


def export(folder: Path, out: Path, card: bool = False, tracking_uri: str | None = None) -> None:
    """Write a trial's encoder as `timm.create_model("local-dir:OUT", pretrained=True)` reads it.

    config.json and model.safetensors, and with `card` a README.md. `out` appears as a whole.

    Raises:
        UserError: there is no such trial, timm has no such model, or something lies at `out`.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; export to a folder that is not")
    trial = load_trial(folder)
    model, arguments = to_timm(trial.encoder), timm_arguments(trial.encoder)
    mean, std = trial.statistics()
    side = arguments["img_size"]
    data = {
        "input_size": [arguments["in_chans"], side, side],
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as made:
        place = Path(made) / "model"
        save_for_hf(
            model,
            str(place),
            model_config={"architecture": ARCHITECTURE, "num_classes": arguments["num_classes"]},
            model_args={key: value for key, value in arguments.items() if key != "num_classes"},
            data_config=data,
            safe_serialization=True,
        )
        if card:
            described(folder, trial, tracking_uri).save(place / "README.md")
        place.replace(out)


def described(folder: Path, trial: LoadedTrial, tracking_uri: str | None) -> ModelCard:
    """The card: method, data, figures of the trial and over the seeds of its arm, commit, MLflow's run."""
    config, own = trial.config, TrialFolder(folder.resolve().parent, folder.resolve().name)
    state = own.state()
    meaning = variants.describe("objective", config.objective, config.sources).meaning
    version = config.data.version or "unknown version"
    trained = (
        f"its weights were imported ({config.imported})" if config.imported else f"{state.steps:,} steps"
    )
    runs = ", ".join(runs_of(own, tracking_uri)) or "no run found"
    lines = [
        f"# {config.objective}, trial {own.id}",
        f"{meaning} Trained by lmim: {trained}, {config.optim.epochs} epochs of {config.data.name} "
        f"({version}), seed {config.seed}.",
        "```python\nimport timm\n\n"
        'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True)\n'
        f"```\n\nWritten with timm {timm.__version__}. Images are resized to "
        f"{config.data.image_size} x {config.data.image_size} pixels and normalised as config.json says.",
        "## Figures",
        "\n".join(_table(own, trial)),
        "## Where they are from",
        f"Code {state.code or 'unknown'} (commit {state.commit or 'unknown'}), torch {state.torch}, "
        f"timm {state.timm}, {state.device}. MLflow: {runs}.",
        "## Config",
        "\n".join(f"    {key}: {value}" for key, value in config.flat().items()),
    ]
    about = ModelCardData(library_name="timm", tags=["timm", "masked-image-modeling", config.objective])
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n")


def _table(own: TrialFolder, trial: LoadedTrial) -> Iterator[str]:
    """A row a figure: this trial's, and the mean over all seeds of its arm with the 95 % t-interval."""
    arm = [one.metrics() for one in _seeds(own, trial.config)]
    yield "| metric | this trial | mean of its arm, 95 % t-interval | seeds |"
    yield "|---|---:|---:|---:|"
    for name in sorted(key for key in trial.metrics if key.startswith(("eval/", "val/"))):
        found = [metrics[name] for metrics in arm if name in metrics]
        mean, half = interval(found)
        spread = f"{mean:.4g} ± {half:.2g}" if len(found) > 1 else "-"
        yield f"| {name} | {trial.metrics[name]:.4g} | {spread} | {len(found)} |"


def _seeds(own: TrialFolder, config: Config) -> list[TrialFolder]:
    """The finished trials beside it that differ in the seed alone."""
    beside = [TrialFolder(own.root, file.parent.name) for file in sorted(own.root.glob("*/config.json"))]
    return [one for one in beside if one.config().arm == config.arm and one.state().status == "done"]
