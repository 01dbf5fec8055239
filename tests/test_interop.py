"""The authors' checkpoints, and with them the method itself, number by number."""

import argparse
import json
import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmim.axes.mask import patchify
from lmim.config import Config
from lmim.encoder import View, take
from lmim.errors import UserError
from lmim.interop import load_mae, load_official, to_timm
from lmim.interop.official import flat_embedding, our_mae_name, our_name, translate, translate_mae
from lmim.objectives import Setup, build
from lmim.objectives.latent_mim import LatentMIM, Output
from lmim.objectives.supervised import Supervised

FIXTURES = Path(__file__).parent / "fixtures"


def golden_files(*prefixes: str) -> list[Path]:
    """Those that ship, and those of LMIM_GOLDEN, a folder where others of the same kind may be kept."""
    folders = [FIXTURES, *map(Path, filter(None, [os.environ.get("LMIM_GOLDEN")]))]
    files = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
    return [path for path in files if path.stem.startswith(prefixes)]


class Golden(NamedTuple):
    """A golden file: what the authors' code computed from given weights and views."""

    config: dict[str, Any]
    metadata: dict[str, str]
    tensors: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}


def read_golden(path: Path) -> Golden:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = file.metadata()
    return Golden(json.loads(metadata["config"]), metadata, tensors)


@pytest.fixture(params=golden_files("public_", "hidden_"), ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


@pytest.fixture(params=golden_files("mae_"), ids=lambda path: path.stem)
def mae(request: pytest.FixtureRequest) -> Golden:
    return read_golden(request.param)


def run(golden: Golden) -> tuple[LatentMIM, Output]:
    objective, _ = load_official(golden.under("state."), golden.config)
    view = View(golden.tensors["out.vis_idx"], golden.tensors["out.mask_idx"])
    return objective, objective.output(
        golden.tensors["out.patch_pix"], view, float(golden.metadata["sim_trg"])
    )


def assert_close(ours: Tensor, theirs: Tensor, scale: float | None = None) -> None:
    error = (ours - theirs).abs().max().item()
    assert error <= 1e-5 * (theirs.abs().max().item() if scale is None else scale)


def test_outputs_and_losses_are_the_authors(golden: Golden) -> None:
    """Any slip in the method (norms, positions, cues, losses) would show here first."""
    _, output = run(golden)
    assert_close(output.latents, golden.tensors["out.x_vis"])
    assert_close(output.target, golden.tensors["out.x_trg"])
    assert_close(output.prediction, golden.tensors["out.x_pred"])
    assert_close(output.term, golden.tensors["out.loss_term"])
    assert_close(output.loss, golden.tensors["out.loss_total"])


def test_gradients_are_the_authors(golden: Golden) -> None:
    """A gradient that is missing, or flows where it should not, trains another method."""
    objective, output = run(golden)
    output.loss.backward()  # type: ignore[no-untyped-call]
    theirs = {our_name(name): grad for name, grad in golden.under("grad.").items()}
    largest = max(grad.abs().max().item() for grad in theirs.values())
    ours = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        assert grad is not None
        assert_close(grad, theirs[name], scale=largest)


def test_momentum_update_and_evaluation_feature_are_the_authors(golden: Golden) -> None:
    """The target must follow the online encoder by their rule, and evaluation must see their feature."""
    objective, _ = run(golden)
    objective.target.after_step(objective.encoder, {"momentum": float(golden.metadata["ema_momentum"])})
    state = objective.state_dict()
    for name, theirs in golden.under("ema.").items():
        if "pos_embed" not in name:
            assert_close(state[our_name(f"target_encoder.{name}")], theirs)
    features = objective.features(golden.tensors["input.full_images"])
    assert_close(features, golden.tensors["out.eval_features"])


def test_images_are_cut_into_patches_as_the_authors_do(golden: Golden) -> None:
    """Another pixel order would silently permute the weights of the patch embedding."""
    if golden.config["patch_gap"] == 0:  # with a gap the authors' offsets were random
        patches = patchify(golden.tensors["input.images"], golden.config["patch_size"])
        assert torch.equal(patches, golden.tensors["out.patch_pix"])
    else:
        cell = golden.config["patch_size"] + golden.config["patch_gap"]
        assert golden.tensors["input.images"].shape[-1] == golden.config["grid_size"] * cell


def test_a_trainers_pth_loads_like_the_plain_weights(golden: Golden, tmp_path: Path) -> None:
    """Users have the trainer's own file: wrapped, prefixed, with optimiser and epoch beside."""
    weights = {f"module.{name}": tensor for name, tensor in golden.under("state.").items()}
    path = tmp_path / "checkpoint_latest.pth"
    torch.save({"state_dict": weights, "optimizer": {"state": {}}, "epoch": 3}, path)
    objective, config = load_official(path, golden.config)
    assert isinstance(config, Config)
    plain, _ = load_official(golden.under("state."), config)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, objective.state_dict()[name])


