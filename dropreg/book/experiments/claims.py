"""The claims that the ledger judges: each compares two arms of an experiment."""

from __future__ import annotations

from dataclasses import dataclass

from dropreg.errors import Choice


class Expected(Choice):
    """What the paper says of the first arm against the second."""

    BETTER = "better"
    """A lower perplexity."""
    WORSE = "worse"
    """A higher perplexity."""
    EQUAL = "equal"
    """The same perplexity, within the claim's margin."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the paper that a comparison can support or not.

    Attributes:
        text: The claim, in our words.
        source: Where the paper makes it.
        figure: The paper's own number, or "" where it gives a curve only.
        experiment: The experiment that tests it.
        first: Name of an arm.
        second: Name of the arm it is compared with.
        expected: What the paper says of the first.
        margin: How far apart two perplexities are that count as equal, as a share.
    """

    text: str
    source: str
    figure: str = ""
    experiment: str
    first: str
    second: str
    expected: Expected
    margin: float = 0.02


CLAIMS: tuple[Claim, ...] = (
    Claim(
        text="Dropout helps.",
        source="Figure 1",
        figure="best about 120 without it",
        experiment="dropout-k",
        first="Dropout_1",
        second="none",
        expected=Expected.BETTER,
    ),
    Claim(
        text="More masks a step make it worse: 4 against 1.",
        source="Figure 1",
        experiment="dropout-k",
        first="Dropout_4",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="More masks a step make it worse: 16 against 1.",
        source="Figure 1",
        experiment="dropout-k",
        first="Dropout_16",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="Still, what 16 masks leave is far better than no dropout.",
        source="Figure 1 (k = 32)",
        experiment="dropout-k",
        first="Dropout_16",
        second="none",
        expected=Expected.BETTER,
    ),
    Claim(
        text="The noise of a pair of masks, put back, recovers Dropout_1 from 4 masks.",
        source="Figure 2",
        experiment="noise-back",
        first="Dropout_4 + pair",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="… and from 16.",
        source="Figure 2",
        experiment="noise-back",
        first="Dropout_16 + pair",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="R_approx alone is better than dropout with much of its noise averaged away.",
        source="Figure 3 (k = 32)",
        experiment="explicit",
        first="R_approx",
        second="Dropout_16",
        expected=Expected.BETTER,
    ),
    Claim(
        text="R_approx alone is not as good as Dropout_1.",
        source="Figure 3",
        experiment="explicit",
        first="R_approx",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    *(
        Claim(
            text=f"The derived noise makes Dropout_{k} track Dropout_1.",
            source="Figure 4",
            experiment="noise-derived",
            first=f"Dropout_{k} + xi_approx",
            second="Dropout_1",
            expected=Expected.EQUAL,
        )
        for k in (2, 4, 16)
    ),
    Claim(
        text="R_approx and xi_approx together match Dropout_1, with nothing tuned.",
        source="Figure 5, Tables 3 and 4",
        experiment="both",
        first="R_approx + xi_approx",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The noise adds to what R_approx does alone.",
        source="Figures 3 and 5",
        experiment="both",
        first="R_approx + xi_approx",
        second="R_approx",
        expected=Expected.BETTER,
    ),
    Claim(
        text="The identity in place of H_out, tuned, is about as weak as l2, tuned.",
        source="Section 5.2",
        figure="108.76",
        experiment="ingredients",
        first="identity",
        second="l2",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The identity in place of H_out is weaker than R_approx.",
        source="Section 5.2",
        figure="108.76",
        experiment="ingredients",
        first="identity",
        second="R_approx",
        expected=Expected.WORSE,
    ),
    Claim(
        text="The loss Jacobian in place of H_out, tuned, is as good as R_approx.",
        source="Table 1",
        experiment="ingredients",
        first="loss Jacobian",
        second="R_approx",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The loss Jacobian with xi_approx is still not as good as dropout.",
        source="Table 1",
        experiment="ingredients",
        first="loss Jacobian + xi_approx",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="Transformer-XL with more text feels no implicit effect: 4 masks against 1.",
        source="Table 2",
        experiment="transformer",
        first="Dropout_4, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="With less text it feels a weak one.",
        source="Table 2 (a fifth of the text)",
        experiment="transformer",
        first="Dropout_4",
        second="Dropout_1",
        expected=Expected.WORSE,
    ),
    Claim(
        text="R_approx comes within 0.7 of dropout on Transformer-XL.",
        source="Table 2",
        figure="24.12",
        experiment="transformer",
        first="R_approx, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
        margin=0.03,
    ),
    Claim(
        text="A QRNN with more text feels no implicit effect: 4 masks against 1.",
        source="QRNN experiment",
        experiment="qrnn",
        first="Dropout_4, more text",
        second="Dropout_1, more text",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="An antithetic pair's even and odd part together match Dropout_1.",
        source="ours",
        experiment="even-odd",
        first="even + odd",
        second="Dropout_1",
        expected=Expected.EQUAL,
    ),
    Claim(
        text="The even part alone, without the noise, is worse than both parts.",
        source="ours",
        experiment="even-odd",
        first="even",
        second="even + odd",
        expected=Expected.WORSE,
    ),
)
"""Every claim of the ledger; the paper's in its order, then ours."""
