r"""Update rules: Algorithm 2 of Wei, Kakade and Ma (2020) as data, an objective and a noise.

One update follows the gradient of an objective, the plain loss or one that is regularized, plus a
gradient noise of mean zero. A `Rule` names the two. Both are sums of scalars, whose gradients add
up, so a rule can be put in front of any optimizer:

>>> import torch
>>> from dropreg.book.models import LSTMLanguageModel
>>> model = LSTMLanguageModel.of_size("tiny", 100)
>>> text = torch.randint(100, (2, 8))
>>> rule = Rule("dropout_k", k=4, noise="dropout_pair")
>>> step = Step(rule, model, text[:, :-1], text[:, 1:])
>>> step.backward()
>>> sorted(step.parts), rule.noise_scale == (1 - 1 / 4) ** 0.5
(['noise', 'objective'], True)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dropreg.book.models.base import State, detach
from dropreg.errors import Choice, InputError
from dropreg.explicit import ExplicitMethod
from dropreg.implicit import ImplicitMethod, implicit_noise
from dropreg.noise import Law, Probe
from dropreg.objective import NoisyLoss, clean
from dropreg.updates import replace_dropout


class Objective(Choice):
    """What the expected update descends."""

    NONE = "none"
    """The loss of the clean network."""
    L2 = "l2"
    """The clean loss and half the strength times the squared norm of all parameters."""
    DROPOUT_K = "dropout_k"
    """The loss averaged over k dropout masks (Algorithm 1)."""
    EVEN = "even"
    """The even part of the noisy loss, (l(+eta) + l(-eta))/2: dropout's objective up to fourth
    moments of the noise, without the odd orders that are most of its noise."""
    EXPLICIT = "explicit"
    """The clean loss and the strength times R_approx, by the rule's method. The methods "identity"
    and "loss_jacobian" are the ablations of Section 5.2 and Table 1."""


class GradientNoise(Choice):
    """What is added to the gradient, with mean zero."""

    NONE = "none"
    """Nothing."""
    DROPOUT_PAIR = "dropout_pair"
    """The difference of two masks' gradients over the root of 2 (Section 3.1)."""
    ANALYTIC = "analytic"
    """xi_approx with Rademacher noise (Section 4)."""
    ODD = "odd"
    """The odd part of the noisy loss, (l(+eta) - l(-eta))/2."""


@dataclass(frozen=True)
class Rule:
    """An objective and a noise.

    Attributes:
        objective: What the expected update descends.
        noise: What is added to it.
        k: Number of masks of "dropout_k".
        strength: Factor on the regularizer of "l2" and "explicit"; 1 is dropout's own.
        method: How "explicit" computes its regularizer. Its analytic noise is a central difference,
            with "central" from the same two passes; only with "sampled_labels", the published way,
            it is a double backward, as published.
        noise_scale: Factor on the noise. If None the paper's: sqrt(1 - 1/k) for "dropout_k", which
            brings the covariance back to that of a single mask, and else 1.
        every: Take "explicit" and its noise at every n-th update only, n times as strong and the
            noise sqrt(n) times: over n updates the same mean and the same covariance, at 1 + 1/n
            passes an update. The others follow the clean loss.
    """

    objective: Objective | str
    noise: GradientNoise | str = GradientNoise.NONE
    k: int = 1
    strength: float = 1.0
    method: ExplicitMethod | str = ExplicitMethod.CENTRAL
    noise_scale: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be, and fill in the noise's scale."""
        for name, kind in (
            ("objective", Objective),
            ("noise", GradientNoise),
            ("method", ExplicitMethod),
        ):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if not isinstance(self.k, int) or self.k < 1:
            raise InputError(f"k is {self.k!r}; it must be a whole number, at least 1.")
        if self.k > 1 and self.objective is not Objective.DROPOUT_K:
            raise InputError(f"k={self.k} masks belong to 'dropout_k', not to {self.objective!r}.")
        if not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"every is {self.every!r}; it must be a whole number, at least 1.")
        if self.every > 1 and self.objective is not Objective.EXPLICIT:
            raise InputError(f"every={self.every} belongs to 'explicit', not {self.objective!r}.")
        if not self.strength >= 0:
            raise InputError(f"strength is {self.strength}; it must not be negative.")
        if self.noise_scale is None:
            share = 1 - 1 / self.k if self.objective is Objective.DROPOUT_K else 1.0
            object.__setattr__(self, "noise_scale", share**0.5)

    @property
    def label(self) -> str:
        """A short name, different for different rules, that can be part of a file's name."""
        name = str(self.objective)
        if self.objective is Objective.DROPOUT_K:
            name = f"dropout_{self.k}"
        elif self.objective is Objective.EXPLICIT:
            name = str(self.method)
        if self.objective in (Objective.L2, Objective.EXPLICIT) and self.strength != 1:
            name += f"-{self.strength:g}"
        if self.noise is not GradientNoise.NONE:
            name += f"+{self.noise}"
            usual = Rule(self.objective, k=self.k).noise_scale
            name += "" if self.noise_scale == usual else f"-{self.noise_scale:g}"
        return name if self.every == 1 else f"{name}-every{self.every}"

    def at(self, update: int) -> Rule:
        """The rule of one update; itself, unless it is one for every n-th update.

        Args:
            update: Number of the update, from 0.

        Returns:
            A rule whose ``every`` is 1.
        """
        if self.every == 1:
            return self
        if update % self.every:
            return Rule(Objective.NONE)
        assert self.noise_scale is not None
        return replace(
            self,
            strength=self.strength * self.every,
            noise_scale=self.noise_scale * self.every**0.5,
            every=1,
        )

    @property
    def at_full_strength(self) -> bool:
        """Whether the network is trained under noise as strong as dropout's."""
        return self.objective in (Objective.DROPOUT_K, Objective.EVEN)


