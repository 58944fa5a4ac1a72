"""Wrong solutions of assignment 4, and what each loses.

A base is a right solution; a wrong one changes a few words of it.
"""

from __future__ import annotations

from wrong.case import Wrong
from wrong.explicit import changed

SIGNS = """
def signs(rows, units, q):
    size = (q / (1 - q)) ** 0.5
    return torch.where(torch.rand(rows, units) < 0.5, -size, size)
"""

# With the hidden layers by name, as the paper writes it.
XI = """
def xi(weights, eta, x, y):
    leaves = [w.clone().requires_grad_() for w in weights]
    h1 = torch.tanh(x @ leaves[0])
    h2 = torch.tanh(h1 @ leaves[1])
    value = F.cross_entropy(h2 @ leaves[2], y)
    g1, g2 = torch.autograd.grad(value, (h1, h2), create_graph=True)
    slope = (g1 * eta[0] * h1).sum() + (g2 * eta[1] * h2).sum()
    return flat(torch.autograd.grad(slope, leaves))
"""

COVARIANCE = """
def xi_covariance(weights, x, y, q):
    v, n = q / (1 - q), len(x)
    units = weights[0].shape[1]
    columns = []
    for i in range(n):
        for layer in range(2):
            for j in range(units):
                eta = [torch.zeros(n, units, dtype=x.dtype) for _ in range(2)]
                eta[layer][i, j] = 1.0
                columns.append(xi(weights, eta, x, y))
    M = torch.stack(columns, 1)
    return v * M @ M.T
"""

ODD = """
def odd_covariance(weights, x, y, strength):
    u = weights[0].shape[1]
    parts = []
    for mask in product([-1.0, 1.0], repeat=2 * u):
        e = strength * torch.tensor([mask], dtype=x.dtype)
        plus = gradient(weights, [e[:, :u], e[:, u:]], x, y)
        minus = gradient(weights, [-e[:, :u], -e[:, u:]], x, y)
        parts.append((plus - minus) / (2 * strength))
    parts = torch.stack(parts)
    return parts.T @ parts / len(parts)
"""

MATCH = """
def match(first, second):
    a, b = first.flatten(), second.flatten()
    ratio = torch.trace(first) / torch.trace(second)
    return torch.stack([ratio, a @ b / (a @ a * (b @ b)).sqrt()])
"""

PAIR = """
def pair_noise(weights, eta_a, eta_b, x, y):
    difference = gradient(weights, eta_b, x, y) - gradient(weights, eta_a, x, y)
    return difference * 0.5**0.5
"""

DIALLED = """
def dialled(weights, masks, eta, x, y, strength):
    k = len(masks[0])
    mean = sum(gradient(weights, [masks[0][i], masks[1][i]], x, y) for i in range(k)) / k
    return mean + strength * (1 - 1 / k) ** 0.5 * xi(weights, eta, x, y)
"""

RIGHT = {
    "signs": SIGNS,
    "xi": XI,
    "xi_covariance": COVARIANCE,
    "odd_covariance": ODD,
    "match": MATCH,
    "pair_noise": PAIR,
    "dialled": DIALLED,
}

SIZE, FAIR, ONE = {"signs-size"}, {"signs-fair"}, {"xi-one"}
OBJECTIVE, SCALE = {"dialled-objective"}, {"dialled-scale"}


def wrong(name: str, function: str, fails: set[str], says: str, *changes: tuple[str, str]) -> Wrong:
    """A wrong version of a right solution."""
    return Wrong(name, function, changed(RIGHT[function], *changes), fails, says)


