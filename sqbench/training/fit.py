"""Training of a quantized network on labelled images.

It uses AdamW, a cosine schedule, and the float model as teacher. It keeps the best epoch.
"""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from sqbench.console.progress import track
from sqbench.data.images import LabelledImages
from sqbench.errors import UserError
from sqbench.models.base import Model
from sqbench.parts.task import Task
from sqbench.rounding.trained import Qat
from sqbench.storage import tensorfile
from sqbench.storage.files import digest
from sqbench.training import checkpoint as checkpoints
from sqbench.training.checkpoint import Progress
from sqbench.training.network import Network

log = logging.getLogger(__name__)


def fit(task: Task, method: Qat, training: LabelledImages, *, seed: int, checkpoint: Path | None = None) -> Model:
    """The model of a task after quantization-aware training by a method. The float model stays as it is.

    The same task, method, images and seed give the same bits on the CPU of one machine, interrupted or not.

    Args:
        seed: decides the draw of images, the held-out ones, and the order in each epoch.
        checkpoint: a file that is read first, and written after each epoch. It stays there.

    Returns:
        The quantized model. Its `report` is that of any quantized model, with the number of gradient steps and the learning curve.

    Raises:
        UserError: there is nothing to train on, or training diverges.
    """
    if task.model.kind != "images":
        raise UserError(f"method: {task.model.name} reads {task.model.kind}; qat and qat_lsq train on labelled images")
    held, learnt = split(training, method, seed)
    network = Network.of(task, method)
    run = Training(task, method, network, training, held, learnt, seed)
    head = getattr(task.model, "head", None)
    key = digest(
        {
            "version": checkpoints.VERSION,
            "method": [type(method).__name__, asdict(method)],
            "scheme": task.scheme.as_dict(),
            "model": task.model.fingerprint,
            "head": None if head is None else tensorfile.fingerprint(head.state_dict()),
            "start": tensorfile.fingerprint(network.state()),
            "images": [training.split.fingerprint, training.preprocessing.fingerprint, len(training)],
            "seed": seed,
            "device": task.model.device.type,
        }
    )
    progress = run.complete(checkpoint, key)
    network.restore(progress.best)
    module, report = network.settled(task)
    return task.model.with_module(module, {**report, "gradient_steps": progress.step, "training": run.about(progress)})


