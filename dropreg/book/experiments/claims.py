"""The claims that the ledger judges, each as a contrast of an experiment's arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropreg.book.experiments.tasks import Size
from dropreg.errors import Choice

Weights = Mapping[str, float]
"""A sum of arms' log perplexities: for each arm its weight."""


class Expected(Choice):
    """What is said of two arms."""

    HIGHER = "higher"
    """The first has a higher perplexity than the second."""
    MOST = "most"
    """Of the gap that is the whole, the two arms' is more than the claim's share."""
    LITTLE = "little"
    """Of the gap that is the whole, the two arms' is less than the claim's share."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the paper that runs can support or not.

    A gap is a pair of arms: by how much the first one's log perplexity is higher than the second's.

    That one way of training is as good as another is not claimed as an equality, which too few
    seeds would always grant, but as a recovery: of the gap that a third arm leaves (the whole), it
    closes most (the part). Half is what is asked for where a trial must show that a treatment
    retains the effect of another one (FDA 2016, Non-Inferiority Clinical Trials).

    Attributes:
        text: The claim, in our words.
        source: Where the paper makes it.
        figure: The paper's own number, or "" where it gives a curve only.
        experiment: The experiment that tests it.
        size: Its size.
        part: A gap.
        whole: The gap that it is a part of; None with "higher".
        expected: What is said of them.
        share: The share of the whole that decides.
    """

    text: str
    source: str
    figure: str = ""
    experiment: str
    size: Size = Size.SMALL
    part: tuple[str, str]
    whole: tuple[str, str] | None = None
    expected: Expected = Expected.HIGHER
    share: float = 0.5

    @property
    def arms(self) -> list[str]:
        """The names of all arms that it compares."""
        return list(dict.fromkeys((*self.part, *(self.whole or ()))))

    @property
    def contrast(self) -> tuple[float, ...]:
        """Factors of part and whole, whose sum is positive if the claim is true."""
        if self.expected is Expected.HIGHER:
            return (1.0,)
        return (1.0, -self.share) if self.expected is Expected.MOST else (-1.0, self.share)


