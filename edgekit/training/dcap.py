"""Training of DCAP: dense classification of base classes, then episodes of few-shot tasks.

Stage 1 learns backbone ``f`` and classifier ``(W, b)`` on pictures ``n`` of the base classes::

    L_1 = mean over n, h, w of CE(W f(I_n)[:, h, w] + b, y_n)

Stage 2 starts from all of stage 1, running statistics included, holds the classifier fixed and
learns ``f`` and the pooling ``z`` on tasks of N classes with K support pictures each::

    L_2 = CE(scores of queries) + 0.5 CE(W GAP(f(I_s)) + b, y_s)      over the support pictures s
    projection:  score_c = z_q . p_c / |p_c|        p_c = mean of the support's z of class c
    cosine:      score_c = t cos(z_q, p_c)          t learned, 10 at first

Both stages are SGD with Nesterov momentum 0.9, whose rate falls to a tenth after 80 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekit.few_shot import Metric
from edgekit.models.dcap import Dcap
from edgekit.types import Preprocessing

from .class_images import ClassImages, FewShotData
from .dcap_losses import dense_cross_entropy, episode_loss
from .episodes import (
    EpisodeShape,
    draw_episode,
    fixed_episodes,
    images_of_classes,
    require_enough,
)
from .few_shot_accuracy import episode_accuracies
from .few_shot_options import FewShotOptions, Pooling

_STEP = 1  # stream of random numbers
_MOMENTUM = 0.9
_TEMPERATURE = 10.0
_VALIDATED = 24  # pictures of each class that validation embeds
_VALIDATION_QUERIES, _VALIDATION_EPISODES, _VALIDATION_SEED = 15, 300, 0
_AT_ONCE = 64


class DcapTraining:
    """A :class:`~edgekit.training.loop.TrainingTask` of both stages."""

    metric = "accuracy on validation classes (%)"

    def __init__(
        self,
        network: Dcap,
        data: FewShotData,
        preprocessing: Preprocessing,
        options: FewShotOptions,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self._network = network.to(device)
        # channels last, as pictures come: nearly twice as fast on a CPU
        network.backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._data, self._options = data, options
        self._seed, self._device = seed, device
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(1, -1, 1, 1) * 255.0
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._temperature = nn.Parameter(torch.tensor(_TEMPERATURE, device=device))
        self._members = images_of_classes(data.base.labels)
        require_enough(self._members, options.episode, "base classes")
        self._chosen = _first_of_each(data.validation, _VALIDATED)
        shape = EpisodeShape(options.ways, options.shots, _queries(options, data.validation))
        self._episodes = list(
            fixed_episodes(
                data.validation.labels[self._chosen],
                shape,
                _VALIDATION_EPISODES,
                _VALIDATION_SEED,
                "validation classes",
            )
        )
        self._tuning = False
        self._sgd = self._stage_1()

    def step(self, index: int, spent: float) -> Mapping[str, float]:
        """Take one step of the stage that the share of the budget belongs to."""
        rng = np.random.default_rng([self._seed, _STEP, index])
        if self._options.in_tuning(spent) and not self._tuning:
            self._begin_tuning()
        for group in self._sgd.param_groups:
            group["lr"] = self._options.rate(spent) * group["factor"]
        self._network.train()
        if self._tuning and not self._options.batch_norms:
            for module in self._network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        terms = self._episode_terms(rng) if self._tuning else self._classify(rng)
        loss = torch.stack(list(terms.values())).sum()
        self._sgd.zero_grad()
        loss.backward()
        self._sgd.step()
        return {name: float(value.detach()) for name, value in terms.items()}

    def validate(self) -> float:
        """Return the mean accuracy on fixed episodes of the validation classes, percent."""
        embeddings = self.embeddings(self._data.validation, self._chosen)
        return float(episode_accuracies(embeddings, self._episodes, self._options.metric).mean())

    def embeddings(self, images: ClassImages, indices: np.ndarray) -> np.ndarray:
        """Embed pictures as the exported network will, ``[N, C]`` float32."""
        self._network.eval()
        parts = []
        with torch.no_grad():
            for start in range(0, len(indices), _AT_ONCE):
                pixels = images.pictures(indices[start : start + _AT_ONCE])
                parts.append(self._network.embed(self._input(pixels)).cpu().numpy())
        return np.concatenate(parts)

    def weights(self) -> dict[str, Tensor]:
        """Return embedding and classifier."""
        state = self._network.state_dict()
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}

    def state(self) -> dict[str, Any]:
        """Return network, temperature, stage and optimiser."""
        return {
            "network": self._network.state_dict(),
            "temperature": self._temperature.detach(),
            "tuning": self._tuning,
            "sgd": self._sgd.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` returned."""
        self._network.load_state_dict(state["network"])
        with torch.no_grad():
            self._temperature.copy_(state["temperature"])
        if state["tuning"]:
            self._begin_tuning()
        self._sgd.load_state_dict(state["sgd"])

    def _stage_1(self) -> torch.optim.SGD:
        parameters = [
            *self._network.backbone.parameters(),
            *self._network.classifier.parameters(),
        ]
        return self._optimizer([(parameters, 1.0)])

    def _begin_tuning(self) -> None:
        self._tuning = True
        self._network.classifier.requires_grad_(False)
        groups = [([*self._network.backbone.parameters()], 1.0)]
        if self._options.pooling is Pooling.ATTENTIVE:
            scorer = [*self._network.pooling.parameters()]
            groups.append((scorer, self._options.scorer_factor))
        if self._options.metric is Metric.COSINE:
            groups.append(([self._temperature], 1.0))
        self._sgd = self._optimizer(groups)

    def _optimizer(self, groups: list[tuple[list[nn.Parameter], float]]) -> torch.optim.SGD:
        return torch.optim.SGD(
            [{"params": parameters, "factor": factor} for parameters, factor in groups],
            lr=self._options.lr,
            momentum=_MOMENTUM,
            nesterov=True,
            weight_decay=self._options.weight_decay,
        )

    def _classify(self, rng: np.random.Generator) -> dict[str, Tensor]:
        base = self._data.base
        indices = rng.integers(len(base), size=self._options.batch)
        images = self._augmented(indices, rng)
        descriptors = self._network.descriptors(images)
        loss = self._class_loss(descriptors, base.labels[indices], self._options.dense)
        return {"classes": loss}

    def _episode_terms(self, rng: np.random.Generator) -> dict[str, Tensor]:
        options = self._options
        tasks = [draw_episode(self._members, options.episode, rng) for _ in range(options.episodes)]
        support = np.stack([task.support for task in tasks])  # [E, N, K]
        query = np.stack([task.query for task in tasks])
        indices = np.concatenate((support.reshape(-1), query.reshape(-1)))
        descriptors = self._network.descriptors(self._augmented(indices, rng))
        attends = options.pooling is Pooling.ATTENTIVE
        pooled = self._network.pooling(descriptors) if attends else _average(descriptors)
        first, second = pooled.split([support.size, query.size])
        losses = [
            episode_loss(z, q, options.metric, self._temperature)
            for z, q in zip(
                first.reshape(*support.shape, -1), second.reshape(*query.shape, -1), strict=True
            )
        ]
        terms = {"episodes": torch.stack(losses).mean()}
        if options.support_weight > 0:
            labels = self._data.base.labels[support.reshape(-1)]
            support_loss = self._class_loss(
                descriptors[: support.size], labels, options.dense_support
            )
            terms["support"] = options.support_weight * support_loss
        return terms

    def _class_loss(self, descriptors: Tensor, labels: np.ndarray, dense: bool) -> Tensor:
        wanted = torch.from_numpy(labels).to(self._device)
        if dense:
            return dense_cross_entropy(self._network.dense_logits(descriptors), wanted)
        return F.cross_entropy(self._network.classifier(_average(descriptors)), wanted)

    def _augmented(self, indices: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Return pictures of base classes, shifted and mirrored at random."""
        pictures = self._data.base.pictures(indices)
        shift, side = self._options.shift, pictures.shape[1]
        corners = rng.integers(0, 2 * shift + 1, (len(indices), 2))
        mirrored = rng.uniform(size=len(indices)) < 0.5
        if shift:
            margin = ((0, 0), (shift, shift), (shift, shift), (0, 0))
            padded = np.pad(pictures, margin, mode="edge")
            pictures = np.stack(
                [
                    p[row : row + side, column : column + side]
                    for p, (row, column) in zip(padded, corners, strict=True)
                ]
            )
        if self._options.mirror and self._data.mirrored:
            pictures = np.where(mirrored[:, None, None, None], pictures[:, :, ::-1], pictures)
        return self._input(pictures)

    def _input(self, pictures: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(pictures).to(self._device).permute(0, 3, 1, 2).float()
        normalized: Tensor = (pixels - self._mean) / self._std
        return normalized


def _average(descriptors: Tensor) -> Tensor:
    return descriptors.mean((2, 3))


def _first_of_each(images: ClassImages, count: int) -> np.ndarray:
    """Return the indices of the first few pictures of each class."""
    return np.concatenate([members[:count] for members in images_of_classes(images.labels)])


def _queries(options: FewShotOptions, images: ClassImages) -> int:
    """Return the queries of an episode of validation: 15, where there are as many pictures."""
    fewest = min(len(members) for members in images_of_classes(images.labels))
    return max(min(_VALIDATION_QUERIES, min(fewest, _VALIDATED) - options.shots), 1)