def split(training: LabelledImages, method: Qat, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of the images that are held out, and of those that are learnt from.

    Raises:
        UserError: fewer than two images are left to learn from.
    """
    count = len(training)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = order[: method.images]
    held = math.ceil(method.validation * len(order))
    if len(order) - held < 2:
        raise UserError(
            f"method.images={method.images}, method.validation={method.validation}: the training split has {count} images, which"
            f" leaves {max(len(order) - held, 0)} to learn from; 2 are needed (a smaller data.images, or data.train_path=...)"
        )
    return order[:held], order[held:]


class Training:
    """One run of gradient steps over a network."""

    def __init__(
        self, task: Task, method: Qat, network: Network, images: LabelledImages, held: Tensor, learnt: Tensor, seed: int
    ) -> None:
        self.teacher = task.model
        self.student = task.model.with_module(network.module, None)
        self.method, self.network, self.images, self.held, self.learnt, self.seed = method, network, images, held, learnt, seed
        # Every batch is whole, for BatchNorm's sake. The order is new in each epoch, so that no image is left out for good.
        self.batch = min(method.batch, len(learnt))
        self.steps_per_epoch = len(learnt) // self.batch
        self.total = method.epochs * self.steps_per_epoch
        weights, steps = network.parameters()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in weights if p.dim() > 1], "peak": method.lr, "weight_decay": method.weight_decay},
            {"params": [p for p in weights if p.dim() <= 1], "peak": method.lr},
            {"params": steps, "peak": method.range_lr},
        ]
        self.parameters = [*weights, *steps]
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=method.lr, weight_decay=0.0)

    def complete(self, checkpoint: Path | None, key: str) -> Progress:
        """Train from the checkpoint, or from the start, to the end."""
        found = None if checkpoint is None else checkpoints.load(checkpoint, key, self.optimizer)
        if found is not None:
            progress, state = found
            self.network.restore(state)
        else:
            progress = Progress(best=self._snapshot())
            progress.curve.append({"epoch": 0, "loss": None, "lr": None, **self._validate()})
        while progress.epoch < self.method.epochs and not self._stopped(progress):
            self._epoch(progress)
            if checkpoint is not None:
                checkpoints.save(checkpoint, key, progress, self.network.state(), self.optimizer)
        return progress

    def _epoch(self, progress: Progress) -> None:
        epoch, epochs = progress.epoch + 1, self.method.epochs
        generator = torch.Generator().manual_seed(int(digest([self.seed, epoch])[:15], 16))
        order = self.learnt[torch.randperm(len(self.learnt), generator=generator)][: self.steps_per_epoch * self.batch]
        total, count = torch.zeros((), device=self.teacher.device), 0
        batches = self.images.batches(self.batch, order)
        for batch in track(batches, f"epoch {epoch} of {epochs}", total=self.steps_per_epoch):
            total += self._step(progress.step, batch.images, batch.labels)
            progress.step += 1
            count += 1
        loss = float(total) / max(count, 1)
        lr = self.method.lr * self._falling(progress.step - 1)
        entry: dict[str, Any] = {"epoch": epoch, "loss": loss, "lr": lr, **self._validate()}
        if not math.isfinite(loss + (entry["validation_loss"] or 0.0)):
            raise UserError(f"method.lr={self.method.lr}: training diverged in epoch {epoch} (loss {loss}); use a smaller one")
        progress.epoch = epoch
        progress.curve.append(entry)
        best = progress.curve[progress.best_epoch]["validation_loss"]
        if best is None or entry["validation_loss"] < best:
            progress.best_epoch, progress.best = epoch, self._snapshot()
        log.info(
            "epoch %d of %d: %s",
            epoch,
            epochs,
            ", ".join(f"{k} {v:.4g}" for k, v in entry.items() if k != "epoch" and v is not None),
        )

    def _step(self, step: int, images: Tensor, labels: Tensor) -> Tensor:
        self.network.observe(step < round((1 - self.method.freeze) * self.total))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._falling(step)
        loss = self._loss(images, labels)[0]
        self.optimizer.zero_grad()
        loss.backward(inputs=self.parameters)  # no other parameter gets a gradient, such as a head's
        self.optimizer.step()
        return loss.detach()

    def _falling(self, step: int) -> float:
        """The factor of the learning rates: a cosine from 1 to 0 (Loshchilov and Hutter, 2017, without restarts)."""
        return (1 + math.cos(math.pi * step / self.total)) / 2

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and how many of its images the network gets right.

        The loss is (1 - distill) cross entropy + distill T^2 KL(teacher / T || student / T), both means over
        images (Hinton et al., 2015).
        """
        share, temperature = self.method.distill, self.method.temperature
        logits, labels = self.student.forward(images).float(), labels.to(self.teacher.device)
        if torch.is_grad_enabled() and not logits.requires_grad:
            raise UserError(
                "head: the model's head passes no gradient to its features, so nothing can be learnt; use head=own or probe"
            )
        loss = (1 - share) * cross_entropy(logits, labels) if share < 1 else logits.new_zeros(())
        if share > 0:
            with torch.no_grad():
                target = log_softmax(self.teacher.forward(images).float() / temperature, dim=-1)
            divergence = kl_div(log_softmax(logits / temperature, dim=-1), target, reduction="batchmean", log_target=True)
            loss = loss + share * temperature**2 * divergence
        return loss, (logits.argmax(1) == labels).sum()

    @torch.no_grad()
    def _validate(self) -> dict[str, float | None]:
        """Loss and top-1 on the held-out images, with everything fixed."""
        self.network.observe(False)
        loss, right, count = 0.0, 0, 0
        for batch in self.images.batches(self.batch, self.held):
            value, correct = self._loss(batch.images, batch.labels)
            loss, right, count = loss + float(value) * len(batch.labels), right + int(correct), count + len(batch.labels)
        return {"validation_loss": loss / count if count else None, "validation_top1": right / count if count else None}

    def _stopped(self, progress: Progress) -> bool:
        patience = self.method.patience
        return patience is not None and progress.epoch - progress.best_epoch >= patience

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.network.state().items()}

    def about(self, progress: Progress) -> dict[str, Any]:
        """The entries of a run in the record."""
        return {
            "gradient_steps": progress.step,
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "stopped_early": progress.epoch < self.method.epochs,
            "images": len(self.learnt),
            "validation_images": len(self.held),
            "batch": self.batch,
            "optimizer": "AdamW",
            "schedule": "cosine to 0",
            "seed": self.seed,
            "curve": progress.curve,
        }
