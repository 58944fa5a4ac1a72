"""Wrong solutions of assignment 3, and what each loses.

A base is a right solution; a wrong one changes a few words of it.
"""

from __future__ import annotations

from wrong.case import Wrong

EFFECT = """
def exact_effect(x, y, w, b, q, members):
    groups, v = len(members), q / (1 - q)
    clean = torch.log1p(torch.exp(-y * (x @ w + b)))
    result = -clean
    for number in range(2**groups):
        kept = torch.tensor([bool(number >> g & 1) for g in range(groups)])
        chance = torch.where(kept, 1 - q, q).prod().item()
        eta = torch.where(kept, v, -1.0).to(x.dtype) @ members
        result = result + chance * torch.log1p(torch.exp(-y * ((x + eta * x) @ w + b)))
    return result
"""

FORM = """
def quadratic_form(x, y, w, b, q, members):
    p = 1 / (1 + torch.exp(-(x @ w + b)))
    total = torch.zeros(len(x), dtype=x.dtype)
    for row in members:
        total += ((x * w) * row).sum(1) ** 2
    return total * p * (1 - p) / 2 * q / (1 - q)
"""

H_OUT = """
def h_out(logits):
    p = logits.softmax(1)
    return torch.stack([torch.diag(row) - torch.outer(row, row) for row in p])
"""

# By one backward pass for each class, unlike the reference.
R_APPROX = """
def r_approx(weights, x, y, q):
    h1 = first_layer(weights, x).detach().requires_grad_()
    h2 = second_layer(weights, h1)
    logits = output(weights, h2)
    H = h_out(logits)
    total = torch.zeros(len(x), dtype=x.dtype)
    for h, rate in ((h1, q[0]), (h2, q[1])):
        columns = [
            torch.autograd.grad(logits[:, c].sum(), h, retain_graph=True)[0]
            for c in range(logits.shape[1])
        ]
        J = torch.stack(columns, 1)
        inner = torch.einsum("ncj,ncd,ndj->nj", J, H, J)
        total = total + rate / (1 - rate) * (inner * h**2).sum(1) / 2
    return total.mean()
"""

PROBE = """
def probe(weights, x, q, signs):
    none = [torch.zeros_like(s) for s in signs]
    noise = [(rate / (1 - rate)) ** 0.5 * s for rate, s in zip(q, signs)]

    def noisy(eta1, eta2):
        h1 = first_layer(weights, x)
        h2 = second_layer(weights, h1 + eta1 * h1)
        return output(weights, h2 + eta2 * h2)

    logits, t = torch.func.jvp(noisy, tuple(none), tuple(noise))
    return 0.5 * (t[:, None] @ h_out(logits) @ t[:, :, None]).mean()
"""

ESTIMATE = """
def estimate(weights, x, q, draws):
    n, units = len(x), weights[0].shape[1]
    found = []
    for draw in range(draws):
        first = torch.randn(n, units, dtype=x.dtype).sign()
        second = torch.randn(n, units, dtype=x.dtype).sign()
        found.append(float(probe(weights, x, q, [first, second])))
    return torch.tensor(found)
"""

LABELS = """
def sampled_label_gradient(weights, x, q, labels):
    leaves = [w.clone().requires_grad_() for w in weights]
    h1 = first_layer(leaves, x)
    h2 = second_layer(leaves, h1)
    losses = F.cross_entropy(output(leaves, h2), labels, reduction="none")
    g1, g2 = torch.autograd.grad(losses.sum(), [h1, h2], create_graph=True)
    f = (h1 * g1).pow(2).sum(1) * q[0] / (1 - q[0]) / 2
    f = f + (h2 * g2).pow(2).sum(1) * q[1] / (1 - q[1]) / 2
    extra = f.detach() * -losses
    return flat(torch.autograd.grad((f + extra).mean(), leaves))
"""


def changed(base: str, *changes: tuple[str, str]) -> str:
    """A base with some words changed; each must be there."""
    for old, new in changes:
        assert old in base, old
        base = base.replace(old, new)
    return base


EFFECTS = {"exact_effect-masks"}
FORMS = {"quadratic_form-formula"}
LAYERS = {"r_approx-layers"}
PROBES = {"probe-mean"}
GRADIENT = {"sampled_label_gradient-mean"}

RIGHT = {
    "exact_effect": EFFECT,
    "quadratic_form": FORM,
    "h_out": H_OUT,
    "r_approx": R_APPROX,
    "probe": PROBE,
    "estimate": ESTIMATE,
    "sampled_label_gradient": LABELS,
}