WRONG = [
    wrong("the variance for the size", "signs", SIZE, "root of its variance", (") ** 0.5", ")")),
    wrong("forgot 1/(1-q)", "signs", SIZE, "not q: kept units", ("(q / (1 - q))", "q")),
    wrong("size 1", "signs", SIZE, "signs of size 1", ("(q / (1 - q)) ** 0.5", "1.0")),
    wrong(
        "dropout's own law",
        "signs",
        {*SIZE, *FAIR},
        "dropout's own law",
        ("< 0.5, -size, size", "< q, -1.0, q / (1 - q)"),
    ),
    wrong(
        "Gaussian",
        "signs",
        SIZE,
        "not what theory says",
        (
            "torch.where(torch.rand(rows, units) < 0.5, -size, size)",
            "size * torch.randn(rows, units)",
        ),
    ),
    wrong(
        "one noise for all examples",
        "signs",
        FAIR,
        "all examples have the same noise",
        ("rand(rows, units)", "rand(1, units).expand(rows, units)"),
    ),
    wrong(
        "one noise for all units",
        "signs",
        FAIR,
        "all units of an example",
        ("rand(rows, units)", "rand(rows, 1).expand(rows, units)"),
    ),
    wrong("signs not fair", "signs", FAIR, "mean sign of each unit", ("< 0.5", "< q")),
    wrong(
        "shape of the other order",
        "signs",
        {*SIZE, *FAIR},
        "should be (2000, 8)",
        ("rand(rows, units)", "rand(units, rows)"),
    ),
    wrong(
        "detaches ∂ℓ/∂h",
        "xi",
        ONE,
        "∂ℓ/∂h is detached",
        ("g1 * eta", "g1.detach() * eta"),
        ("g2 * eta", "g2.detach() * eta"),
        ("(slope, leaves)", "(slope, leaves, materialize_grads=True)"),
    ),
    wrong(
        "detaches h",
        "xi",
        ONE,
        "h is detached. It depends",
        ("* h1)", "* h1.detach())"),
        ("* h2)", "* h2.detach())"),
    ),
    Wrong(
        "the gradient under the noise",
        "xi",
        "def xi(weights, eta, x, y):\n    return gradient(weights, eta, x, y)\n",
        ONE,
        "without the clean gradient",
    ),
    Wrong(
        "all orders",
        "xi",
        "def xi(weights, eta, x, y):\n    none = [0 * e for e in eta]\n"
        "    return gradient(weights, eta, x, y) - gradient(weights, none, x, y)\n",
        ONE,
        "with all orders in η",
    ),
    Wrong(
        "all odd orders",
        "xi",
        "def xi(weights, eta, x, y):\n    other = [-e for e in eta]\n"
        "    return (gradient(weights, eta, x, y) - gradient(weights, other, x, y)) / 2\n",
        ONE,
        "with all odd orders",
    ),
    wrong(
        "second layer only",
        "xi",
        ONE,
        "noise of the first layer is missing",
        ("(g1 * eta[0] * h1).sum() + ", ""),
    ),
    wrong(
        "first layer only",
        "xi",
        ONE,
        "noise of the second layer is missing",
        (" + (g2 * eta[1] * h2).sum()", ""),
        ("(slope, leaves)", "(slope, leaves, materialize_grads=True)"),
    ),
    wrong(
        "sums over the batch",
        "xi",
        {"xi-batch"},
        "sum over the examples",
        ("leaves[2], y)", "leaves[2], y, reduction='sum')"),
    ),
    Wrong(
        "nothing but zeros",
        "xi",
        "def xi(weights, eta, x, y):\n    return flat([0 * w for w in weights])\n",
        # Nothing follows from nothing.
        {*ONE, "xi-batch", "xi_covariance-one", "xi_covariance-batch", *SCALE},
        "not what theory says",
    ),
    wrong(
        "no variance of the noise",
        "xi_covariance",
        {"xi_covariance-one"},
        "q/(1-q), is missing",
        ("return v * M", "return M"),
    ),
    wrong(
        "forgot 1/(1-q)",
        "xi_covariance",
        {"xi_covariance-one"},
        "not q: kept units",
        ("v, n = q / (1 - q)", "v, n = q"),
    ),
    wrong(
        "variance squared",
        "xi_covariance",
        {"xi_covariance-one"},
        "its size, the root, twice",
        ("return v * M", "return v**2 * M"),
    ),
    wrong(
        "root of the variance",
        "xi_covariance",
        {"xi_covariance-one"},
        "once, not its root",
        ("return v * M", "return v**0.5 * M"),
    ),
    wrong(
        "adds before it multiplies",
        "xi_covariance",
        {"xi_covariance-one", "xi_covariance-batch"},
        "their covariances that add",
        ("return v * M @ M.T", "M = M.sum(1, keepdim=True)\n    return v * M @ M.T"),
    ),
    wrong(
        "mean of the covariances",
        "xi_covariance",
        {"xi_covariance-batch"},
        "divided by B²",
        ("return v * M @ M.T", "return n * v * M @ M.T"),
    ),
    wrong(
        "sum of the covariances",
        "xi_covariance",
        {"xi_covariance-batch"},
        "sum of the examples' covariances",
        ("return v * M @ M.T", "return n**2 * v * M @ M.T"),
    ),
    wrong(
        "one mask for all examples",
        "xi_covariance",
        {"xi_covariance-batch"},
        "all examples share one noise",
        ("for i in range(n):", "for i in [slice(None)]:"),
    ),
    wrong(
        "no half in the odd part",
        "odd_covariance",
        {"odd_covariance-one"},
        "is *half* the difference",
        ("/ (2 * strength)", "/ strength"),
    ),
    wrong(
        "not divided by the strength",
        "odd_covariance",
        {"odd_covariance-one"},
        "square of the strength",
        ("/ (2 * strength)", "/ 2"),
    ),
    wrong(
        "divided by the strength once",
        "odd_covariance",
        {"odd_covariance-one"},
        "a covariance is a square",
        ("/ (2 * strength)", "/ (2 * strength**0.5)"),
    ),
    wrong(
        "sample covariance of a whole population",
        "odd_covariance",
        {"odd_covariance-one"},
        "not by one less",
        ("/ len(parts)", "/ (len(parts) - 1)"),
    ),
    wrong(
        "sum over the masks",
        "odd_covariance",
        {"odd_covariance-one"},
        "number of masks",
        (" / len(parts)", ""),
    ),
    wrong(
        "the even part, too",
        "odd_covariance",
        {"odd_covariance-one"},
        "the whole gradient",
        ("(plus - minus) / (2 * strength)", "plus / strength"),
        ("return parts", "parts = parts - parts.mean(0)\n    return parts"),
    ),
    wrong(
        "upside down",
        "match",
        {"match-both"},
        "upside down",
        ("torch.trace(first) / torch.trace(second)", "torch.trace(second) / torch.trace(first)"),
    ),
    wrong(
        "norms for traces",
        "match",
        {"match-both"},
        "the sum of the variances",
        ("torch.trace(first) / torch.trace(second)", "first.norm() / second.norm()"),
    ),
    wrong(
        "no lengths in the cosine",
        "match",
        {"match-both"},
        "not divided by the lengths",
        (" / (a @ a * (b @ b)).sqrt()", ""),
    ),
    wrong(
        "traces for lengths in the cosine",
        "match",
        {"match-both"},
        "not its trace",
        ("(a @ a * (b @ b)).sqrt()", "(first.trace() * second.trace())"),
    ),
    wrong(
        "off by √2: too large",
        "pair_noise",
        {"pair_noise-size"},
        "√2 too large",
        (" * 0.5**0.5", ""),
    ),
    wrong(
        "off by √2: too small",
        "pair_noise",
        {"pair_noise-size"},
        "√2 too small",
        ("0.5**0.5", "0.5"),
    ),
    wrong("sums over the masks", "dialled", OBJECTIVE, "is their mean", (" / k\n", "\n")),
    wrong(
        "first mask only",
        "dialled",
        OBJECTIVE,
        "only the first mask",
        ("i in range(k)) / k", "i in [0])"),
    ),
    wrong(
        "no masks in the objective",
        "dialled",
        OBJECTIVE,
        "it is the clean gradient",
        ("[masks[0][i], masks[1][i]]", "[0 * masks[0][i], 0 * masks[1][i]]"),
    ),
    wrong(
        "averages the masks",
        "dialled",
        OBJECTIVE,
        "averaged before the pass",
        ("[masks[0][i], masks[1][i]]", "[masks[0].mean(0), masks[1].mean(0)]"),
    ),
    wrong("not scaled", "dialled", SCALE, "it is not scaled", (" * (1 - 1 / k) ** 0.5", "")),
    wrong("scaled by the variance", "dialled", SCALE, "scaled by its root", (" ** 0.5", "")),
    wrong(
        "what is left for what is missing",
        "dialled",
        SCALE,
        "Add the rest",
        ("(1 - 1 / k)", "(1 / k)"),
    ),
    wrong("off by √2: too small", "dialled", SCALE, "√2 too small", ("** 0.5", "** 0.5 / 2**0.5")),
    wrong("off by √2: too large", "dialled", SCALE, "√2 too large", ("** 0.5", "** 0.5 * 2**0.5")),
    wrong(
        "reuses the noise",
        "dialled",
        SCALE,
        "used again",
        ("xi(weights, eta", "xi(weights, [m[0] for m in masks]"),
    ),
]
