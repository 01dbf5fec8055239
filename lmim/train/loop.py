"""The shared trainer: one config in; metrics, a state and a checkpoint out.

It knows nothing of Ray or MLflow: it writes the trial's folder and calls a plain `report(step, metrics)`.

Nothing random needs to be saved (see `data/batches.py`): a run killed at any step and continued from its
checkpoint ends with bit-identical weights on the same CPU. (On a GPU the attention's backward pass adds in no
fixed order.) The processes of a data parallel run all go through the same steps (see `processes.py`); another
number of them changes the result by rounding.
"""

import io
import logging
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lmim.axes.mask import cosine_decay, patchify
from lmim.config import Config
from lmim.data import Dataset, open_dataset
from lmim.data.augment import crop, normalise
from lmim.data.batches import MicroBatch, batches, generator
from lmim.encoder import View
from lmim.errors import UserError
from lmim.evaluate import evaluate
from lmim.evaluate.collapse import diagnostics
from lmim.objectives import OBJECTIVES, Objective
from lmim.objectives.latent_mim import LatentMIM
from lmim.train import processes
from lmim.train.schedules import learning_rate, parameter_groups
from lmim.trial.code import code_version
from lmim.trial.folder import State, TrialFolder

log = logging.getLogger(__name__)

Report = Callable[[int, dict[str, float]], None]

COLLAPSED = 0.5
"""A trial has collapsed when training left its features less than this part of their initial rank."""


def choose_device(config: Config) -> torch.device:
    """The device that the config asks for; `auto` is the GPU where there is one.

    Raises:
        UserError: there are fewer GPUs than it asks for.
    """
    available = torch.cuda.is_available()
    if config.run.device == "cuda" and not available:
        raise UserError("run.device: cuda is asked for, but this machine shows no GPU; use run.device=auto")
    if not available or config.run.device == "cpu":
        return torch.device("cpu")
    if config.run.processes > torch.cuda.device_count():
        raise UserError(
            f"run.processes: {config.run.processes} take a GPU each, but this machine shows "
            f"{torch.cuda.device_count()}: ask for fewer"
        )
    return torch.device("cuda")


@dataclass
class Progress:
    """What a checkpoint holds besides the weights and the optimiser."""

    step: int = 0
    initial_rank: float = math.nan
    seconds: float = 0.0


