"""The shared trainer: one config in; metrics, a state, a checkpoint and evaluations out.

It knows nothing of Ray or MLflow, nor what it trains (see `objectives/__init__.py`): it writes the trial's
folder and calls a plain `report(step, metrics)`.

Nothing random needs to be saved (see `batches.py`): a run killed at any step and continued from its
checkpoint ends with bit-identical weights on the same CPU. (On a GPU the attention's backward pass adds in no
fixed order.) The processes of a data parallel run all go through the same steps (see `processes.py`); another
number of them changes the result by rounding.
"""

import contextlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lmim import objectives
from lmim.config import Config
from lmim.data import Dataset, open_dataset
from lmim.data.augment import WHOLE, crop, normalise
from lmim.data.reading import ahead, set_num_threads
from lmim.data.splits import Subset
from lmim.encoder import recompute
from lmim.errors import UserError
from lmim.evaluate import Model, Stopped, Trained, View, image_features, judge, patch_features
from lmim.evaluate.collapse import diagnostics
from lmim.evaluate.nn import nn_top1
from lmim.metrics import COLLAPSED, NN_GAIN, RANK_RATIO, SAVED, SECONDS, SPREAD_RATIO, VAL_NN, kept
from lmim.objectives import Objective, Setup
from lmim.schedules import learning_rate
from lmim.train import checkpoint, processes
from lmim.train.batches import MicroBatch, batches, generator
from lmim.train.optimiser import parameter_groups
from lmim.trial.code import code_digest, code_version, libraries
from lmim.trial.ending import Ending, goes_on
from lmim.trial.evaluation import Evaluation, Result, write_result
from lmim.trial.folder import RENDEZVOUS, State, TrialFolder

NEAREST = 2048
"""Test images among which nearest neighbours are looked for: of 512 the accuracy is too uncertain to tell."""

