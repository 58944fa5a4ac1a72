"""Right solutions, written as few would write them: for each function at least three.

By loops, by numpy, in float32, by closed forms and by enumeration, with other generators, in place,
as lists, tuples, arrays, or with one dimension more than a number has.
"""

from __future__ import annotations

from wrong.explicit import RIGHT as EXPLICIT
from wrong.explicit import changed
from wrong.implicit import RIGHT as IMPLICIT
from wrong.project import RIGHT as PROJECT

# Assignment, function, and how it is written.
UNUSUAL: dict[str, dict[str, dict[str, str]]] = {
    "masks": {
        "dropout": {
            "in place, on its argument": """
def dropout(h, q, training=True):
    if training:
        h.mul_(torch.rand(h.shape) >= q).div_(1 - q)
    return h
""",
            "numpy's own generator": """
import numpy as np

def dropout(h, q, training=True):
    if not training:
        return h.numpy()
    mask = np.random.default_rng().random(tuple(h.shape)) >= q
    return np.where(mask, h.numpy() / (1 - q), 0.0)
""",
            "Bernoulli, in float32": """
def dropout(h, q, training=True):
    kept = torch.bernoulli(torch.full(h.shape, 1 - q))
    return h.float() * kept / (1 - q) if training else h.float()
""",
            "by a distribution, with a gradient": """
def dropout(h, q, training=True):
    scale = torch.tensor(1 / (1 - q), dtype=h.dtype, requires_grad=True)
    if not training:
        return h * (scale / scale)
    return torch.distributions.Bernoulli(1 - q).sample(h.shape) * h * scale
""",
            "a generator of its own": """
own = torch.Generator()
own.seed()

def dropout(h, q, training=True):
    if not training:
        return 1 * h
    return h * (torch.empty(h.shape).uniform_(generator=own) >= q) / (1 - q)
""",
        },
        "moments": {
            "closed forms, a tuple": """
def moments(q):
    return 0, q / (1 - q), -q + q**3 / (1 - q) ** 2
""",
            "a tensor of float32": """
def moments(q):
    value, chance = torch.tensor([-1, q / (1 - q)]), torch.tensor([q, 1 - q])
    return torch.stack([(chance * value**power).sum() for power in (1, 2, 3)])
""",
            "numpy": """
import numpy

def moments(q):
    return numpy.array([-1.0, q / (1 - q)]) ** numpy.arange(1, 4)[:, None] @ [q, 1 - q]
""",
        },
        "mean_and_error": {
            "a tuple of tensors": """
def mean_and_error(draws):
    return draws.mean(dim=0), draws.std(dim=0) / draws.shape[0] ** 0.5
""",
            "loops over lists": """
import math
import statistics

def mean_and_error(draws):
    columns = draws.T.tolist()
    return [
        [statistics.fmean(column) for column in columns],
        [statistics.stdev(column) / math.sqrt(len(column)) for column in columns],
    ]
""",
            "numpy": """
import numpy as np

def mean_and_error(draws):
    a = np.asarray(draws)
    return np.stack([a.mean(axis=0), a.std(axis=0, ddof=1) / np.sqrt(len(a))])
""",
        },
        "output_variance": {
            "loops": """
def output_variance(h, w, q, shared):
    steps, units = h.shape
    total = 0.0
    for j in range(units):
        amplitudes = [float(h[t, j] * w[j]) for t in range(steps)]
        total += sum(amplitudes) ** 2 if shared else sum(a**2 for a in amplitudes)
    return total * q / (1 - q)
""",
            "einsum, one entry": """
def output_variance(h, w, q, shared):
    letters = "tj,sj,j->" if shared else "tj,tj,j->"
    return torch.einsum(letters, h, h, w * w).reshape(1) / (1 / q - 1)
""",
            "over all masks of a unit": """
def output_variance(h, w, q, shared):
    a = (h * w).sum(0, keepdim=True) if shared else h * w
    dropped, kept = -a, a * q / (1 - q)
    return (q * dropped**2 + (1 - q) * kept**2).sum().item()
""",
        },
        "dropout_k_loss": {
            "all masks at once": """
def dropout_k_loss(w, x, y, q, k):
    masks = (torch.rand(k, *x.shape) > q) / (1 - q)
    return ((x * masks) @ w - y).pow(2).mean() / 2
""",
            "a running sum of floats": """
def dropout_k_loss(w, x, y, q, k):
    total = 0.0
    for _ in range(k):
        total += float(((dropout(x.repeat(1, 1), q=q) * w).sum(1) - y).pow(2).sum())
    return total / (2 * k * len(y))
""",
            "rows by rows, numpy": """
import numpy as np

def dropout_k_loss(w, x, y, q, k):
    w, x, y = (np.asarray(v) for v in (w, x, y))
    kept = np.random.binomial(1, 1 - q, (k, *x.shape))
    return np.mean([[(r @ w / (1 - q) - t) ** 2 / 2 for r, t in zip(m * x, y)] for m in kept])
""",
        },
        "noise_trace": {
            "the matrix": """
def noise_trace(gradients):
    return torch.trace(torch.cov(gradients.T))
""",
            "lengths": """
def noise_trace(gradients):
    away = gradients - sum(gradients) / len(gradients)
    return [float((away**2).sum()) / (len(gradients) - 1)]
""",
            "pairs": """
def noise_trace(gradients):
    n = len(gradients)
    return torch.cdist(gradients, gradients).square().sum() / (2 * n * (n - 1))
""",
        },
        "power": {
            "polyfit": """
import numpy as np

def power(ks, traces):
    return np.polyfit(np.log(ks.numpy()), np.log(traces.numpy()), 1)[0]
""",
            "least squares, another base": """
def power(ks, traces):
    A = torch.stack([torch.log2(ks), torch.ones_like(ks)], 1)
    return torch.linalg.lstsq(A, torch.log2(traces)[:, None]).solution[0]
""",
            "normal equations in floats": """
import math

def power(ks, traces):
    x, y, n = [math.log(k) for k in ks], [math.log(t) for t in traces], len(ks)
    top = n * sum(a * b for a, b in zip(x, y)) - sum(x) * sum(y)
    return top / (n * sum(a * a for a in x) - sum(x) ** 2)
""",
        },
    },
    "effects": {
        "explicit_effect": {
            "all masks in one pass": """
def explicit_effect(model, x, y, draws):
    model.eval()
    clean = F.cross_entropy(model(x), y)
    model.train()
    many = F.cross_entropy(model(x.repeat(draws, 1)), y.repeat(draws), reduction="none")
    each = many.view(draws, -1).mean(1)
    return torch.stack([each.mean() - clean, each.std() / draws**0.5])
""",
            "differences, floats": """
import statistics

def explicit_effect(model, x, y, draws):
    def one(mode):
        model.train(mode)
        return F.cross_entropy(model(x), y).item()

    clean = one(False)
    d = [one(True) - clean for _ in range(draws)]
    return statistics.mean(d), statistics.stdev(d) / draws**0.5
""",
            "a mask of its own, float32": """
def explicit_effect(model, x, y, draws):
    q, h = model[2].p, model[:2](x).float()
    last = model[3].float()
    mask = (torch.rand(draws, *h.shape) >= q) / (1 - q)
    z = last(torch.cat([h[None], h * mask]))
    losses = F.cross_entropy(z.transpose(1, 2), y.expand(draws + 1, -1), reduction="none").mean(1)
    return [losses[1:].mean() - losses[0], losses[1:].std() / draws**0.5]
""",
        },
        "gradient_draws": {
            "backward, set to none": """
def gradient_draws(model, x, y, draws):
    rows = []
    for _ in range(draws):
        model.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        rows.append(torch.nn.utils.parameters_to_vector(p.grad for p in model.parameters()))
    return torch.stack(rows)
""",
            "torch.func with fresh randomness": """
def gradient_draws(model, x, y, draws):
    model.train()
    params = dict(model.named_parameters())

    def loss(p, _):
        return F.cross_entropy(torch.func.functional_call(model, p, (x,)), y)

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")
    found = each(params, torch.zeros(draws))
    return torch.cat([g.flatten(1) for g in found.values()], 1)
""",
            "lists of floats": """
def gradient_draws(model, x, y, draws):
    model.train()
    params = tuple(model.parameters())
    one = lambda: torch.autograd.grad(F.cross_entropy(model(x), y), params)
    return [[v for g in one() for v in g.flatten().tolist()] for _ in range(draws)]
""",
        },
        "noise_to_signal": {
            "the matrix": """
def noise_to_signal(gradients):
    return torch.cov(gradients.T).diagonal().sum() ** 0.5 / torch.linalg.norm(gradients.mean(0))
""",
            "numpy": """
import numpy as np

def noise_to_signal(gradients):
    g = gradients.numpy()
    return np.sqrt(g.var(axis=0, ddof=1).sum()) / np.linalg.norm(g.mean(axis=0))
""",
            "loops, one entry": """
def noise_to_signal(gradients):
    n = len(gradients)
    mean = [sum(column) / n for column in gradients.T.tolist()]
    trace = sum((v - m) ** 2 for row in gradients.tolist() for v, m in zip(row, mean)) / (n - 1)
    return [(trace / sum(m**2 for m in mean)) ** 0.5]
""",
        },
        "pair_noise": {
            "the other order": "def pair_noise(first, second):\n"
            "    return (second - first) * 0.5**0.5\n",
            "around the mean": "def pair_noise(first, second):\n"
            "    return 2**0.5 * (first - (first + second) / 2)\n",
            "in place": "def pair_noise(first, second):\n"
            "    return first.sub_(second).div_(2**0.5).float()\n",
        },
        "noise_back": {
            "one matrix product": """
def noise_back(gradients, k):
    size = ((1 - 1 / k) / 2) ** 0.5
    weights = torch.tensor([1 / k] * k + [-size, size], dtype=gradients.dtype)
    return weights @ gradients
""",
            "a loop": """
def noise_back(gradients, k):
    mean = 0
    for row in gradients[:-2]:
        mean = mean + row / k
    return mean + pair_noise(*gradients[-2:]) * ((k - 1) / k) ** 0.5
""",
            "numpy, as a list": """
import numpy as np

def noise_back(gradients, k):
    g = np.asarray(gradients)
    return list(g[:k].mean(0) + np.sqrt((k - 1) / (2 * k)) * (g[k] - g[k + 1]))
""",
        },
        "even_odd": {
            "by what is left": "def even_odd(up, down):\n"
            "    even = 0.5 * (up + down)\n    return even, up - even\n",
            "a matrix": "def even_odd(up, down):\n"
            "    return torch.tensor([[0.5, 0.5], [0.5, -0.5]]) @ torch.tensor([up, down])\n",
            "numpy": "import numpy as np\n\ndef even_odd(up, down):\n"
            "    return np.array([up + down, up - down]) / 2\n",
        },
        "paired_interval": {
            "scipy's own": """
from scipy import stats

def paired_interval(first, second):
    low, high = stats.ttest_rel(first.numpy(), second.numpy()).confidence_interval(0.95)
    return [(low + high) / 2, (high - low) / 2]
""",
            "a table": """
T = {4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}

def paired_interval(first, second):
    d = (first - second).tolist()
    n, mean = len(d), sum(d) / len(d)
    return mean, T[n] * (sum((v - mean) ** 2 for v in d) / (n - 1) / n) ** 0.5
""",
            "through the covariance": """
from scipy.stats import t

def paired_interval(first, second):
    n, c = len(first), torch.cov(torch.stack([first, second]))
    variance = c[0, 0] + c[1, 1] - 2 * c[0, 1]
    half = (variance / n) ** 0.5 * t(n - 1).ppf(0.975)
    return torch.stack([first.mean() - second.mean(), half])
""",
        },
    },
    "explicit": {
        "exact_effect": {
            "the label left out": """
def exact_effect(x, y, w, b, q, members):
    z, a = x @ w + b, (x * w) @ members.T
    total = -F.softplus(z)
    for kept in product((0, 1), repeat=len(members)):
        kept = torch.tensor(kept).to(x)
        chance = (kept * (1 - q) + (1 - kept) * q).prod()
        total = total + chance * F.softplus(z + a @ (kept / (1 - q) - 1))
    return total
""",
            "recursion over groups": """
def exact_effect(x, y, w, b, q, members):
    a = (x * w) @ members.T

    def mean(z, g):
        if g == a.shape[1]:
            return F.softplus(-y * z)
        return q * mean(z - a[:, g], g + 1) + (1 - q) * mean(z + q / (1 - q) * a[:, g], g + 1)

    return mean(x @ w + b, 0) - F.softplus(-y * (x @ w + b))
""",
            "floats in lists": """
import math

def exact_effect(x, y, w, b, q, members):
    found = []
    for row, label in zip(x.tolist(), y.tolist()):
        loss = lambda f: math.log1p(math.exp(-label * (sum(map(math.prod, zip(row, w.tolist(), f))) + b)))
        total = 0.0
        for mask in product((0, 1), repeat=len(members)):
            factors = [m / (1 - q) for m in (torch.tensor(mask).double() @ members).tolist()]
            total += math.prod(1 - q if m else q for m in mask) * loss(factors)
        found.append(total - loss([1.0] * len(row)))
    return found
""",
        },
        "quadratic_form": {
            "by autograd": """
def quadratic_form(x, y, w, b, q, members):
    def loss(eta, row, label):
        return F.softplus(-label * ((row * (1 + eta @ members)) @ w + b))

    second = torch.func.hessian(loss)
    none = torch.zeros(len(members), dtype=x.dtype)
    return torch.stack([q / (1 - q) / 2 * second(none, r, l).trace() for r, l in zip(x, y)])
""",
            "einsum, float32": """
def quadratic_form(x, y, w, b, q, members):
    x, w, members = x.float(), w.float(), members.float()
    a = torch.einsum("nd,d,gd->ng", x, w, members)
    z = x @ w + b
    return (a**2).sum(1) * torch.sigmoid(z) * torch.sigmoid(-z) * q / (2 - 2 * q)
""",
            "through the label": """
def quadratic_form(x, y, w, b, q, members):
    p = torch.sigmoid(y * (x @ w + b))
    return [float(0.5 * q / (1 - q) * s * (1 - s) * (members @ (r * w)).norm() ** 2) for r, s in zip(x, p)]
""",
        },
        "h_out": {
            "by autograd": """
def h_out(logits):
    return torch.stack([torch.autograd.functional.hessian(lambda z: z.logsumexp(0), row) for row in logits])
""",
            "loops of floats": """
def h_out(logits):
    return [[[p * (i == j) - p * r for j, r in enumerate(row)] for i, p in enumerate(row)]
            for row in logits.softmax(1).tolist()]
""",
            "the softmax's Jacobian, float32": """
def h_out(logits):
    return vmap(jacrev(lambda z: torch.softmax(z, 0)))(logits.float())
""",
        },
        "r_approx": {
            "forward derivatives, unit by unit": """
def r_approx(weights, x, y, q):
    h1 = first_layer(weights, x)
    h2 = second_layer(weights, h1)
    total = torch.zeros((), dtype=x.dtype)
    parts = ((h1, lambda h: output(weights, second_layer(weights, h))), (h2, lambda h: output(weights, h)))
    for (h, rest), rate in zip(parts, q):
        for j in range(h.shape[1]):
            along = torch.zeros_like(h)
            along[:, j] = h[:, j]
            logits, t = jvp(rest, (h,), (along,))
            p = logits.softmax(1)
            total += rate / (1 - rate) / 2 * ((p * t**2).sum(1) - (p * t).sum(1) ** 2).mean()
    return total.reshape(1)
""",
            "one example at a time": """
def r_approx(weights, x, y, q):
    total = 0.0
    for row in x:
        h1 = torch.tanh(row @ weights[0])
        h2 = torch.tanh(h1 @ weights[1])
        J2 = weights[2].T
        J1 = J2 @ torch.diag(1 - h2**2) @ weights[1].T
        H = h_out((h2 @ weights[2])[None])[0]
        for h, J, rate in ((h1, J1, q[0]), (h2, J2, q[1])):
            total += float(((J.T @ H @ J).diagonal() * h**2).sum()) * rate / (1 - rate)
    return total / (2 * len(x))
""",
            "the mean over all sign patterns": """
def r_approx(weights, x, y, q):
    units = weights[0].shape[1]
    every = torch.tensor(list(product((-1.0, 1.0), repeat=2 * units)), dtype=x.dtype)
    values = [probe(weights, x, q, [s[:units].expand(len(x), -1), s[units:].expand(len(x), -1)]) for s in every]
    return sum(values) / len(values)
""",
        },
        "probe": {
            "two backward passes": """
def probe(weights, x, q, signs):
    eta = [(torch.zeros_like(s)).requires_grad_() for s in signs]
    h1 = first_layer(weights, x)
    h2 = second_layer(weights, h1 * (1 + eta[0]))
    logits = output(weights, h2 * (1 + eta[1]))
    u = torch.zeros_like(logits).requires_grad_()
    back = torch.autograd.grad(logits, eta, u, create_graph=True)
    along = sum((b * s * (r / (1 - r)) ** 0.5).sum() for b, s, r in zip(back, signs, q))
    t = torch.autograd.grad(along, u)[0]
    p = logits.detach().softmax(1)
    return (((p * t**2).sum(1) - (p * t).sum(1) ** 2) / 2).mean()
""",
            "layers by hand": """
def probe(weights, x, q, signs):
    eta = [s * (r / (1 - r)) ** 0.5 for s, r in zip(signs, q)]
    h1 = torch.tanh(x @ weights[0])
    h2 = torch.tanh(h1 @ weights[1])
    t = ((eta[0] * h1) @ weights[1] * (1 - h2**2) + eta[1] * h2) @ weights[2]
    H = h_out(h2 @ weights[2])
    return float(sum(row @ M @ row for row, M in zip(t, H))) / (2 * len(x))
""",
            "a central difference": """
def probe(weights, x, q, signs, step=1e-4):
    def at(s):
        h1 = first_layer(weights, x)
        h1 = h1 + s * (q[0] / (1 - q[0])) ** 0.5 * signs[0] * h1
        h2 = second_layer(weights, h1)
        return output(weights, h2 + s * (q[1] / (1 - q[1])) ** 0.5 * signs[1] * h2)

    t = (at(step) - at(-step)) / (2 * step)
    return 0.5 * torch.einsum("nc,ncd,nd->n", t, h_out(at(0)), t).mean()
""",
        },
        "estimate": {
            "numpy's signs": """
import numpy as np

def estimate(weights, x, q, draws):
    rng = np.random.default_rng()
    units = weights[0].shape[1]
    new = lambda: torch.tensor(rng.choice([-1.0, 1.0], (len(x), units)))
    return [float(probe(weights, x, q, [new(), new()])) for _ in range(draws)]
""",
            "all draws at once": """
def estimate(weights, x, q, draws):
    units, n = weights[0].shape[1], len(x)
    s = torch.randint(0, 2, (draws, n, 2 * units)).to(x.dtype) * 2 - 1
    values = vmap(lambda one: probe(weights, x, q, [one[:, :units], one[:, units:]]))(s)
    return tuple(values.tolist())
""",
            "a column, by Bernoulli": """
def estimate(weights, x, q, draws):
    half = torch.full((len(x), weights[0].shape[1]), 0.5, dtype=x.dtype)
    found = torch.zeros(draws, requires_grad=True).clone()
    for i in range(draws):
        found[i] = probe(weights, x, q, [1 - 2 * torch.bernoulli(half) for _ in range(2)])
    return found
""",
        },
        "sampled_label_gradient": {
            "the product rule in two calls": changed(
                EXPLICIT["sampled_label_gradient"],
                (
                    "    extra = f.detach() * -losses\n"
                    "    return flat(torch.autograd.grad((f + extra).mean(), leaves))",
                    "    one = flat(torch.autograd.grad(f.mean(), leaves, retain_graph=True))\n"
                    "    other = flat(torch.autograd.grad((f.detach() * losses).mean(), leaves))\n"
                    "    return (one - other).tolist()",
                ),
            ),
            "functional": """
def sampled_label_gradient(weights, x, q, labels):
    def value(w):
        fixed = [v.detach() for v in w]

        def f(leaves, row, label):
            def loss(h1, h2_of):
                return F.cross_entropy(output(leaves, h2_of(h1)), label)

            h1 = first_layer(leaves, row)
            h2 = second_layer(leaves, h1)
            g1 = torch.func.grad(lambda h: F.cross_entropy(output(leaves, second_layer(leaves, h)), label))(h1)
            g2 = torch.func.grad(lambda h: F.cross_entropy(output(leaves, h), label))(h2)
            size = q[0] / (1 - q[0]) * (h1 * g1).square().sum()
            size = size + q[1] / (1 - q[1]) * (h2 * g2).square().sum()
            p = output(leaves, h2).softmax(0)[label]
            return p / p.detach() * size / 2

        return sum(f(w, row, label) for row, label in zip(x, labels)) / len(x)

    leaves = [w.clone().requires_grad_() for w in weights]
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value(leaves), leaves)])
""",
            "row by row, as numpy": """
def sampled_label_gradient(weights, x, q, labels):
    total = 0.0
    for row, label in zip(x, labels):
        W = [w.clone().requires_grad_() for w in weights]
        h1 = torch.tanh(row @ W[0])
        h2 = torch.tanh(h1 @ W[1])
        log_p = (h2 @ W[2]).log_softmax(0)[label]
        slopes = torch.autograd.grad(log_p, [h1, h2], create_graph=True)
        f = sum(r / (1 - r) / 2 * ((h * s) ** 2).sum() for h, s, r in zip((h1, h2), slopes, q))
        total = total + flat(torch.autograd.grad(f + f.item() * log_p, W)) / len(x)
    return total.numpy()
""",
        },
    },
    "implicit": {
        "signs": {
            "lists of floats": """
import random

def signs(rows, units, q):
    return [[random.choice((-1, 1)) * (q / (1 - q)) ** 0.5 for _ in range(units)] for _ in range(rows)]
""",
            "float32 by sign": """
def signs(rows, units, q):
    return torch.sign(torch.randn(rows, units)) * torch.tensor(q / (1 - q)).sqrt()
""",
            "in place, by Bernoulli": """
def signs(rows, units, q):
    drawn = torch.empty(units, rows, dtype=torch.float64).bernoulli_(0.5)
    return drawn.mul_(2).sub_(1).mul_((1 / (1 - q) - 1) ** 0.5).T
""",
        },
        "xi": {
            "forward over backward": """
def xi(weights, eta, x, y):
    none = [0 * e for e in eta]

    def slope(w):
        return torch.func.jvp(lambda *e: loss(w, e, x, y), tuple(none), tuple(eta))[1]

    return flat(torch.func.grad(slope)([w.clone() for w in weights]))
""",
            "Richardson's differences": """
def xi(weights, eta, x, y):
    def odd(s):
        up, down = ([sign * s * e for e in eta] for sign in (1, -1))
        return (gradient(weights, up, x, y) - gradient(weights, down, x, y)) / (2 * s)

    return (4 * odd(5e-4) - odd(1e-3)) / 3
""",
            "the strength as a leaf, a list": """
def xi(weights, eta, x, y):
    W = [w.clone().requires_grad_() for w in weights]
    s = torch.zeros((), dtype=x.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(W, [s * e for e in eta], x, y), s, create_graph=True)
    slope.backward()
    return torch.cat([w.grad.view(-1) for w in W]).tolist()
""",
        },
        "xi_covariance": {
            "roots of the covariance": """
def xi_covariance(weights, x, y, q):
    n, u = len(x), weights[0].shape[1]
    columns = []
    for b in range(n):
        for j in range(2 * u):
            e = torch.zeros(1, 2 * u).double()
            e[0, j] = (q / (1 - q)) ** 0.5 / n
            columns.append(xi(weights, [e[:, :u], e[:, u:]], x[b, None], y[b, None]))
    return torch.einsum("ai,aj->ij", torch.stack(columns), torch.stack(columns))
""",
            "over all signs": """
def xi_covariance(weights, x, y, q):
    u, total = weights[0].shape[1], 0
    for row, label in zip(x[:, None], y[:, None]):
        for mask in product((-1.0, 1.0), repeat=2 * u):
            e = torch.tensor([mask], dtype=x.dtype) * (q / (1 - q)) ** 0.5
            one = xi(weights, [e[:, :u], e[:, u:]], row, label)
            total = total + torch.outer(one, one) / 4**u
    return (total / len(x) ** 2).numpy()
""",
            "over dropout's own masks": """
def xi_covariance(weights, x, y, q):
    u, total = weights[0].shape[1], 0.0
    for i in range(len(x)):
        for mask in product((0, 1), repeat=2 * u):
            chance = (1 - q) ** sum(mask) * q ** (2 * u - sum(mask))
            e = torch.tensor([[m / (1 - q) - 1 for m in mask]], dtype=x.dtype)
            one = xi(weights, list(e.split(u, 1)), x[i : i + 1], y[i : i + 1])
            total += chance * one[:, None] * one
    return total / len(x) / len(x)
""",
        },
        "odd_covariance": {
            "half of the masks": """
def odd_covariance(weights, x, y, strength):
    u, found = weights[0].shape[1], []
    for mask in product((-1.0, 1.0), repeat=2 * u - 1):
        e = strength * torch.tensor([(1.0, *mask)], dtype=x.dtype)
        up, down = (gradient(weights, list((s * e).split(u, 1)), x, y) for s in (1, -1))
        found.append((up - down) / (2 * strength))
    return sum(torch.outer(f, f) for f in found) / len(found)
""",
            "numpy's covariance": """
import numpy as np

def odd_covariance(weights, x, y, strength):
    u = weights[0].shape[1]
    masks = strength * torch.tensor(list(product((-1.0, 1.0), repeat=2 * u)), dtype=x.dtype)
    G = torch.stack([gradient(weights, [m[None, :u], m[None, u:]], x, y) for m in masks]).numpy()
    return np.cov((G - G[::-1]).T / 2 / strength, bias=True)
""",
            "the mean of gradients with their signs": """
def odd_covariance(weights, x, y, strength):
    u = weights[0].shape[1]
    every = list(product((-1.0, 1.0), repeat=2 * u))
    of = {m: gradient(weights, [strength * torch.tensor([h], dtype=x.dtype) for h in (m[:u], m[u:])], x, y)
          for m in every}
    odd = [(of[m] - of[tuple(-v for v in m)]) / 2 for m in every]
    return (torch.stack(odd).T @ torch.stack(odd) / len(every) / strength**2).tolist()
""",
        },
        "match": {
            "numpy": """
import numpy as np

def match(first, second):
    a, b = first.numpy(), np.asarray(second)
    return np.trace(a) / np.trace(b), np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
""",
            "eigenvalues and a library's cosine": """
def match(first, second):
    ratio = torch.linalg.eigvalsh(first).sum() / torch.linalg.eigvalsh(second).sum()
    return torch.stack([ratio, F.cosine_similarity(first.flatten(), second.flatten(), dim=0)])
""",
            "traces of products": """
def match(first, second):
    inner = lambda a, b: torch.trace(a @ b.T)
    cosine = inner(first, second) / (inner(first, first) * inner(second, second)) ** 0.5
    return [float(torch.trace(first)) / float(torch.trace(second)), float(cosine)]
""",
        },
        "pair_noise": {
            "one pass for both": """
def pair_noise(weights, eta_a, eta_b, x, y):
    W = [w.clone().requires_grad_() for w in weights]
    difference = loss(W, eta_a, x, y) - loss(W, eta_b, x, y)
    return flat(torch.autograd.grad(difference, W)) / 2**0.5
""",
            "around the mean": """
def pair_noise(weights, eta_a, eta_b, x, y):
    a, b = (gradient(weights, eta, x, y) for eta in (eta_a, eta_b))
    return 2**0.5 * (a - (a + b) / 2)
""",
            "by torch.func, float32": """
def pair_noise(weights, eta_a, eta_b, x, y):
    W = [w.float() for w in weights]
    a, b = (
        flat(torch.func.grad(loss)(W, [e.float() for e in eta], x.float(), y))
        for eta in (eta_a, eta_b)
    )
    return ((b - a) / 2**0.5).numpy()
""",
        },
        "dialled": {
            "each mask by itself": changed(
                IMPLICIT["dialled"], ("sum(gradient", "1.0 * sum(gradient")
            ),
            "one backward pass": """
def dialled(weights, masks, eta, x, y, strength):
    W = [w.clone().requires_grad_() for w in weights]
    k = len(masks[0])
    s = torch.zeros((), dtype=x.dtype, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(W, [s * e for e in eta], x, y), s, create_graph=True)
    goal = loss(W, masks, x, y) + strength * ((k - 1) / k) ** 0.5 * slope
    goal.backward()
    return [v for w in W for v in w.grad.flatten().tolist()]
""",
            "examples repeated, in place": """
def dialled(weights, masks, eta, x, y, strength):
    k, n, u = masks[0].shape
    found = gradient(weights, [m.reshape(k * n, u) for m in masks], x.repeat(k, 1), y.repeat(k))
    return found.add_(xi(weights, eta, x, y), alpha=strength * (1 - 1 / k) ** 0.5)
""",
        },
    },
    "project": {
        "two_passes": {
            "matrices, row by row": """
def two_passes(plus, minus, targets, step):
    explicit, slope, count = 0.0, 0.0, 0
    for a, b, c in zip(plus.flatten(0, 1), minus.flatten(0, 1), targets.flatten()):
        if c >= 0:
            t, p = (a - b) / (2 * step), torch.softmax((a + b) / 2, 0)
            explicit += float(t @ (torch.diag(p) - torch.outer(p, p)) @ t) / 2
            slope += float(F.cross_entropy(a, c) - F.cross_entropy(b, c)) / (2 * step)
            count += 1
    return explicit / count, slope / count
""",
            "weights of zeros and ones": """
def two_passes(plus, minus, targets, step):
    keep = (targets != -100).float()
    t = (plus - minus) / step / 2
    p = (0.5 * plus + 0.5 * minus).softmax(2)
    centred = t - torch.einsum("bnc,bnc->bn", p, t)[..., None]
    both = [F.cross_entropy(z.transpose(1, 2), targets) for z in (plus, minus)]
    part = 0.5 * (torch.einsum("bnc,bnc->bn", p, centred**2) * keep).sum() / keep.sum()
    return torch.stack([part, (both[0] - both[1]) / 2 / step])
""",
            "numpy": """
import numpy as np

def two_passes(plus, minus, targets, step):
    y = targets.numpy()
    a, b = plus.numpy()[y >= 0], minus.numpy()[y >= 0]
    y = y[y >= 0]
    softmax = lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)
    t, p = (a - b) / (2 * step), softmax((a + b) / 2)
    mean = (p * t).sum(1, keepdims=True)
    loss = lambda z: -np.log(softmax(z)[range(len(y)), y]).mean()
    return np.array([(p * (t - mean) ** 2).sum(1).mean() / 2, (loss(a) - loss(b)) / (2 * step)])
""",
        },
        "perplexity": {
            "numpy": """
import numpy as np

def perplexity(losses, counts):
    return np.exp(np.average(losses, weights=counts))
""",
            "a product of powers": """
def perplexity(losses, counts):
    return math.prod(math.exp(loss) ** (count / sum(counts)) for loss, count in zip(losses, counts))
""",
            "float32, one entry": """
def perplexity(losses, counts):
    c = torch.tensor(counts, dtype=torch.float32)
    return (torch.tensor(losses) @ (c / c.sum())).exp().reshape(1, 1)
""",
        },
        "train": {
            "a replacement for every rule but none": changed(
                PROJECT["train"],
                (
                    "    curves = [[], []]\n",
                    "    curves = [[], []]\n"
                    "    if rule != 'none' and not isinstance(rule, str):\n"
                    "        objective = dropreg.replace_dropout(\n"
                    "            model, explicit=rule[0], implicit=rule[1], share=1\n        )\n",
                ),
                (
                    "                e, i = rule\n"
                    "                objective = dropreg.replace_dropout(model, explicit=e, implicit=i)\n",
                    "",
                ),
            ),
            "a step by hand, as tuples": changed(
                PROJECT["train"],
                (
                    "            optimizer.zero_grad()\n",
                    "            model.zero_grad(set_to_none=True)\n",
                ),
                (
                    "            optimizer.step()\n",
                    "            with torch.no_grad():\n"
                    "                for p in model.parameters():\n"
                    "                    p.sub_(p.grad, alpha=LEARNING_RATE)\n",
                ),
                ("    return curves", "    return tuple(tuple(c) for c in curves)"),
            ),
            "other masks, and tensors": changed(
                PROJECT["train"],
                (
                    "    torch.manual_seed(seed)\n",
                    "    torch.manual_seed(seed)\n    torch.rand(seed + 1)\n",
                ),
                ("    return curves", "    return torch.tensor(curves, dtype=torch.float64)"),
            ),
        },
        "choose": {
            "argmin of a tensor": "def choose(valid, test):\n"
            "    return torch.tensor(test, dtype=torch.float64)[torch.tensor(valid).argmin()]\n",
            "index of the minimum, one entry": "def choose(valid, test):\n"
            "    return [test[valid.index(min(valid))]]\n",
            "a loop": "def choose(valid, test):\n"
            "    best = float('inf')\n"
            "    for v, t in zip(valid, test):\n"
            "        if v < best:\n"
            "            best, found = v, t\n"
            "    return found\n",
        },
        "compare": {
            "scipy's own": """
from scipy import stats
import numpy as np

def compare(first, second):
    low, high = stats.ttest_1samp(np.log(first) - np.log(second), 0).confidence_interval()
    return np.array([(low + high) / 2, (high - low) / 2])
""",
            "sums by hand": """
def compare(first, second):
    d = [math.log(a) - math.log(b) for a, b in zip(first, second)]
    n = len(d)
    m = sum(d) / n
    half = [12.706, 4.303, 3.182, 2.776, 2.571][n - 2] * math.sqrt(sum((v - m) ** 2 for v in d) / (n * n - n))
    return m, half
""",
            "tensors": """
def compare(first, second):
    import scipy.stats as s
    d = (torch.tensor(first).double() / torch.tensor(second).double()).log()
    return torch.tensor([d.mean(), d.std() * s.t.isf(0.025, len(d) - 1) / len(d) ** 0.5])
""",
        },
        "verdict": {
            "the largest end": """
def verdict(mean, half, margin):
    ends = (mean - half, mean + half)
    if max(abs(end) for end in ends) < margin:
        return "equal"
    return {(True, True): "lower", (False, False): "higher"}.get(
        (ends[0] < 0, ends[1] < 0), "not told apart"
    )
""",
            "sign and size": """
def verdict(mean, half, margin):
    decided = "lower" if mean < 0 else "higher"
    if abs(mean) <= half:
        decided = "not told apart"
    return decided if abs(mean) + half >= margin else "equal"
""",
            "a match": """
def verdict(mean, half, margin):
    match (mean - half > -margin and mean + half < margin, mean + half < 0, mean - half > 0):
        case (True, _, _):
            return "equal"
        case (_, True, _):
            return "lower"
        case (_, _, True):
            return "higher"
    return "not told apart"
""",
        },
    },
}