def test_unknown_missing_and_misshapen_weights_are_all_listed(golden: Golden) -> None:
    """A half-loaded model that looks fine is the worst outcome."""
    weights = golden.under("state.")
    del weights["decoder.norm.bias"]
    weights["surplus"] = torch.zeros(1)
    weights["encoder.norm.bias"] = torch.zeros(3)
    with pytest.raises(UserError) as error:
        load_official(weights, golden.config)
    for part in ("missing decoder.norm.bias", "unknown surplus", "encoder.norm.bias has shape (3,)"):
        assert part in str(error.value)


class Payload:
    """What a stranger's pickle might do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downloaded checkpoint must not be able to run anything."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "args": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not unpickled"):
        load_official(tmp_path / "evil.pth", {})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("key", ["embed_dims", "loss", "target_depth"])
def test_an_unknown_key_or_value_of_the_official_config_is_named(key: str) -> None:
    """A mistyped argument must not fall back to a default."""
    with pytest.raises(UserError, match=key):
        load_official({}, {"depth": 2, key: "nonsense"})


def test_what_arguments_leave_out_is_as_in_the_authors_code() -> None:
    """A published checkpoint would not load, or worse load with heads that it was not trained with."""
    for read in (translate, translate_mae):
        config = read({"embed_dim": 768, "depth": 12})
        encoder = config.section("encoder")
        assert (config.data.image_size, encoder.patch_size) == (224, 16)
        assert (encoder.heads, encoder.mlp_ratio) == (12, 4.0)
        assert read({"embed_dim": 768, "num_heads": 8}).section("encoder").heads == 8
        with pytest.raises(UserError, match="num_heads is missing, and no model of theirs is 24 wide"):
            read({"embed_dim": 24})
    config = translate({})
    encoder, decoder = config.section("encoder"), config.section("decoder")
    assert (encoder.width, encoder.depth, encoder.heads) == (1024, 24, 16)
    assert (decoder.width, decoder.depth, decoder.heads, decoder.cues) == (512, 3, 16, True)
    assert (config.section("projector").depth, config.section("projector").width) == (3, 4096)
    assert (config.section("mask").gap, config.section("mask").similarity) == (0, 0.0)


# ---------------------------------------------------------------------------------------------- MAE


def test_maes_outputs_and_every_gradient_are_its_authors(mae: Golden) -> None:
    """The baseline that every table compares with would be another method under MAE's name."""
    objective, config = load_mae(mae.under("state."), mae.config)
    patches = patchify(mae.tensors["input.images"], config.section("encoder").patch_size)
    view = View(mae.tensors["out.vis_idx"], mae.tensors["out.mask_idx"])
    output = objective.output(patches, view)
    assert_close(output.latents, mae.tensors["out.latent"])
    assert_close(output.prediction, take(mae.tensors["out.pred_all"], view.masked))
    assert_close(output.loss, mae.tensors["out.loss"].squeeze())
    output.loss.backward()  # type: ignore[no-untyped-call]
    theirs = {our_mae_name(name): grad for name, grad in mae.under("grad.").items()}
    theirs["encoder.embed.weight"] = flat_embedding(theirs["encoder.embed.weight"])
    largest = max(grad.abs().max().item() for grad in theirs.values())
    ours = {name: parameter.grad for name, parameter in objective.named_parameters()}
    assert set(ours) == set(theirs)
    for name, grad in ours.items():
        assert grad is not None
        assert_close(grad, theirs[name], scale=largest)