class Run:
    """Everything that one trial's loop works on."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        self.objective: Objective = OBJECTIVES[config.objective](config, dataset.channels).to(device)
        self.progress = Progress()
        parameters = parameter_groups(self.objective, config.optim.weight_decay)
        self.optimiser = (
            torch.optim.AdamW(
                parameters,
                lr=0.0,
                betas=(config.optim.beta1, config.optim.beta2),
                fused=True,
            )
            if any(group["params"] for group in parameters)
            else None
        )
        self.per_epoch = len(dataset.train) // config.step_images
        if config.optim.epochs and not self.per_epoch:
            raise UserError(
                f"optim.batch_size x optim.accumulate: {config.step_images} is more than the "
                f"{len(dataset.train)} training images of {dataset.name}"
            )
        self.steps = config.optim.epochs * self.per_epoch if self.optimiser else 0
        # sums of loss, term and gradient norm since the last row of the journal, and how many
        self.sums = torch.zeros(3, device=device)
        self.counted = 0
        self.mean, self.std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
        self.probe = self._probe()
        forward = self.objective.forward
        self.forward = torch.compile(forward) if config.run.compile else forward

    def _probe(self) -> Float[Tensor, "b c s s"]:
        """The fixed test images on which collapse is watched, the same for every trial."""
        count = min(self.config.evaluate.probe_images, len(self.dataset.test))
        order = torch.randperm(len(self.dataset.test), generator=generator(0, "probe"))
        side = self.config.data.image_size
        images, boxes = (part.to(self.device) for part in self.dataset.test.read(order[:count], side))
        return normalise(crop(images, boxes, side), self.mean, self.std)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the config says so; the weights stay float32."""
        enabled = self.config.optim.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def views(self, batch: MicroBatch) -> tuple[Float[Tensor, "b n p"], View]:
        """Augmented patches and what is visible of them, made on the device as they were drawn."""
        patch, gap = self.config.encoder.patch_size, self.config.mask.gap
        batch = batch.each(lambda tensor: tensor.to(self.device, non_blocking=True))
        crops = crop(batch.images, batch.draw.boxes, self.config.grid * (patch + gap), batch.draw.mirrored)
        crops = normalise(crops, self.mean, self.std)
        return patchify(crops, patch, batch.draw.offsets, gap), batch.draw.view

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step and what follows it. Nothing here waits for the device.

        The gradient is the mean over the step's micro-batches, whichever processes they are spread over.
        """
        config, step, objective, optimiser = self.config, self.progress.step, self.objective, self.optimiser
        assert isinstance(objective, LatentMIM)
        assert optimiser is not None
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(config.optim, step / self.per_epoch)
        # a tensor, because a compiled step would be compiled anew for another number
        aim = torch.tensor(
            cosine_decay(step / self.steps, config.mask.similarity_start, config.mask.similarity_end)
        )
        losses = torch.zeros(2, device=self.device)
        for batch in micro_batches:
            patches, view = self.views(batch)
            with self.autocast():
                output = self.forward(patches, view, aim)
            (output.loss / config.optim.accumulate).backward()
            losses += torch.stack([output.loss, output.term]).detach() / config.optim.accumulate
        gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        processes.all_reduce([*gradients, losses])
        norm = nn.utils.get_total_norm(gradients)
        if config.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(objective.parameters(), config.optim.clip_grad, norm)
        self.sums += torch.cat([losses, norm.view(1)])
        self.counted += 1
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        # The momentum update that precedes the next step's target pass.
        momentum = cosine_decay(
            self.progress.step / self.steps, config.collapse.momentum, config.collapse.momentum_end
        )
        objective.target.after_step(objective.encoder, momentum)

    def training_metrics(self) -> dict[str, float]:
        """Means since the last call. Waits for the device, as do the collapse measures and a checkpoint."""
        loss, term, norm = (self.sums / max(self.counted, 1)).tolist()
        self.sums.zero_()
        self.counted = 0
        epoch = self.progress.step / self.per_epoch
        return {
            "train/loss": loss,
            "train/term": term,
            "train/grad_norm": norm,
            "train/lr": learning_rate(self.config.optim, epoch),
            "train/epoch": epoch,
        }

    @torch.no_grad()
    def collapse_metrics(self) -> dict[str, float]:
        """Collapse measures on the fixed probe batch."""
        measures = diagnostics(self.objective.patch_features(self.probe))
        return {f"collapse/{name}": value.item() for name, value in measures.items()}

    def save(self, path: Path) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old one or the new one."""
        buffer = io.BytesIO()
        torch.save(
            {
                "identity": self.config.identity,
                "progress": vars(self.progress),
                "objective": self.objective.state_dict(),
                "optimiser": self.optimiser.state_dict() if self.optimiser else {},
                "sums": self.sums,
                "counted": self.counted,
            },
            buffer,
        )
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restore(self, path: Path) -> bool:
        """Go on from a checkpoint of the same identity; False if there is none that can be read.

        A damaged one is kept beside, under another name: nothing in it could be gone on from.
        """
        try:
            saved = read_checkpoint(path)
        except FileNotFoundError:
            return False
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            aside = path.replace(path.with_suffix(".damaged"))
            reason = str(error).partition("\n")[0][:100]
            log.warning("%s cannot be read (%s): kept as %s, begun anew", path, reason, aside.name)
            return False
        if saved["identity"] != self.config.identity:
            raise UserError(
                f"{path}: is a checkpoint of trial {saved['identity']}, not {self.config.identity}"
            )
        self.go_on_from(saved)
        return True

    def go_on_from(self, saved: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self.progress = Progress(**saved["progress"])
        self.objective.load_state_dict(saved["objective"])
        if self.optimiser:
            self.optimiser.load_state_dict(saved["optimiser"])
        self.sums.copy_(saved["sums"])
        self.counted = saved["counted"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote, on the CPU; loaded without unpickling code."""
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return saved


def ignore(step: int, metrics: dict[str, float]) -> None:
    """The report of a trial that nobody listens to."""


def train(
    config: Config, folder: TrialFolder, report: Report = ignore, stop: Callable[[], bool] = lambda: False
) -> State:
    """Bring one trial up to date: train it from where its folder says, evaluate it, record the result.

    A diverged or collapsed trial is a finished result that says so. When `stop()` turns true the trial
    saves a checkpoint at the next step and returns with status `interrupted`.

    Raises:
        UserError: the data set is not there, a GPU is asked for where none is, or the like.
        Busy: another process runs this trial.
    """
    folder.create(config)
    with folder.lock():
        state = folder.state()
        if state.status == "done":
            return state
        device = choose_device(config)
        torch.set_num_threads(config.run.threads)
        begun = time.monotonic()
        folder.update(
            status="running",
            error=None,
            started=state.started or time.time(),
            device=torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
            host=platform.node(),
            pid=os.getpid(),
            epochs=config.optim.epochs,
        )
        run = Run(config, open_dataset(config.data), device)
        resumed = run.restore(folder.checkpoint)
        folder.rewind(run.progress.step if resumed else -1)
        before = state if resumed else State()
        folder.update(
            steps=run.steps,
            commit=_versions(before.commit, code_version()),
            dataset_version=_versions(before.dataset_version, run.dataset.version),
        )
        return _bring_up_to_date(run, folder, resumed, report, stop, begun)


def _versions(earlier: str | None, now: str) -> str:
    """What a trial ran on: a report must see that the code or the data changed on its way.

    >>> _versions(None, "a"), _versions("a", "a"), _versions("a", "b"), _versions("a, then b", "b")
    ('a', 'a', 'a, then b', 'a, then b')
    """
    if earlier and earlier.split(", then ")[-1] == now:
        return earlier
    return ", then ".join(filter(None, [earlier, now]))


class _Stopped(Exception):
    """Leaves an evaluation; the trial's last checkpoint is saved by then."""


def _bring_up_to_date(
    run: Run, folder: TrialFolder, resumed: bool, report: Report, stop: Callable[[], bool], begun: float
) -> State:
    config, progress, earlier = run.config, run.progress, run.progress.seconds

    def seconds() -> float:
        return earlier + time.monotonic() - begun

    def note(metrics: dict[str, float], **fields: Any) -> None:
        folder.append(progress.step, metrics)
        latest.update(metrics)
        folder.update(
            step=progress.step,
            epoch=progress.step // max(run.per_epoch, 1),
            seconds=seconds(),
            metrics=dict(latest),
            **fields,
        )
        report(progress.step, metrics)

    def save() -> None:
        progress.seconds = seconds()
        run.save(folder.checkpoint)

    def features(images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        if stop():
            raise _Stopped
        return run.objective.features(images)

    latest: dict[str, float] = dict(folder.state().metrics)
    if progress.step == 0:
        initial = run.collapse_metrics()
        progress.initial_rank = initial["collapse/rank"]
        note(initial)
    end: End = "trained"
    if progress.step < run.steps:
        gpus = run.device.type == "cuda"
        with processes.with_replicas(config.run.processes, gpus, _replica, config, folder, resumed):
            end = _steps(run, stop, note, save)
    if end == "interrupted":
        return folder.update(status="interrupted", step=progress.step, seconds=seconds())
    results: dict[str, float] = {}
    outcome: str | None = "diverged" if end == "diverged" else None
    if not outcome:
        try:
            results = evaluate(
                features,
                run.dataset,
                config.data.image_size,
                neighbours=config.evaluate.neighbours,
                device=run.device,
            )
        except _Stopped:
            return folder.update(status="interrupted", seconds=seconds())
        results["eval/rank_ratio"] = run.collapse_metrics()["collapse/rank"] / progress.initial_rank
        if not all(map(math.isfinite, results.values())):
            outcome, results = "diverged", {}
        elif run.steps:
            outcome = "collapsed" if results["eval/rank_ratio"] < COLLAPSED else "learned"
    results["system/seconds"] = seconds()
    if run.device.type == "cuda":
        results["system/gpu_seconds"] = results["system/seconds"] * config.run.gpus * config.run.processes
    note(results, status="done", outcome=outcome, eta_seconds=0.0, finished=time.time())
    return folder.state()


End = Literal["trained", "diverged", "interrupted"]


def _steps(run: Run, stop: Callable[[], bool], note: Callable[..., None], save: Callable[[], None]) -> End:
    """The steps that are left, in every process of the trial; the first one's `stop` counts for all."""
    config, progress = run.config, run.progress
    rank, size, pin = processes.rank(), processes.size(), run.device.type == "cuda"
    if size > 1:
        weights = sum(parameter.double().sum().item() for parameter in run.objective.parameters())
        processes.check_alike(progress.step, run.steps, run.dataset.version, weights)
    saved, started_at = time.monotonic(), (time.monotonic(), progress.step)
    for micro_batches in batches(run.dataset, config, progress.step, run.steps, rank, size, pin):
        run.step(micro_batches)
        stopping = processes.broadcast(stop())
        last = progress.step == run.steps
        if progress.step % config.run.log_every == 0 or last:
            metrics = run.training_metrics()
            rate = (progress.step - started_at[1]) / (time.monotonic() - started_at[0])
            metrics["system/images_per_second"] = rate * config.step_images
            eta = (run.steps - progress.step) / rate
            note(metrics, images_per_second=metrics["system/images_per_second"], eta_seconds=eta)
            if not math.isfinite(metrics["train/loss"] + metrics["train/grad_norm"]):
                return "diverged"
        if progress.step % (run.per_epoch * config.evaluate.every_epochs) == 0 or last:
            note(run.collapse_metrics())
        if last or stopping or time.monotonic() - saved > config.run.checkpoint_seconds:
            save()
            saved = time.monotonic()
            if stopping and not last:
                return "interrupted"
    return "trained"


def _replica(team: processes.Team, rank: int, config: Config, folder: TrialFolder, resumed: bool) -> None:
    """What the other processes of a trial do: the same steps, with their part of each batch."""
    torch.set_num_threads(config.run.threads)
    device = choose_device(config)
    if device.type == "cuda":
        torch.cuda.set_device(rank)
    run = Run(config, open_dataset(config.data), device)
    if resumed:
        run.go_on_from(read_checkpoint(folder.checkpoint))
    with team.join(rank):
        _steps(run, lambda: False, lambda *_, **__: None, lambda: None)