class Step:
    """One update of a model by a rule, on one batch.

    Attributes:
        parts: Values of "objective" and "noise", and for a derived rule of "clean", "explicit" and
            "implicit" before their strengths: scalars on the model's device, in float64, filled by
            `backward`. To read one there waits for the GPU.
        state: The recurrent state after the batch, without gradient. It is what a network trained
            so carries: under a mask for objectives with dropout, else of the clean network.
    """

    def __init__(
        self,
        rule: Rule,
        model: nn.Module,
        tokens: Tensor,
        targets: Tensor,
        state: State = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Bind rule, model and batch.

        Args:
            rule: The rule.
            model: One of `dropreg.book.models`, in train mode.
            tokens: Its inputs, (batch, time).
            targets: The labels, -100 where none counts.
            state: The recurrent state before the batch.
            generator: Source of the noise; the default generator if None.
        """
        self.rule, self.parts, self.state = rule, dict[str, Tensor](), state
        self._objective = NoisyLoss(model, (tokens, state), "cross_entropy", targets)
        self._generator = generator

    def backward(self) -> None:
        """Add the update's gradient to every parameter's ``.grad``, one mask at a time.

        Raises:
            LogitsError: If the model's output holds NaN.
        """
        totals: dict[str, Tensor] = {}
        for name, scalar in self._terms():
            scalar.backward()
            value = scalar.detach().double()
            totals[name] = totals[name] + value if name in totals else value
        self.parts.update(totals)

    def _terms(self) -> Iterator[tuple[str, Tensor]]:
        """Scalars whose gradients add up to the update; memory is needed for one at a time."""
        rule, objective = self.rule, self._objective
        derived = rule.objective in (Objective.EVEN, Objective.EXPLICIT)
        if rule.objective is Objective.DROPOUT_K:
            for _ in range(rule.k):
                yield "objective", self._masked() / rule.k
        elif not derived:
            loss = objective(clean)
            self._carry()
            self.parts["clean"] = loss.detach().double()
            if rule.objective is Objective.L2:
                weights = (p for p in objective.model.parameters() if p.requires_grad)
                squares = torch.stack([w.square().sum() for w in weights])
                loss = loss + 0.5 * rule.strength * squares.sum()
            yield "objective", loss
        # The passes that give an even part or R_approx give the noise that goes with it, too.
        matching = GradientNoise.ODD if rule.objective is Objective.EVEN else GradientNoise.ANALYTIC
        together = derived and rule.noise is matching
        assert rule.noise_scale is not None
        if derived:
            yield "objective", self._replacement(rule.noise_scale if together else 0.0)
        if rule.noise is GradientNoise.NONE or together:
            return
        scale = rule.noise_scale
        if rule.noise is GradientNoise.DROPOUT_PAIR:
            for sign in (+1, -1):
                yield "noise", sign * scale / 2**0.5 * self._masked(carry=rule.at_full_strength)
        else:
            method = {
                GradientNoise.ANALYTIC: ImplicitMethod.CENTRAL,
                GradientNoise.ODD: ImplicitMethod.EVEN_ODD,
            }[GradientNoise(rule.noise)]
            assert objective.targets is not None
            yield (
                "noise",
                scale
                * implicit_noise(
                    objective.model,
                    objective.inputs,
                    objective.targets,
                    method=method,
                    generator=self._generator,
                ),
            )

    def _masked(self, *, carry: bool = True) -> Tensor:
        """The loss under one dropout mask."""
        loss = self._objective(Probe(Law.BERNOULLI, self._generator).at(1.0))
        if carry:
            self._carry()
        return loss

    def _replacement(self, implicit: float) -> Tensor:
        """The loss with a derived regularizer, and noise from the same passes."""
        rule, objective = self.rule, self._objective
        even = rule.objective is Objective.EVEN
        assert objective.targets is not None
        replacement = replace_dropout(
            objective.model,
            explicit=rule.strength,
            implicit=implicit,
            method=ExplicitMethod.EVEN_ODD if even else rule.method,
            generator=self._generator,
        )
        loss = replacement.loss(objective.inputs, objective.targets)
        self.parts.update({name: part.double() for name, part in replacement.parts.items()})
        objective.output = replacement.output
        if rule.method is ExplicitMethod.CENTRAL and not even:
            with torch.no_grad():  # the two passes end in the states of a probe and its mirror
                objective(clean)
        self._carry()
        return loss

    def _carry(self) -> None:
        output: Any = self._objective.output
        self.state = detach(output[1])
