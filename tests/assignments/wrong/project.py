"""Wrong solutions of assignment 5, and what each loses.

A base is a right solution; a wrong one changes a few words of it.
"""

from __future__ import annotations

from wrong.case import Wrong
from wrong.explicit import changed

TWO = """
def two_passes(plus, minus, targets, step):
    words = plus.shape[-1]
    y = targets.flatten()
    counted = (y >= 0).double()
    plus, minus = plus.reshape(-1, words), minus.reshape(-1, words)
    t = (plus - minus) / (2 * step)
    p = torch.softmax((plus + minus) / 2, 1)
    centred = t - (p * t).sum(1, keepdim=True)
    each = (p * centred**2).sum(1) / 2
    losses = [F.cross_entropy(z, y, reduction="none") for z in (plus, minus)]
    slopes = (losses[0] - losses[1]) / (2 * step)
    total = counted.sum()
    return torch.stack([(each * counted).sum() / total, (slopes * counted).sum() / total])
"""

PERPLEXITY = """
def perplexity(losses, counts):
    losses, counts = torch.tensor(losses).double(), torch.tensor(counts).double()
    return torch.exp((losses * counts).sum() / counts.sum()).item()
"""

TRAIN = """
def train(rule, seed, epochs):
    model = new_model(seed)
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    curves = [[], []]

    def evaluate():
        model.eval()
        for curve, part in zip(curves, text()[1:]):
            curve.append(perplexity(*window_losses(model, part)))

    evaluate()
    for epoch in range(epochs):
        model.train(rule != "none")
        state = None
        for inputs, targets in training_windows():
            if isinstance(rule, list):
                e, i = rule
                objective = dropreg.replace_dropout(model, explicit=e, implicit=i)
                loss = objective.loss((inputs, state), targets)
                state = objective.output[1]
            else:
                logits, state = model(inputs, state)
                loss = F.cross_entropy(logits.transpose(1, 2), targets)
            state = detach(state)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
        evaluate()
    return curves
"""

CHOOSE = """
def choose(valid, test):
    return sorted(zip(valid, test))[0][1]
"""

COMPARE = """
def compare(first, second):
    logs = torch.tensor(first).double().log() - torch.tensor(second).double().log()
    n = len(logs)
    t = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}[n]
    return torch.stack([logs.mean(), t * logs.std() / n**0.5])
"""

VERDICT = """
def verdict(mean, half, margin):
    if abs(mean) + half < margin:
        return "equal"
    if abs(mean) > half:
        return "lower" if mean < 0 else "higher"
    return "not told apart"
"""

RIGHT = {
    "two_passes": TWO,
    "perplexity": PERPLEXITY,
    "train": TRAIN,
    "choose": CHOOSE,
    "compare": COMPARE,
    "verdict": VERDICT,
}

EXPLICIT, SLOPE, PADDING = {"two_passes-explicit"}, {"two_passes-slope"}, {"two_passes-padding"}
NONE, RULES = {"train-none"}, {"train-rules"}


def wrong(name: str, function: str, fails: set[str], says: str, *changes: tuple[str, str]) -> Wrong:
    """A wrong version of a right solution."""
    return Wrong(name, function, changed(RIGHT[function], *changes), fails, says)