Report = Callable[[int, dict[str, float]], None]
Stop = Callable[[], bool]


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
    # replicas that others have placed see their own GPU alone
    if config.run.processes > torch.cuda.device_count() and RENDEZVOUS not in os.environ:
        raise UserError(
            f"run.processes: {config.run.processes} take a GPU each, but this machine shows "
            f"{torch.cuda.device_count()}: ask for fewer"
        )
    return torch.device("cuda")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with its generation: what rounding depends on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name, able = platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()
    with contextlib.suppress(OSError):
        said = dict(re.findall(r"^([\w ]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        if "model name" in said:
            name = f"{said['model name']} {said.get('cpu family')}.{said.get('model')}.{said.get('stepping')}"
    return f"{name} {able}"


def open_planned(config: Config) -> Dataset:
    """The config's dataset, if it is the one that was planned with.

    Raises:
        UserError: it is another, or not there.
    """
    dataset = open_dataset(config.data, config.sources)
    if config.data.version not in (None, dataset.version):
        raise UserError(
            f"data.version: {config.data.name} was {config.data.version} when the trial was planned and is "
            f"{dataset.version} now: run the sweep again"
        )
    return dataset


# -------------------------------------------------------------------------------------------- a run


@dataclass
class Progress:
    """What a checkpoint holds besides the weights and the optimiser."""

    step: int = 0
    initial_rank: float = math.nan
    initial_spread: float = math.nan
    initial_nn: float = math.nan
    seconds: float = 0.0
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0


class Run:
    """Everything that one trial's loop works on."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        torch.manual_seed(generator(config.seed, "weights").initial_seed())
        data, optim = config.data, config.optim
        mirrors = data.flip and dataset.flips
        if wrong := config.too_few_frames(dataset.frames):
            raise UserError(f"data.name: {wrong}")
        shape = data.image_size, dataset.channels, dataset.classes
        setup = Setup(*shape, data.crop_scale, mirrors, config.sources, dataset.frames)
        self.objective: Objective = objectives.build(config, setup).to(device)
        self.progress = Progress()
        self.prepared = False
        groups = parameter_groups(self.objective, optim.weight_decay, optim.layer_decay)
        trained = any(group["params"] for group in groups)
        betas = optim.beta1, optim.beta2
        self.optimiser = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True) if trained else None
        self.per_epoch = len(dataset.train) // config.step_images
        if optim.epochs and not self.per_epoch:
            raise UserError(
                f"optim.batch_size x optim.accumulate: {config.step_images} is more than the "
                f"{len(dataset.train)} training images of {dataset.name}"
            )
        self.steps = optim.epochs * self.per_epoch if trained else 0
        # what the journal's next row is the mean of: names, their sums over steps, and how many steps
        self.names: list[str] = []
        self.sums = torch.zeros(0, device=device)
        self.counted = 0
        self.mean, self.std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
        self.model = Model(
            self._mean_patches, self.objective.patch_features, dataset, data.image_size, device
        )
        self.probe = self._probe()
        if config.run.checkpointing:
            recompute(self.objective)
        if config.run.compile:
            self.objective.compile()
        self.forward: Callable[..., dict[str, Tensor]] = self.objective

    def _probe(self) -> Float[Tensor, "b c s s"]:
        """The images on which collapse is watched."""
        some, side = self._some_images(self.config.watch.images), self.config.data.image_size
        return self.model.normalised(*some.read(torch.arange(len(some)), side))

    def _mean_patches(self, images: Float[Tensor, "b c s s"]) -> Float[Tensor, "b d"]:
        return self.objective.patch_features(images).mean(dim=1)

    def _some_images(self, count: int, split: Literal["test", "val"] = "test") -> Subset:
        """At most so many that are not trained on, the same for every trial."""
        images = self.dataset.val if split == "val" else self.dataset.test
        return Subset(images, torch.randperm(len(images), generator=generator(0, "probe"))[:count])

    def autocast(self) -> torch.autocast:
        """bfloat16 where the config says so; the weights stay float32."""
        enabled = self.config.optim.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def losses(self, batch: MicroBatch, scheduled: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        """The objective's figures of a micro-batch."""
        batch = batch.each(lambda tensor: tensor.to(self.device, non_blocking=True))
        views = self.views(batch)
        with self.autocast():
            return self.forward(views, batch.labels, batch.draw.own, scheduled)

    def views(self, batch: MicroBatch) -> Float[Tensor, "b v c s s"]:
        """Its views, cropped on the device as they were drawn, and normalised."""
        images, boxes, mirrored = (
            part.flatten(0, 1) for part in (batch.images, batch.draw.boxes, batch.draw.mirrored)
        )
        crops = normalise(crop(images, boxes, self.objective.crop_side, mirrored), self.mean, self.std)
        return crops.view(*batch.images.shape[:2], *crops.shape[1:])

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Make each step with the trial's other processes, while the block runs.

        Raises:
            RuntimeError: they do not stand where this one does.
        """
        if processes.size() == 1:
            yield
            return
        weights = sum(parameter.double().sum().item() for parameter in self.objective.parameters())
        processes.check_alike(self.progress.step, self.steps, self.dataset.version, weights)
        # An objective may leave parameters out of a step. And where PyTorch must look for those, it keeps to
        # its first order of adding up; else a trial that goes on would come to other sums than before.
        shared = DistributedDataParallel(
            self.objective, find_unused_parameters=True, gradient_as_bucket_view=True
        )
        shared.broadcast_buffers = False  # told so when it is made, it warns from PyTorch 2.15 on
        self.forward = shared
        yield
        self.forward = self.objective

    def exchanging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """For a micro-batch's forward and backward pass: gradients are exchanged in the step's last one."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            return contextlib.nullcontext()
        alone: contextlib.AbstractContextManager[None] = self.forward.no_sync()
        return alone

    def feed(self, until: int, pin: bool = False) -> Iterator[Iterator[MicroBatch]]:
        """This process' micro-batches of each step up to `until`, while `step` makes them.

        Where the objective seeks something in the training images, no step is drawn before that is known: it
        hangs on the weights at that step alone, so that a trial that goes on from there finds it again.
        """
        stretch = self.objective.seeks_every * self.per_epoch or until
        while (step := self.progress.step) < until:
            if step and step % stretch == 0:
                self.seek()
            end, where = min(until, step - step % stretch + stretch), (processes.rank(), processes.size())
            yield from batches(self.dataset.train, self.config, self.objective, step, end, *where, pin)

    @torch.no_grad()
    def seek(self) -> None:
        """Have the objective look at all training images, each process at its part."""
        train, side = self.dataset.train, self.config.data.image_size
        parts = torch.split(torch.arange(len(train)), self.config.optim.batch_size)
        mine = parts[processes.rank() :: processes.size()]
        self.objective.eval()
        read = ahead(train.read(rows, side, WHOLE.repeat(len(rows), 1)) for rows in mine)
        seen = [self.objective.seek(self.model.normalised(*images)).float().cpu() for images in read]
        self.objective.train()
        found = torch.zeros(len(train), seen[0].shape[1])
        found[torch.cat(mine)] = torch.cat(seen)
        processes.all_reduce(found)
        self.objective.sought(found)

    def step(self, micro_batches: Iterable[MicroBatch]) -> None:
        """One optimiser step and what follows it. Nothing here waits for the device.

        The gradient is the mean over the step's micro-batches, whichever processes they are spread over.
        """
        config, objective, optimiser = self.config, self.objective, self.optimiser
        assert optimiser is not None
        if not self.prepared:
            objective.prepare(config, self.dataset, resumed=self.progress.step > 0)
            self.prepared = True
        rate = learning_rate(config.optim, self.progress.step / self.per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        # tensors, because a compiled step would be compiled anew for another number
        scheduled = {name: torch.tensor(value) for name, value in self.scheduled().items()}
        figures = torch.zeros(0, device=self.device)
        accumulate, size = config.optim.accumulate, processes.size()
        first = self.progress.step * accumulate + processes.rank()
        numbers = range(first, (self.progress.step + 1) * accumulate, size)
        for number, batch in zip(numbers, micro_batches, strict=True):
            # what an objective draws while it runs, such as dropout, is the micro-batch's too
            torch.manual_seed(generator(config.seed, "forward", number).initial_seed())
            with self.exchanging(last=number == numbers[-1]):
                found = self.losses(batch, scheduled)
                if "loss" not in found:
                    raise UserError(f"{config.objective}: its forward gives {', '.join(found)}, and no loss")
                # of the processes' gradients the mean is taken
                (found["loss"] / len(numbers)).backward()  # type: ignore[no-untyped-call]
            self.names = [*found, "grad_norm"]
            now = torch.stack([*found.values()]).detach() / accumulate
            figures = figures + now if len(figures) else now
        gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        processes.all_reduce(figures)
        norm = nn.utils.get_total_norm(gradients)
        if config.optim.clip_grad:
            nn.utils.clip_grads_with_norm_(objective.parameters(), config.optim.clip_grad, norm)
        figures = torch.cat([figures, norm.view(1)])
        self.sums = self.sums + figures if self.counted else figures
        self.counted += 1
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        objective.after_step(self.scheduled())

    def scheduled(self) -> dict[str, float]:
        """What the objective schedules, at the present step."""
        return self.objective.scheduled(self.progress.step / max(self.steps, 1))

    def training_metrics(self) -> dict[str, float]:
        """Means since the last call. Waits for the device, as do the collapse measures and a checkpoint."""
        means = dict(zip(self.names, (self.sums / self.counted).tolist(), strict=True))
        self.counted = 0
        return {f"train/{name}": value for name, value in (means | self.schedule()).items()}

    def schedule(self) -> dict[str, float]:
        """What of a row of the journal is a function of the config and the step alone."""
        epoch = self.progress.step / max(self.per_epoch, 1)
        return {"lr": learning_rate(self.config.optim, epoch), "epoch": epoch, **self.scheduled()}

    @torch.no_grad()
    def collapse_metrics(self) -> dict[str, float]:
        """Collapse measures on the fixed probe batch."""
        self.objective.eval()
        measures = diagnostics(self.objective.patch_features(self.probe))
        self.objective.train()
        return {f"collapse/{name}": value.item() for name, value in measures.items()}

    def nearest(self, split: Literal["test", "val"] = "test") -> dict[str, float]:
        """Whether nearest neighbours tell images apart; among more than the probe's, as it is no curve."""

        some = self._some_images(NEAREST, split)
        self.objective.eval()
        features = torch.cat([*self.model.encoded(some, self.model.features)])
        self.objective.train()
        name = VAL_NN if split == "val" else "collapse/nn_top1"
        return {name: nn_top1(features.to(self.device), some.labels.to(self.device))}

    def took(self, seconds: float) -> tuple[float, float]:
        """The core-seconds and the GPU-seconds of so many seconds, by what the config asks for."""
        run, gpus = self.config.run, self.config.run.gpu_share if self.device.type == "cuda" else 0.0
        return seconds * run.processes * run.cpus, seconds * run.processes * gpus

    def save(self, path: Path, last: bool = False) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            path,
            content(
                self.config,
                self.objective,
                progress=vars(self.progress),
                optimiser=self.optimiser.state_dict() if self.optimiser else {},
                names=self.names,
                sums=self.sums,
                counted=self.counted,
            ),
            last,
        )

    def restore(self, path: Path) -> bool:
        """Go on from a checkpoint of the same identity; False if there is none that can be read."""
        saved = checkpoint.load_or_set_aside(path)
        if saved is None:
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
        if "core_seconds" not in saved["progress"]:  # an older checkpoint: as if it had always run like this
            self.progress.core_seconds, self.progress.gpu_seconds = self.took(self.progress.seconds)
        self.objective.load_state_dict(saved["objective"])
        if self.optimiser and saved["optimiser"]:
            self.optimiser.load_state_dict(saved["optimiser"])
        self.names, self.sums = list(saved["names"]), saved["sums"].to(self.device)
        self.counted = saved["counted"]


def content(config: Config, objective: Objective, **rest: Any) -> dict[str, Any]:
    """A checkpoint of an objective; without the `rest`, of one that no step was made with."""
    start = {"progress": {}, "optimiser": {}, "names": [], "sums": torch.zeros(0), "counted": 0}
    return {"identity": config.identity, "objective": objective.state_dict()} | start | rest


# ------------------------------------------------------------------------------------------ a trial


class Journal:
    """What the trainer writes of a trial: rows, and the state that the newest of them leave.

    The state is kept here, so that a row costs no reading; the disk is waited for with each checkpoint.
    """

    def __init__(self, folder: TrialFolder, state: State, report: Report) -> None:
        self.folder, self.state, self.report = folder, state, report

    def note(self, step: int, metrics: dict[str, float], **fields: Any) -> None:
        """Add a row."""
        self.folder.append(step, metrics)
        update = fields | {"step": step, "metrics": self.state.metrics | metrics}
        self.state = self.folder.write(self.state.model_copy(update=update), durable=False)
        self.report(step, metrics)

    def set(self, **fields: Any) -> State:
        """Change the state, for good."""
        self.state = self.folder.write(self.state.model_copy(update=fields))
        return self.state


def _use_cores(config: Config) -> None:
    """Take no more of the machine than the trial was given."""
    torch.set_num_threads(config.run.threads)
    set_num_threads(config.run.cpus)


def ignore(step: int, metrics: dict[str, float]) -> None:
    """The report of a trial that nobody listens to."""


def train(
    config: Config,
    folder: TrialFolder,
    evaluations: Sequence[Evaluation] = (),
    report: Report = ignore,
    stop: Stop = lambda: False,
    ending: Ending | None = None,
) -> State:
    """Bring one trial up to date: train it from where its folder says, and judge it by what is missing.

    A diverged or collapsed trial is a finished result that says so. When `stop()` turns true the trial
    saves a checkpoint at the next step and returns with status `interrupted`. `ending` may end it early; one
    that was ended so and would not be by this rule goes on.

    Raises:
        UserError: the data set is not there, a GPU is asked for where none is, or the like.
        Busy: another process runs this trial.
    """
    folder.create(config)
    with folder.lock():
        state = folder.state()
        if goes_on(state, folder, ending):
            folder.reopen()
            state = folder.state()
        if state.status == "done" and not folder.missing(evaluations, config.data.version):
            return state
        begun = time.monotonic()
        device = choose_device(config)
        _use_cores(config)
        run = Run(config, open_planned(config), device)
        folder.fetch()
        resumed = run.restore(folder.checkpoint)
        if state.status != "done":
            state = _train(run, folder, resumed, report, stop, ending, begun)
        elif (run.steps or config.imported) and not resumed:
            absent = ", ".join(one.name for one in folder.missing(evaluations, config.data.version))
            raise UserError(
                f"{folder.checkpoint}: is gone, so that {absent} cannot be judged; what was judged before "
                f"stands; delete {folder.path} to train the trial again"
            )
        if state.status == "done" and (missing := folder.missing(evaluations, config.data.version)):
            _evaluate(run, folder, missing, stop)
        return state


def _train(
    run: Run,
    folder: TrialFolder,
    resumed: bool,
    report: Report,
    stop: Stop,
    ending: Ending | None,
    begun: float,
) -> State:
    """From the checkpoint to the end, or until a stop."""
    earlier = replace(run.progress)
    journal = _journal(run, folder, resumed, report)

    def keep_time() -> float:
        """Bring the hours up to date; the seconds. Others may have come this far with other processes."""
        spent, progress = time.monotonic() - begun, run.progress
        cores, gpus = run.took(spent)
        progress.core_seconds, progress.gpu_seconds = earlier.core_seconds + cores, earlier.gpu_seconds + gpus
        progress.seconds = earlier.seconds + spent
        return progress.seconds

    def note(metrics: dict[str, float], **fields: Any) -> None:
        epoch = run.progress.step // max(run.per_epoch, 1)
        journal.note(run.progress.step, metrics, epoch=epoch, seconds=keep_time(), **fields)

    def save(last: bool = False) -> None:
        keep_time()
        folder.sync()
        run.save(folder.checkpoint, last)

    ended = ""

    def over() -> bool:
        """Whether the rule ends the trial at this look, and the end would call it what it is ended for."""
        nonlocal ended
        if not ending:
            return False
        epoch = run.progress.step / run.per_epoch
        if ending.looks_at(epoch) and epoch not in folder.looks():  # else it goes on from this look
            note(run.nearest("val") | {"train/epoch": epoch})
        found = ending.verdict(folder.rows()[0])
        same = found.startswith(PRUNED) or (found and _outcome(run, "ended")[0] == "collapsed")
        ended = found if same else ""
        return bool(ended)

    if run.progress.step == 0:
        note(_first_look(run))
    end: End = "trained"
    if run.progress.step < run.steps:
        where = str(folder.root), folder.id, resumed
        gpus = run.device.type == "cuda"
        with processes.with_replicas(run.config.run.processes, gpus, replica, *where), run.shared():
            end = _steps(run, stop, over, note, save)
    if end == "interrupted":
        return journal.set(status="interrupted", step=run.progress.step, seconds=keep_time())
    if end in ("trained", "ended"):
        save(last=True)
    outcome, ratios = (PRUNED, {}) if ended.startswith(PRUNED) else _outcome(run, end)
    note(ratios | _took(run, keep_time(), end), outcome=outcome, ended=ended, eta_seconds=0.0)
    folder.sync()
    return journal.set(status="done", finished=time.time())


def _journal(run: Run, folder: TrialFolder, resumed: bool, report: Report) -> Journal:
    """The trial's, cut back to the checkpoint; it says that the trial runs, where, and by which code."""
    old = folder.state()
    folder.rewind(run.progress.step if resumed else -1)
    before = folder.state() if resumed else State(rewinds=folder.state().rewinds, memory=old.memory)
    journal = Journal(folder, before, report)
    journal.set(
        status="running",
        error=None,
        started=old.started or time.time(),
        device=device_name(run.device),
        host=platform.node(),
        python=platform.python_version(),
        pid=os.getpid(),
        steps=run.steps,
        epochs=run.config.optim.epochs,
        code=joined(before.code, code_digest()),
        commit=joined(before.commit, code_version()),
        **libraries(),
    )
    return journal


def _first_look(run: Run) -> dict[str, float]:
    """What the encoder is before training, which a collapse is told by."""
    found = run.collapse_metrics() | run.nearest()
    run.progress.initial_rank = found["collapse/rank"]
    run.progress.initial_spread = found["collapse/spread"]
    run.progress.initial_nn = found["collapse/nn_top1"]
    return found


def _took(run: Run, seconds: float, end: "End") -> dict[str, float]:
    """What the trial took, and what ending early has saved of it, by its own pace."""
    took = {SECONDS: seconds, "system/core_seconds": run.progress.core_seconds}
    if run.progress.gpu_seconds:
        took["system/gpu_seconds"] = run.progress.gpu_seconds
    left = run.steps / run.progress.step - 1 if end == "ended" else 0.0
    return took | {SAVED[name]: much * left for name, much in took.items() if left and name in SAVED}


End = Literal["trained", "ended", "diverged", "interrupted"]
PRUNED = "pruned"
"""The outcome of what a search has ended; the reason begins with it."""


def _outcome(run: Run, end: End) -> tuple[str | None, dict[str, float]]:
    """What training came to, and what is left of the representation; see `lmim.metrics.kept`."""
    if end == "diverged":
        return "diverged", {}
    now, first = run.collapse_metrics(), run.progress
    ratios = {RANK_RATIO: now["collapse/rank"] / first.initial_rank}
    if math.isfinite(first.initial_nn):  # unknown where an older checkpoint went on
        nn, before = run.nearest(), first.initial_nn
        gain = (nn["collapse/nn_top1"] - before) / max(min(before, 100 - before), 1.0)
        ratios |= nn | {
            NN_GAIN: gain,
            SPREAD_RATIO: now["collapse/spread"] / max(first.initial_spread, 1e-12),
        }
    if not math.isfinite(kept(ratios)):
        return "diverged", {}
    if not run.steps:
        return None, ratios
    return ("collapsed" if kept(ratios) < COLLAPSED else "learned"), ratios


def joined(earlier: str | None, now: str) -> str:
    """What a trial ran on, in order: a report must see that the code changed on its way.

    >>> joined(None, "a"), joined("a", "a"), joined("a", "b"), joined("a; then b", "b")
    ('a', 'a', 'a; then b', 'a; then b')
    """
    if earlier and earlier.split("; then ")[-1] == now:
        return earlier
    return "; then ".join(filter(None, [earlier, now]))


def _steps(run: Run, stop: Stop, over: Stop, note: Callable[..., None], save: Callable[[], None]) -> End:
    """The steps that are left, in every process of the trial; the first one's wishes count for all.

    `over` is asked after each look at collapse, also where a trial goes on from one: a kill in between must
    not change where it ends.
    """
    config, progress = run.config, run.progress
    look = run.per_epoch * config.watch.every_epochs
    if progress.step and progress.step % look == 0 and processes.broadcast(over()):
        return "ended"
    saved, started_at = time.monotonic(), (time.monotonic(), progress.step)
    for micro_batches in run.feed(run.steps, pin=run.device.type == "cuda"):
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
        watched = progress.step % look == 0
        if (watched or last) and processes.rank() == 0:
            note(run.collapse_metrics())
        if last:
            return "trained"
        if watched and processes.broadcast(over()):
            return "ended"
        if stopping or time.monotonic() - saved > config.run.checkpoint_seconds:
            save()
            saved = time.monotonic()
            if stopping:
                return "interrupted"
    return "trained"


def replica(team: processes.Team, rank: int, root: str, id: str, resumed: bool) -> None:
    """What the other processes of a trial do: the same steps, with their part of each batch."""
    folder = TrialFolder(Path(root), id)
    config = folder.config()
    _use_cores(config)
    device = choose_device(config)
    if device.type == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    run = Run(config, open_planned(config), device)
    if resumed:
        run.go_on_from(checkpoint.load(folder.checkpoint))
    with team.join(rank), run.shared():
        _steps(run, lambda: False, lambda: False, lambda *_, **__: None, lambda: None)


# ------------------------------------------------------------------------------------- its judgement


def _evaluate(run: Run, folder: TrialFolder, missing: Sequence[Evaluation], stop: Stop) -> None:
    """Judge the trial's encoder by the protocols that have not."""

    objective, data = run.objective.eval(), run.config.data

    def pausing(view: View) -> View:
        def found(images: Float[Tensor, "b c s s"], **how: Any) -> Tensor:
            if stop():
                raise Stopped
            return view(objective, images, **how)

        return found

    encode, patches = pausing(image_features), pausing(patch_features)
    logits = getattr(objective, "logits", None)
    with contextlib.suppress(Stopped):
        trained = Trained(objective, run.config, folder.path, stop)
        judged = judge(
            encode, run.dataset, data.image_size, missing, run.device, logits, patches, trained=trained
        )
        for evaluation, found in judged:
            write_result(
                evaluation.file(folder.path, data.version or ""),
                Result(
                    **vars(evaluation),
                    **vars(found),
                    data_version=data.version or "",
                    code=code_digest(),
                    commit=code_version(),
                    **libraries(),
                    device=device_name(run.device),
                    date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                ),
            )
            if stop():
                break
