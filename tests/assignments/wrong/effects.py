"""Wrong solutions of assignment 2. Each replaces one function of the reference solution."""

from wrong.case import Wrong


def explicit(name, clean, result, fails, says):
    source = f"""
def explicit_effect(model, x, y, draws):
    with torch.no_grad():
        model.{clean}()
        clean = F.cross_entropy(model(x), y)
        model.train()
        losses = torch.stack([F.cross_entropy(model(x), y) for _ in range(draws)])
    return {result}
"""
    lost = {f"explicit_effect-{test}" for test in fails}
    return Wrong(name, "explicit_effect", source, lost, says)


def gradients(name, before, in_loop, fails, says):
    source = f"""
def gradient_draws(model, x, y, draws):
    rows = []
    {before}
    for _ in range(draws):
        {in_loop}
        rows.append(torch.cat([grad.flatten().clone() for grad in grads]))
    return torch.stack(rows)
"""
    lost = {f"gradient_draws-{test}" for test in fails}
    return Wrong(name, "gradient_draws", source, lost, says)


def one_line(function, arguments):
    """Make wrong versions of a function that has one line."""

    def wrong(name, expression, fails, says):
        source = f"def {function}({arguments}):\n    return {expression}\n"
        return Wrong(name, function, source, {f"{function}-{test}" for test in fails}, says)

    return wrong


ratio = one_line("noise_to_signal", "gradients")
pair = one_line("pair_noise", "first, second")
back = one_line("noise_back", "gradients, k")
split = one_line("even_odd", "up, down")
interval = one_line("paired_interval", "first, second")

BACK = {"noise_back-spread"}


def pair_and_back(name, expression, says):
    """A wrong pair, which `noise_back` calls."""
    wrong = pair(name, expression, ["value"], says)
    return Wrong(name, "pair_noise", wrong.source, wrong.fails | BACK, says)


NOISE = "pair_noise(gradients[k], gradients[k + 1])"
LOSS = "grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))"
ROOT = "len(first) ** 0.5"
T = "__import__('scipy.stats').stats.t.ppf(0.975, len(first) - 1)"