def test_maes_config_is_read_with_its_authors_names_and_defaults(mae: Golden) -> None:
    """Mask ratio and loss belong to the method: lost, a continued training would be of another one."""
    _, config = load_mae(mae.under("state."), mae.config)
    assert config.section("mask").ratio == mae.config["mask_ratio"]
    assert config.section("loss").kind == ("norm_mse" if mae.config["norm_pix_loss"] else "mse")
    assert config.grid**2 == mae.tensors["out.pred_all"].shape[1]


def test_maes_trainers_file_loads_and_what_does_not_fit_is_listed(mae: Golden, tmp_path: Path) -> None:
    """Users have the trainer's own file; a half-loaded one that looks fine is the worst outcome."""
    weights = mae.under("state.")
    arguments = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=0.75)
    torch.save({"model": weights, "epoch": 3, "args": arguments}, tmp_path / "checkpoint-3.pth")
    objective, config = load_mae(tmp_path / "checkpoint-3.pth", mae.config)
    again, _ = load_mae(weights, config)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in objective.state_dict().items())
    del weights["decoder_norm.bias"]
    weights["surplus"], weights["pos_embed"] = torch.zeros(1), weights["pos_embed"] + 0.1
    with pytest.raises(UserError) as error:
        load_mae(weights, mae.config)
    for part in ("missing decoder.norm.bias", "unknown surplus", "pos_embed is not the fixed sin-cos table"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="unknown keys embed_dims"):
        load_mae({}, {"embed_dims": 3})
    with pytest.raises(UserError, match="not one of MAE's authors"):
        load_mae({}, {})
    with pytest.raises(UserError, match="the config is of raw_pixels, expected pixel_mim"):
        load_mae(weights, Config.read({"objective": "raw_pixels"}))
    with pytest.raises(UserError, match="the config is of raw_pixels, expected latent_mim"):
        load_official(
            {"encoder.embed.proj.weight": torch.zeros(4, 3, 2, 2)}, Config.read({"objective": "raw_pixels"})
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"img_size": 17, "patch_size": 4}, "img_size: 17 is not divisible by"),
        ({"img_size": [224, 224]}, "img_size: expected an integer, found"),
        ({"mask_ratio": 2.0}, "mask_ratio: expected less than 1, found 2"),
        ({"mlp_ratio": "four"}, "mlp_ratio: expected a number, found four"),
        ({"norm_pix_loss": "yes"}, "norm_pix_loss: expected true or false, found yes"),
    ],
)
def test_a_wrong_value_of_an_argument_is_one_line(arguments: dict[str, Any], said: str) -> None:
    """It would be a traceback, or a value that is taken for another."""
    with pytest.raises(UserError, match=r"grid_size: expected a whole number above 0, found 14\.5"):
        load_official({}, {"grid_size": 14.5})
    with pytest.raises(UserError) as error:
        load_mae({}, arguments)
    assert str(error.value).startswith(f"official config: {said}")
    assert "\n" not in str(error.value)


def test_what_could_run_code_is_refused_in_plain_letters(tmp_path: Path) -> None:
    """A stranger's checkpoint would run what it likes; the refusal would paint the terminal."""
    torch.save({"model": {}, "hook": partial(print, "run")}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match="holds more than tensors and is not unpickled") as error:
        load_mae(tmp_path / "strange.pth", {})
    assert str(error.value).isprintable()