WRONG = [
    Wrong(
        "kept features are not rescaled",
        "exact_effect",
        changed(EFFECT, ("v = len(members), q / (1 - q)", "v = len(members), 0.0")),
        fails=EFFECTS,
        says="divides them by 1-q",
    ),
    Wrong(
        "every mask counts alike",
        "exact_effect",
        changed(EFFECT, ("torch.where(kept, 1 - q, q).prod().item()", "0.5**groups")),
        fails=EFFECTS,
        says="masks count alike",
    ),
    Wrong(
        "q is taken for the probability to keep",
        "exact_effect",
        "def exact_effect(x, y, w, b, q, members):\n    return base(x, y, w, b, 1 - q, members)\n"
        + EFFECT.replace("exact_effect", "base"),
        fails=EFFECTS,
        says="not to keep it",
    ),
    Wrong(
        "the clean loss is not taken off",
        "exact_effect",
        changed(EFFECT, ("result = -clean", "result = 0 * clean")),
        fails=EFFECTS,
        says="Take the clean loss off",
    ),
    Wrong(
        "a noise for each feature",
        "exact_effect",
        changed(
            EFFECT, ("    groups, v", "    members = torch.eye(len(w)).double()\n    groups, v")
        ),
        fails={"exact_effect-shared"},
        says="one η for all its members",
    ),
    Wrong(
        "one number for all rows",
        "exact_effect",
        changed(EFFECT, ("return result", "return result.mean()")),
        fails={*EFFECTS, "exact_effect-shared"},
        says="shape is ()",
    ),
    Wrong(
        "drops the ½",
        "quadratic_form",
        changed(FORM, (" / 2 *", " *")),
        fails=FORMS,
        says="starts with ½",
    ),
    Wrong(
        "forgot 1/(1-q)",
        "quadratic_form",
        changed(FORM, (" * q / (1 - q)", " * q")),
        fails=FORMS,
        says="not q: kept units",
    ),
    Wrong(
        "variance of a mask that is not inverted",
        "quadratic_form",
        changed(FORM, ("q / (1 - q)", "q * (1 - q)")),
        fails=FORMS,
        says="mask of zeros and ones",
    ),
    Wrong(
        "squared slope of the loss for its bend",
        "quadratic_form",
        changed(FORM, ("p * (1 - p)", "(p - (y + 1) / 2) ** 2")),
        # Against its own value with the merged features it agrees: one mistake, one cell.
        fails=FORMS,
        says="does not see the label",
    ),
    Wrong(
        "no bend at all",
        "quadratic_form",
        changed(FORM, (" * p * (1 - p)", "")),
        fails=FORMS,
        says="second derivative of the loss",
    ),
    Wrong(
        "a plain ridge",
        "quadratic_form",
        changed(FORM, ("((x * w) * row)", "(torch.ones_like(x) * w * row)")),
        fails={*FORMS, "quadratic_form-shared"},
        says="x_j w_j, not w_j",
    ),
    Wrong(
        "the paper's slip of sign",
        "quadratic_form",
        changed(FORM, ("(1 - q)", "(q - 1)")),
        fails=FORMS,
        says="is a slip",
    ),
    Wrong(
        "nothing but zeros",
        "quadratic_form",
        "def quadratic_form(x, y, w, b, q, members):\n    return 0 * y\n",
        fails={*FORMS, "quadratic_form-shared"},
        says="not what theory says",
    ),
    Wrong(
        "squares before summing what shares a mask",
        "quadratic_form",
        changed(FORM, ("((x * w) * row).sum(1) ** 2", "(((x * w) * row) ** 2).sum(1)")),
        fails={"quadratic_form-shared"},
        says="added first, then squared",
    ),
    Wrong(
        "diagonal of H_out only",
        "h_out",
        changed(H_OUT, ("torch.diag(row) - torch.outer(row, row)", "torch.diag(row * (1 - row))")),
        fails={"h_out-hessian"},  # what is built on it is judged with it
        says="off the diagonal",
    ),
    Wrong(
        "probabilities only",
        "h_out",
        changed(H_OUT, (" - torch.outer(row, row)", "")),
        fails={"h_out-hessian"},
        says="differentiate the softmax",
    ),
    Wrong(
        "plus for minus",
        "h_out",
        changed(H_OUT, ("(row) - torch", "(row) + torch")),
        fails={"h_out-hessian"},
        says="add up to 0",
    ),
    Wrong(
        "a sigmoid for each class",
        "h_out",
        "def h_out(logits):\n    p = logits.sigmoid()\n    return torch.diag_embed(p * (1 - p))\n",
        fails={"h_out-hessian"},
        says="share one softmax",
    ),
    Wrong(
        "H_out of the mean of the batch",
        "h_out",
        H_OUT.replace("torch.stack([", "sum([") + "\n",
        # What is built on it stops with an error, and cannot be judged by it.
        fails={
            "h_out-hessian",
            "r_approx-layers",
            "r_approx-batch",
            "probe-mean",
            "probe-together",
            "estimate-mean",
            "estimate-scatter",
        },
        says="should be (3, 4, 4)",
    ),
    Wrong(
        "matrices multiplied for one example only",
        "h_out",
        "def h_out(logits):\n    p = logits.softmax(-1)\n    return torch.diag(p) - torch.outer(p, p)\n",
        # With it stops what is built on it.
        fails={
            "h_out-hessian",
            "r_approx-layers",
            "r_approx-batch",
            "probe-mean",
            "probe-together",
            "estimate-mean",
            "estimate-scatter",
        },
        says="stopped with an error",
    ),
    Wrong(
        "a number for each layer",
        "r_approx",
        changed(
            R_APPROX,
            ("total = torch.zeros(len(x), dtype=x.dtype)", "total = []"),
            ("total = total + rate", "total += [rate"),
            (".sum(1) / 2", ".sum(1) / 2]"),
            ("total.mean()", "torch.stack(total).mean(1)"),
        ),
        fails={*LAYERS, "r_approx-batch"},
        says="one number is expected",
    ),
    Wrong(
        "drops the ½",
        "r_approx",
        changed(R_APPROX, (".sum(1) / 2", ".sum(1)")),
        fails=LAYERS,
        says="starts with ½",
    ),
    Wrong(
        "forgot 1/(1-q)",
        "r_approx",
        changed(R_APPROX, ("rate / (1 - rate)", "rate")),
        fails=LAYERS,
        says="not q: kept units",
    ),
    Wrong(
        "last layer only",
        "r_approx",
        changed(R_APPROX, ("((h1, q[0]), (h2, q[1]))", "((h2, q[1]),)")),
        fails=LAYERS,
        says="first hidden layer is missing",
    ),
    Wrong(
        "first layer only",
        "r_approx",
        changed(R_APPROX, ("((h1, q[0]), (h2, q[1]))", "((h1, q[0]),)")),
        fails=LAYERS,
        says="second hidden layer is missing",
    ),
    Wrong(
        "one q for both, the first",
        "r_approx",
        changed(R_APPROX, ("(h2, q[1])", "(h2, q[0])")),
        fails=LAYERS,
        says="q of the first one",
    ),
    Wrong(
        "one q for both, the second",
        "r_approx",
        changed(R_APPROX, ("(h1, q[0])", "(h1, q[1])")),
        fails=LAYERS,
        says="q of the second one",
    ),
    Wrong(
        "loss Jacobian for H_out",
        "r_approx",
        changed(
            R_APPROX,
            (
                "H = h_out(logits)",
                "u = logits.softmax(1) - F.one_hot(y, logits.shape[1])\n"
                "    H = u[:, :, None] * u[:, None]",
            ),
        ),
        fails=LAYERS,
        says="loss Jacobian stands in the place",
    ),
    Wrong(
        "identity for H_out",
        "r_approx",
        changed(R_APPROX, ("H = h_out(logits)", "H = torch.eye(3).double().expand(len(x), 3, 3)")),
        fails=LAYERS,
        says="there is no H_out",
    ),
    Wrong(
        "no h",
        "r_approx",
        changed(R_APPROX, ("(inner * h**2)", "inner")),
        fails=LAYERS,
        says="Where is h?",
    ),
    Wrong(
        "h, not squared",
        "r_approx",
        changed(R_APPROX, ("h**2", "h")),
        fails=LAYERS,
        says="h enters once",
    ),
    Wrong(
        "the full Hessian",
        "r_approx",
        """
def r_approx(weights, x, y, q):
    def loss(eta, one_x, one_y):
        h1 = first_layer(weights, one_x)
        h2 = second_layer(weights, h1 * (1 + eta[0]))
        return F.cross_entropy(output(weights, h2 * (1 + eta[1])), one_y)
    units = weights[0].shape[1]
    total = 0.0
    for one_x, one_y in zip(x, y):
        second = torch.func.hessian(loss)(torch.zeros(2, units, dtype=x.dtype), one_x, one_y)
        for i in range(2):
            total = total + 0.5 * q[i] / (1 - q[i]) * second[i, :, i].trace()
    return total / len(x)
""",
        fails=LAYERS,
        says="Gauss and Newton leave out",
    ),
    Wrong(
        "sums over the batch",
        "r_approx",
        changed(R_APPROX, ("total.mean()", "total.sum()")),
        fails={"r_approx-batch"},
        says="sum over the examples",
    ),
    Wrong(
        "drops the ½",
        "probe",
        changed(PROBE, ("0.5 * (t", "(t")),
        fails=PROBES,  # estimate is judged with the probe that it has
        says="starts with ½",
    ),
    Wrong(
        "the variance for the size",
        "probe",
        changed(PROBE, ("(rate / (1 - rate)) ** 0.5", "rate / (1 - rate)")),
        fails=PROBES,
        says="Its size is the root",
    ),
    Wrong(
        "signs of variance 1",
        "probe",
        changed(PROBE, ("(rate / (1 - rate)) ** 0.5", "1.0")),
        fails=PROBES,
        says="of variance 1",
    ),
    Wrong(
        "forgot 1/(1-q)",
        "probe",
        changed(PROBE, ("(rate / (1 - rate)) ** 0.5", "rate**0.5")),
        fails=PROBES,
        says="not q: kept units",
    ),
    Wrong(
        "sums over the batch",
        "probe",
        changed(PROBE, (".mean()", ".sum()")),
        fails=PROBES,
        says="sum over the examples",
    ),
    Wrong(
        "no H_out",
        "probe",
        changed(PROBE, ("@ h_out(logits) @", "@")),
        fails={"probe-mean", "probe-together"},
        says="there is no H_out",
    ),
    Wrong(
        "noise that is not multiplied by h",
        "probe",
        changed(PROBE, ("eta1 * h1", "eta1"), ("eta2 * h2", "eta2")),
        fails={"probe-mean", "probe-together"},
        says="Where is h?",
    ),
    Wrong(
        "each layer squared by itself",
        "probe",
        PROBE.replace("def probe", "def together")
        + """
def probe(weights, x, q, signs):
    first = together(weights, x, q, [signs[0], 0 * signs[1]])
    return first + together(weights, x, q, [0 * signs[0], signs[1]])
""",
        fails={"probe-together"},
        says="costs a pass a layer",
    ),
    Wrong(
        "the same noise in both layers",
        "estimate",
        changed(ESTIMATE, ("[first, second]", "[first, first]")),
        fails={"estimate-mean", "estimate-scatter"},
        says="both layers get the same noise",
    ),
    Wrong(
        "one noise for the batch",
        "estimate",
        changed(
            ESTIMATE,
            ("torch.randn(n, units", "torch.randn(1, units"),
            (".sign()", ".sign().repeat(n, 1)"),
        ),
        fails={"estimate-scatter"},
        says="all examples share one noise",
    ),
    Wrong(
        "reuses the noise",
        "estimate",
        changed(
            ESTIMATE,
            (
                "for draw in range(draws):",
                "for draw in range(draws):\n        torch.manual_seed(0)",
            ),
        ),
        fails={"estimate-mean", "estimate-scatter"},
        says="Draw a new noise for each",
    ),
    Wrong(
        "the mean of the draws",
        "estimate",
        changed(ESTIMATE, ("torch.tensor(found)", "torch.tensor(found).mean()")),
        fails={"estimate-scatter"},
        says="shape is ()",
    ),
    Wrong(
        "differentiates the sampled label plainly",
        "sampled_label_gradient",
        changed(LABELS, ("(f + extra)", "f")),
        fails=GRADIENT,
        says="differentiated plainly",
    ),
    Wrong(
        "differentiates the probability alone",
        "sampled_label_gradient",
        changed(LABELS, ("(f + extra)", "extra")),
        fails=GRADIENT,
        says="only the probability",
    ),
    Wrong(
        "detaches the slopes",
        "sampled_label_gradient",
        changed(
            LABELS,
            ("h1 * g1", "h1 * g1.detach()"),
            ("h2 * g2", "h2 * g2.detach()"),
            ("(f + extra).mean(), leaves", "f.mean(), leaves, materialize_grads=True"),
        ),
        fails=GRADIENT,
        says="∂ℓ/∂h is detached",
    ),
    Wrong(
        "drops the ½",
        "sampled_label_gradient",
        changed(LABELS, (" / 2", "")),
        fails=GRADIENT,
        says="starts with ½",
    ),
    Wrong(
        "sums over the batch",
        "sampled_label_gradient",
        changed(LABELS, ("(f + extra).mean()", "(f + extra).sum()")),
        fails=GRADIENT,
        says="sum over the examples",
    ),
    Wrong(
        "divides by the batch twice",
        "sampled_label_gradient",
        changed(
            LABELS, ("losses.sum()", "losses.mean()"), ("(f + extra).mean()", "(f + extra).sum()")
        ),
        fails=GRADIENT,
        says="examples twice",
    ),
]