WRONG = [
    explicit(
        "does not subtract",
        "eval",
        "[losses.mean(), losses.std() / draws**0.5]",
        ["mean"],
        "subtract the clean one",
    ),
    explicit(
        "clean loss only",
        "eval",
        "[clean, losses.std() / draws**0.5]",
        ["mean"],
        "clean loss alone",
    ),
    explicit(
        "sign",
        "eval",
        "[clean - losses.mean(), losses.std() / draws**0.5]",
        ["mean"],
        "sign is turned around",
    ),
    explicit(
        "a half too much",
        "eval",
        "[(losses.mean() - clean) / 2, losses.std() / draws**0.5]",
        ["mean"],
        "½ too much",
    ),
    Wrong(
        "no dropout at all",
        "explicit_effect",
        """
def explicit_effect(model, x, y, draws):
    model.eval()
    clean = F.cross_entropy(model(x), y)
    losses = torch.stack([F.cross_entropy(model(x), y) for _ in range(draws)])
    return [(losses.mean() - clean).item(), (losses.std() / draws**0.5).item()]
""",
        {"explicit_effect-mean", "explicit_effect-error"},
        "in the same mode",
    ),
    explicit(
        "the spread, not the error",
        "eval",
        "[losses.mean() - clean, losses.std()]",
        ["error"],
        "smaller by √n",
    ),
    explicit(
        "n for its root",
        "eval",
        "[losses.mean() - clean, losses.std() / draws]",
        ["error"],
        "not as n",
    ),
    explicit(
        "a variance",
        "eval",
        "[losses.mean() - clean, losses.var() / draws]",
        ["error"],
        "take its root",
    ),
    explicit(
        "no error at all",
        "eval",
        "losses.mean() - clean",
        ["mean", "error"],
        "the shape should be (2,)",
    ),
    gradients(
        "gradients pile up",
        "params = list(model.parameters())",
        "F.cross_entropy(model(x), y).backward(); grads = [p.grad for p in params]",
        ["mean", "spread"],
        "pile up",
    ),
    gradients("dropout switched off", "model.eval()", LOSS, ["mean", "spread"], "without noise"),
    gradients(
        "one mask for all draws",
        LOSS,
        "pass",
        ["mean", "spread"],
        "each needs a forward pass",
    ),
    ratio(
        "trace over length",
        "gradients.var(0).sum() / gradients.mean(0).norm()",
        ["ratio"],
        "root of the trace",
    ),
    ratio(
        "squares",
        "gradients.var(0).sum() / gradients.mean(0).norm() ** 2",
        ["ratio"],
        "both are squared",
    ),
    ratio(
        "turned around",
        "gradients.mean(0).norm() / gradients.var(0).sum().sqrt()",
        ["ratio"],
        "signal over noise",
    ),
    ratio(
        "not centred",
        "gradients.square().sum(1).mean().sqrt() / gradients.mean(0).norm()",
        ["ratio"],
        "subtract the mean gradient",
    ),
    ratio(
        "mean of the lengths",
        "gradients.var(0).sum().sqrt() / gradients.norm(dim=1).mean()",
        ["ratio"],
        "not the mean of the lengths",
    ),
    ratio(
        "n for n-1",
        "gradients.var(0, correction=0).sum().sqrt() / gradients.mean(0).norm()",
        ["ratio"],
        "divide by n-1",
    ),
    pair_and_back("forgot √2", "first - second", "divide by √2"),
    pair_and_back("2 for √2", "(first - second) / 2", "not by 2"),
    pair_and_back("times √2", "(first - second) * 2**0.5", "do not multiply"),
    Wrong(
        "a sum",
        "pair_noise",
        "def pair_noise(first, second):\n    return (first + second) / 2**0.5\n",
        {"pair_noise-value", "noise_back-mean"},
        "the difference has mean zero",
    ),
    back("puts nothing back", "gradients[:k].mean(0)", ["spread"], "no noise is put back"),
    back("forgot √(1-1/k)", f"gradients[:k].mean(0) + {NOISE}", ["spread"], "√(1-1/k) is missing"),
    back(
        "1-1/k without the root",
        f"gradients[:k].mean(0) + (1 - 1 / k) * {NOISE}",
        ["spread"],
        "take its root",
    ),
    back(
        "√(1/k)",
        f"gradients[:k].mean(0) + (1 / k) ** 0.5 * {NOISE}",
        ["spread"],
        "the noise that it lacks",
    ),
    back(
        "forgot √2",
        "gradients[:k].mean(0) + (1 - 1 / k) ** 0.5 * (gradients[k] - gradients[k + 1])",
        ["spread"],
        "by √2",
    ),
    back(
        "2 for √2",
        "gradients[:k].mean(0) + (1 - 1 / k) ** 0.5 * (gradients[k] - gradients[k + 1]) / 2",
        ["spread"],
        "not by 2",
    ),
    back(
        "sum of the first k",
        f"gradients[:k].sum(0) + (1 - 1 / k) ** 0.5 * {NOISE}",
        ["mean", "spread"],
        "their mean is wanted",
    ),
    back(
        "adds the pair",
        "gradients[:k].mean(0) + ((1 - 1 / k) / 2) ** 0.5 * (gradients[k] + gradients[k + 1])",
        ["mean"],
        "its difference has mean zero",
    ),
    back("only the noise", NOISE, ["mean", "spread"], "the mean gradient is not"),
    back("mean of all k + 2", "gradients.mean(0)", ["mean", "spread"], "not for the mean"),
    split("forgot ½", "[up + down, up - down]", ["parts"], "½ is missing"),
    split("exchanged", "[(up - down) / 2, (up + down) / 2]", ["parts"], "changed places"),
    split("sign of the odd part", "[(up + down) / 2, (down - up) / 2]", ["parts"], "up minus down"),
    interval(
        "second minus first",
        f"[(second - first).mean(), {T} * (first - second).std() / {ROOT}]",
        ["interval"],
        "first minus the second",
    ),
    interval(
        "unpaired",
        f"[(first - second).mean(), {T} * (first.var() + second.var()) ** 0.5 / {ROOT}]",
        ["interval"],
        "seed by seed",
    ),
    interval(
        "1.96",
        f"[(first - second).mean(), 1.96 * (first - second).std() / {ROOT}]",
        ["interval"],
        "Student's t",
    ),
    interval(
        "2 for t",
        f"[(first - second).mean(), 2 * (first - second).std() / {ROOT}]",
        ["interval"],
        "Student's t",
    ),
    interval(
        "forgot √n",
        f"[(first - second).mean(), {T} * (first - second).std()]",
        ["interval"],
        "divide by √n",
    ),
    interval(
        "a standard error",
        f"[(first - second).mean(), (first - second).std() / {ROOT}]",
        ["interval"],
        "t times as wide",
    ),
]