def _recovers(
    text: str, source: str, arm: str, *, of: str, like: str = "Dropout_1", **options: Any
) -> Claim:
    """Of what arm `of` lacks of arm `like`, an arm closes most."""
    return Claim(
        text=text,
        source=source,
        part=(of, arm),
        whole=(of, like),
        expected=Expected.MOST,
        **options,
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        text="Dropout helps.",
        source="Figure 1",
        figure="best about 120 without it",
        experiment="lstm",
        part=("none", "Dropout_1"),
    ),
    Claim(
        text="More masks a step make it worse: 4 against 1.",
        source="Figure 1",
        experiment="lstm",
        part=("Dropout_4", "Dropout_1"),
    ),
    Claim(
        text="More masks a step make it worse: 16 against 1.",
        source="Figure 1",
        experiment="many-masks",
        part=("Dropout_16", "Dropout_1"),
    ),
    Claim(
        text="Still, what 16 masks leave is far better than no dropout.",
        source="Figure 1 (k = 32)",
        experiment="many-masks",
        part=("none", "Dropout_16"),
    ),
    _recovers(
        "The noise of a pair of masks, put back, recovers Dropout_1 from 4 masks.",
        "Figure 2",
        "Dropout_4 + pair",
        of="Dropout_4",
        experiment="lstm",
    ),
    _recovers(
        "… and from 16.",
        "Figure 2",
        "Dropout_16 + pair",
        of="Dropout_16",
        experiment="many-masks",
    ),
    Claim(
        text="R_approx alone is better than dropout with much of its noise averaged away.",
        source="Figure 3 (k = 32)",
        experiment="many-masks",
        part=("Dropout_16", "R_approx"),
    ),
    Claim(
        text="R_approx alone is not as good as Dropout_1.",
        source="Figure 3",
        experiment="lstm",
        part=("R_approx", "Dropout_1"),
    ),
    *(
        _recovers(
            f"The derived noise makes Dropout_{k} track Dropout_1.",
            "Figure 4",
            f"Dropout_{k} + xi_approx",
            of=f"Dropout_{k}",
            experiment=experiment,
        )
        for k, experiment in ((2, "lstm"), (4, "lstm"), (16, "many-masks"))
    ),
    _recovers(
        "R_approx and xi_approx together match Dropout_1, with nothing tuned.",
        "Figure 5, Tables 3 and 4",
        "R_approx + xi_approx",
        of="R_approx",
        experiment="lstm",
    ),
    Claim(
        text="The noise adds to what R_approx does alone.",
        source="Figures 3 and 5",
        experiment="lstm",
        part=("R_approx", "R_approx + xi_approx"),
    ),
    Claim(
        text="The identity in place of H_out, tuned, is about as weak as l2, tuned.",
        source="Section 5.2",
        figure="108.76",
        experiment="ablations",
        part=("l2", "identity"),
        whole=("l2", "R_approx"),
        expected=Expected.LITTLE,
    ),
    Claim(
        text="The identity in place of H_out is weaker than R_approx.",
        source="Section 5.2",
        figure="108.76",
        experiment="ablations",
        part=("identity", "R_approx"),
    ),
    _recovers(
        "The loss Jacobian in place of H_out, tuned, is as good as R_approx.",
        "Table 1",
        "loss Jacobian",
        of="none",
        like="R_approx",
        experiment="ablations",
        share=0.9,  # of all that R_approx gains, half would be no claim
    ),
    Claim(
        text="The loss Jacobian with xi_approx is still not as good as dropout.",
        source="Table 1",
        experiment="ablations",
        part=("loss Jacobian + xi_approx", "Dropout_1"),
    ),
    Claim(
        text="With more text Transformer-XL feels little of the implicit effect that it feels with "
        "less: 4 masks against 1.",
        source="Table 2",
        experiment="transformer-text",
        part=("Dropout_4, more text", "Dropout_1, more text"),
        whole=("Dropout_4", "Dropout_1"),
        expected=Expected.LITTLE,
    ),
    Claim(
        text="With less text it feels a weak one.",
        source="Table 2 (a fifth of the text)",
        experiment="transformer-text",
        part=("Dropout_4", "Dropout_1"),
    ),
    _recovers(
        "R_approx does nearly all that dropout does on Transformer-XL with more text.",
        "Table 2",
        "R_approx, more text",
        of="none, more text",
        like="Dropout_1, more text",
        figure="24.12, within 0.7 of dropout",
        experiment="transformer-text",
    ),
    Claim(
        text="With more text a QRNN feels little of the implicit effect that it feels with less: "
        "4 masks against 1.",
        source="QRNN experiment",
        experiment="qrnn-text",
        part=("Dropout_4, more text", "Dropout_1, more text"),
        whole=("Dropout_4", "Dropout_1"),
        expected=Expected.LITTLE,
    ),
    _recovers(
        "An antithetic pair's even and odd part together match Dropout_1.",
        "ours",
        "even + odd",
        of="even",
        experiment="lstm",
    ),
    Claim(
        text="The even part alone, without the noise, is worse than both parts.",
        source="ours",
        experiment="lstm",
        part=("even", "even + odd"),
    ),
    *(
        claim
        for experiment, size, where in (
            ("lstm", Size.SMALL, ""),
            ("lstm-medium", Size.MEDIUM, " on five times the text"),
            ("lstm-kjv", Size.SMALL, " on a text on which nothing was tuned"),
            ("falling-rate", Size.SMALL, " where the learning rate falls"),
        )
        for claim in (
            _recovers(
                f"Most of what dropout gains{where} is the explicit effect's.",
                "ours",
                "R_approx",
                of="none",
                experiment=experiment,
                size=size,
            ),
            Claim(
                text=f"The noise adds to the explicit effect{where}.",
                source="ours",
                experiment=experiment,
                size=size,
                part=("R_approx", "R_approx + xi_approx"),
            ),
        )
        if where or claim.whole  # without a where the second is the paper's own
    ),
    *(
        Claim(
            text=f"The noise adds to {of} where gradients are clipped at 1.",
            source="ours",
            experiment="clip",
            part=part,
        )
        for of, part in (
            ("R_approx", ("R_approx", "R_approx + xi_approx")),
            ("the even part", ("even", "even + odd")),
        )
    ),
    *(
        Claim(
            text=f"Both derived effects at q = 0.6, their best, beat Dropout_1 at q = {q}.",
            source="ours, from the first edition's runs",
            experiment="rates",
            part=(f"Dropout_1, q = {q}", "R_approx + xi_approx, q = 0.6"),
        )
        for q in (0.2, 0.4, 0.6)
    ),
    Claim(
        text="One probe a step has a noise that acts: R_approx by 16 probes is worse.",
        source="ours",
        experiment="many-masks",
        part=("R_approx, 16 probes", "R_approx"),
    ),
)
"""Every claim of the ledger; the paper's in its order, then ours."""
