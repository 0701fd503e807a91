"""What a student minimises, and how its states are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekit.rounding.learned_student import Teacher
from edgekit.rounding.student_network import StudentNetwork
from edgekit.rounding.student_ops import distillation_loss, relative_error


@dataclass(frozen=True)
class Objective:
    """The losses of a batch: distance to the float network, and to the classes wanted.

    Attributes:
        classes: whether the network's first output are logits of classes. If not, the distance is
            the squared error of all outputs, and there is no loss for classes.
        temperature: of the distillation.
        ce: weight of the classes' loss.
        layers: weight of the mean relative error of the weighted layers' outputs.
    """

    classes: bool
    temperature: float
    ce: float
    layers: float

    def terms(
        self,
        student: StudentNetwork,
        teacher: Teacher,
        inputs: tuple[Tensor, ...],
        labels: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the weighted losses by name, scalars.

        Args:
            student: the quantized network.
            teacher: the float one.
            inputs: one tensor for each network input.
            labels: classes ``[N]`` that the inputs were made for.
        """
        with torch.no_grad():
            wanted = teacher.run(*inputs)
        student.outputs.clear()
        found = student.run(*inputs)
        terms = {"kd": self._distance(found, wanted)}
        if labels is not None and self.classes and self.ce > 0:
            terms["ce"] = self.ce * F.cross_entropy(logits(found[0]), labels)
        if self.layers > 0:
            errors = [
                relative_error(value, teacher.outputs[name])
                for name, value in student.outputs.items()
            ]
            terms["layers"] = self.layers * torch.stack(errors).mean()
        teacher.outputs.clear()
        student.outputs.clear()
        return terms

    def balanced(
        self, student: StudentNetwork, teacher: Teacher, inputs: tuple[Tensor, ...]
    ) -> Objective:
        """Return the objective with the layers' weight in units of the distance at this moment.

        How far apart logits lie differs from network to network, and so does their distance.
        """
        if self.layers == 0:
            return self
        with torch.no_grad():
            terms = self.terms(student, teacher, inputs, None)
        ratio = float(terms["kd"] / terms["layers"].clamp_min(1e-12))
        return replace(self, layers=self.layers**2 * ratio)

    def judge(
        self,
        student: StudentNetwork,
        inputs: tuple[Tensor, ...],
        wanted: tuple[Tensor, ...],
        size: int,
    ) -> float:
        """Return the distance of the outputs over all inputs.

        At the temperature that is learned with: of inputs that were made for a class both networks
        are so sure that the divergence of their probabilities says little.

        Args:
            student: the quantized network.
            inputs: that no step has learned on.
            wanted: the float network's outputs for them.
            size: samples to run at once.
        """
        batches = zip(*(value.split(size) for value in inputs), strict=True)
        with torch.no_grad():
            parts = [student.run(*batch) for batch in batches]
            found = tuple(torch.cat(list(each)) for each in zip(*parts, strict=True))
            student.outputs.clear()
            return float(self._distance(found, wanted))

    def _distance(self, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
        if self.classes:
            return distillation_loss(logits(found[0]), logits(wanted[0]), self.temperature)
        return _errors(found, wanted)


def logits(scores: Tensor) -> Tensor:
    """Return logits ``[N, K]`` with at least two classes: a single score is one against zero."""
    return torch.cat([torch.zeros_like(scores), scores], 1) if scores.shape[1] == 1 else scores


def _errors(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> Tensor:
    pairs = [pair for pair in zip(found, wanted, strict=True) if pair[1].is_floating_point()]
    return torch.stack([relative_error(*pair) for pair in pairs]).mean()


def finite(terms: Mapping[str, Tensor]) -> bool:
    """Whether every loss is a number."""
    return bool(torch.stack([value.detach() for value in terms.values()]).isfinite().all())