def test_maes_encoder_alone_gives_its_features(mae: Golden) -> None:
    """What the authors released to be judged is without the decoder, and was refused."""
    whole, _ = load_mae(mae.under("state."), mae.config)
    decoder = ("decoder_", "mask_token")
    weights = {name: one for name, one in mae.under("state.").items() if not name.startswith(decoder)}
    alone, _ = load_mae(weights, mae.config)
    images = mae.tensors["input.images"]
    torch.testing.assert_close(alone.features(images), whole.features(images))
    for more, said in (("mask_token", "missing decoder.embed.weight, "), ("surplus", "unknown surplus")):
        with pytest.raises(UserError, match=said):
            load_mae(weights | {more: mae.under("state.")["mask_token"]}, mae.config)
    with pytest.raises(UserError, match=r"missing encoder\.norm\.weight"):
        load_mae({name: one for name, one in weights.items() if name != "norm.weight"}, mae.config)


def test_a_long_list_of_differences_is_cut(mae: Golden) -> None:
    """The line that says what is wrong would be of a hundred names."""
    weights = {name: one for name, one in mae.under("state.").items() if "blocks" not in name}
    with pytest.raises(UserError, match=r"missing [\w.]+, [\w.]+, [\w.]+ and \d+ more$"):
        load_mae(weights, mae.config)


# ------------------------------------------------------------------------------ a classifier out


TINY_VIT: dict[str, Any] = {
    "data": {"image_size": 224},
    "encoder": {"patch_size": 16, "width": 192, "depth": 12, "heads": 3},
}


@pytest.mark.parametrize("objective", ["supervised", "supervised_mim"])
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_classifier_leaves_as_timms_own_model(objective: str, pool: str) -> None:
    """What is served would be slower than a classifier, or another one than was judged."""
    own = {"pool": pool, "drop_path": 0.1}
    ours = build(Config.read(TINY_VIT | {"objective": objective, objective: own}), Setup(224, 3, 10)).eval()
    assert isinstance(ours, Supervised)
    exported, images = to_timm(ours), torch.randn(2, 3, 224, 224)
    how: dict[str, Any] = {"global_pool": "avg", "fc_norm": True} if pool == "mean" else {}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=10, **how).eval()
    assert {n: w.shape for n, w in exported.state_dict().items()} == {
        n: w.shape for n, w in theirs.state_dict().items()
    }
    flops = []
    for model in (exported, theirs, ours.logits):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = model(images)
        flops.append(counter.get_total_flops())
        if model is not theirs:
            torch.testing.assert_close(logits, ours.logits(images), rtol=1e-5, atol=1e-5)
    assert flops[0] == flops[1] == flops[2] > 0


@pytest.mark.parametrize("objective", ["latent_mim", "pixel_mim", "block_mim", "contrastive_mim"])
def test_an_encoder_leaves_with_its_features(objective: str) -> None:
    """Whoever goes on from it elsewhere would go on from another representation than the table's."""
    ours = build(Config.read({"objective": objective}), Setup(20, 1, 10)).eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # norms and biases that change something
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs, images = to_timm(ours), torch.randn(3, 1, 20, 20)
    with torch.no_grad():
        tokens = ours.tokens(images, norm=True)
        torch.testing.assert_close(theirs.forward_features(images), tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(theirs(images), tokens[:, 1:].mean(dim=1), rtol=1e-5, atol=1e-5)
        how: dict[str, Any] = {"norm": False, "output_fmt": "NLC", "intermediates_only": True}
        [patches] = cast(list[Tensor], theirs.forward_intermediates(images, 1, **how))
        torch.testing.assert_close(patches, ours.patch_features(images), rtol=1e-5, atol=1e-5)


def test_what_has_no_encoder_does_not_leave() -> None:
    """A model that was never trained would be served."""
    with pytest.raises(UserError, match="RawPixels: has no encoder"):
        to_timm(build(Config.read({"objective": "raw_pixels"}), Setup(20, 1, 10)))