WRONG = [
    wrong("drops the ½", "two_passes", EXPLICIT, "starts with ½", (".sum(1) / 2", ".sum(1)")),
    wrong(
        "one step between the passes",
        "two_passes",
        EXPLICIT,
        "distance of 2 steps",
        ("t = (plus - minus) / (2 * step)", "t = (plus - minus) / step"),
    ),
    wrong(
        "logits not divided by the distance",
        "two_passes",
        EXPLICIT,
        "not divided by the 2 steps",
        ("t = (plus - minus) / (2 * step)", "t = plus - minus"),
    ),
    wrong(
        "H_out without its second part",
        "two_passes",
        EXPLICIT,
        "tᵀHt is a variance",
        ("t - (p * t).sum(1, keepdim=True)", "t"),
    ),
    wrong(
        "identity for H_out",
        "two_passes",
        EXPLICIT,
        "all classes count alike",
        ("(p * centred**2)", "(t**2)"),
    ),
    wrong(
        "loss Jacobian for H_out",
        "two_passes",
        EXPLICIT,
        "does not see the target",
        (
            "    each =",
            "    y_safe = y.clamp(min=0)\n"
            "    centred = ((p - F.one_hot(y_safe, words)) * t).sum(1, keepdim=True)\n    each =",
        ),
    ),
    wrong(
        "sums over the words: explicit",
        "two_passes",
        EXPLICIT,
        "sum over the words",
        ("(each * counted).sum() / total", "(each * counted).sum()"),
    ),
    wrong(
        "one step between the losses",
        "two_passes",
        SLOPE,
        "lie 2 steps",
        ("(losses[0] - losses[1]) / (2 * step)", "(losses[0] - losses[1]) / step"),
    ),
    wrong(
        "losses not divided by the distance",
        "two_passes",
        SLOPE,
        "not divided by the 2 steps",
        ("(losses[0] - losses[1]) / (2 * step)", "losses[0] - losses[1]"),
    ),
    wrong(
        "sign of the slope",
        "two_passes",
        SLOPE,
        "sign is wrong",
        ("(losses[0] - losses[1])", "(losses[1] - losses[0])"),
    ),
    wrong(
        "sums over the words: slope",
        "two_passes",
        SLOPE,
        "sum over the words",
        ("(slopes * counted).sum() / total", "(slopes * counted).sum()"),
    ),
    wrong(
        "padding in the denominator",
        "two_passes",
        PADDING,
        "in the denominator",
        ("counted.sum()", "len(counted)"),
    ),
    wrong(
        "three numbers",
        "two_passes",
        {*EXPLICIT, *SLOPE, *PADDING},
        "two numbers are expected",
        ("torch.stack([", "torch.stack([total, "),
    ),
    Wrong(
        "two zeros",
        "two_passes",
        "def two_passes(plus, minus, targets, step):\n    return [0.0, 0.0]\n",
        {*EXPLICIT, *SLOPE, *PADDING},
        "not what theory says",
    ),
    wrong(
        "windows weigh alike",
        "perplexity",
        {"perplexity-words"},
        "weigh by the words",
        ("(losses * counts).sum() / counts.sum()", "losses.mean()"),
    ),
    wrong(
        "mean of perplexities",
        "perplexity",
        {"perplexity-words"},
        "the perplexities are averaged",
        (
            "torch.exp((losses * counts).sum() / counts.sum())",
            "((losses.exp() * counts).sum() / counts.sum())",
        ),
    ),
    wrong(
        "mean of the windows' perplexities",
        "perplexity",
        {"perplexity-words"},
        "perplexities of the windows",
        ("torch.exp((losses * counts).sum() / counts.sum())", "losses.exp().mean()"),
    ),
    wrong(
        "base 2", "perplexity", {"perplexity-words"}, "the base is e", ("torch.exp(", "torch.exp2(")
    ),
    wrong(
        "the loss", "perplexity", {"perplexity-words"}, "that is the mean loss", ("torch.exp(", "(")
    ),
    wrong(
        "prints in the place of return",
        "perplexity",
        {"perplexity-words", *NONE, *RULES},  # no training can be measured with it
        "returns None",
        ("    return torch", "    last = torch"),
    ),
    wrong(
        "dropout on in rule none",
        "train",
        # The zero strengths then differ from it as well, and dropout does not.
        {*NONE, *RULES},
        "dropout is on while you train",
        ('model.train(rule != "none")', "model.train()"),
    ),
    wrong(
        "evaluates under noise",
        "train",
        NONE,
        "dropout is on while you evaluate",
        ("        model.eval()\n", "        model.train()\n"),
    ),
    wrong(
        "does not clip",
        "train",
        # At this step size the training then goes astray, and no rule can be told from another.
        {*NONE, *RULES},
        "Is the gradient clipped",
        ("            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)\n", ""),
    ),
    wrong(
        "gradients add up",
        "train",
        NONE,
        "gradient of the last step",
        ("            optimizer.zero_grad()\n", ""),
    ),
    wrong(
        "does not carry the state",
        "train",
        NONE,
        "not carried",
        ("state = detach(state)", "state = None"),
    ),
    wrong(
        "another step size",
        "train",
        # A training that is not the recipe's, nor one with a slip that has a name, is no measure.
        {*NONE, *RULES},
        "not what the recipe gives",
        ("lr=LEARNING_RATE", "lr=LEARNING_RATE / 5"),
    ),
    wrong(
        "forgets to return the test text",
        "train",
        {*NONE, *RULES},
        "two lists are expected",
        ("return curves", "return curves[0]"),
    ),
    wrong(
        "the validation text twice",
        "train",
        NONE,
        "not that of the test text",
        ("text()[1:]", "(text()[1], text()[1])"),
    ),
    wrong(
        "nothing before training",
        "train",
        {*NONE, *RULES},
        "entries, before training",
        ("    evaluate()\n    for", "    for"),
    ),
    wrong(
        "another network for each rule",
        "train",
        RULES,
        "start from different weights",
        ("new_model(seed)", "new_model(seed + len(rule) - 4)"),
    ),
    wrong(
        "dropout never on",
        "train",
        RULES,
        "Is the model in train mode",
        ('model.train(rule != "none")', "model.train(isinstance(rule, list))"),
    ),
    wrong(
        "strengths not passed on",
        "train",
        RULES,
        "Do the strengths reach",
        (", explicit=e, implicit=i", ""),
    ),
    wrong(
        "strengths swapped",
        "train",
        RULES,
        "the order is [explicit, implicit]",
        ("explicit=e, implicit=i", "explicit=i, implicit=e"),
    ),
    wrong(
        "peeks at the test text",
        "choose",
        {"choose-epoch"},
        "the test text has chosen",
        ("sorted(zip(valid, test))[0][1]", "min(test)"),
    ),
    wrong(
        "reports validation",
        "choose",
        {"choose-epoch"},
        "it is the validation perplexity",
        ("[0][1]", "[0][0]"),
    ),
    wrong(
        "last epoch",
        "choose",
        {"choose-epoch"},
        "that of the last epoch",
        ("sorted(zip(valid, test))[0][1]", "test[-1]"),
    ),
    wrong(
        "second over first",
        "compare",
        {"compare-pairs"},
        "first over second",
        ("[logs.mean()", "[-logs.mean()"),
    ),
    wrong(
        "ratio, no logarithm",
        "compare",
        {"compare-pairs"},
        "ratio minus 1",
        ("[logs.mean()", "[logs.exp().mean() - 1"),
    ),
    wrong(
        "difference of perplexities",
        "compare",
        {"compare-pairs"},
        "difference of perplexities",
        (
            "torch.tensor(first).double().log() - torch.tensor(second).double().log()",
            "torch.tensor(first).double() - torch.tensor(second).double()",
        ),
    ),
    wrong(
        "1.96 for three seeds",
        "compare",
        {"compare-pairs"},
        "take Student's t",
        ("t * logs.std()", "1.96 * logs.std()"),
    ),
    wrong("forgot √n", "compare", {"compare-pairs"}, "Divide by √n", (" / n**0.5", "")),
    wrong(
        "divides by n",
        "compare",
        {"compare-pairs"},
        "take n-1",
        ("logs.std()", "logs.std(correction=0)"),
    ),
    wrong(
        "does not pair",
        "compare",
        {"compare-pairs"},
        "not paired",
        ("logs.std()", "sum(torch.tensor(v).double().log().var() for v in (first, second)) ** 0.5"),
    ),
    wrong(
        "one standard error",
        "compare",
        {"compare-pairs"},
        "standard error, 1 of them",
        ("t * logs", "logs"),
    ),
    wrong(
        "the whole width",
        "compare",
        {"compare-pairs"},
        "twice the half",
        ("t * logs", "2 * t * logs"),
    ),
    wrong(
        "one number",
        "compare",
        {"compare-pairs"},
        "two numbers are expected",
        ("return torch.stack(", "return torch.tensor(0.1) + 0 * len("),
    ),
    wrong(
        "not told apart taken for equal",
        "verdict",
        {"verdict-cases"},
        "is not 'equal'",
        ('return "not told apart"', 'return "equal"'),
    ),
    wrong(
        "no margin",
        "verdict",
        {"verdict-cases"},
        "within the margin",
        ("abs(mean) + half < margin", "False"),
    ),
    wrong(
        "lower and higher swapped",
        "verdict",
        {"verdict-cases"},
        "lies below 0",
        ("mean < 0", "mean > 0"),
    ),
    wrong(
        "the mean within the margin",
        "verdict",
        {"verdict-cases"},
        "the seeds were too few",
        ("abs(mean) + half < margin", "abs(mean) < margin"),
    ),
]
