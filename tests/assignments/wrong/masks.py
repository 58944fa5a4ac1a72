"""Wrong solutions of assignment 1. Each replaces one function of the reference solution."""

from wrong.case import Wrong


def dropout(name, body, fails, says):
    source = "def dropout(h, q, training=True):\n" + body
    return Wrong(name, "dropout", source, {f"dropout-{test}" for test in fails}, says)


def one_line(function, arguments):
    """Make wrong versions of a function that has one line."""

    def wrong(name, expression, fails, says):
        source = f"def {function}({arguments}):\n    return {expression}\n"
        return Wrong(name, function, source, {f"{function}-{test}" for test in fails}, says)

    return wrong


moments = one_line("moments", "q")
error = one_line("mean_and_error", "draws")
variance = one_line("output_variance", "h, w, q, shared")
k_loss = one_line("dropout_k_loss", "w, x, y, q, k")
trace = one_line("noise_trace", "gradients")
power = one_line("power", "ks, traces")

MASKED = "    kept = torch.rand_like(h) >= q\n"
# What follows from a wrong dropout: Dropout_k calls it.
K_BOTH = {"dropout_k_loss-mean", "dropout_k_loss-variance"}


def with_k(wrong, *fails):
    return Wrong(wrong.name, wrong.function, wrong.source, wrong.fails | set(fails), wrong.says)


LINE = "(lambda x, y: ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())"

WRONG = [
    with_k(
        dropout(
            "forgot 1/(1-q)",
            MASKED + "    return h * kept if training else h\n",
            ["mean"],
            "must be divided by 1-q",
        ),
        *K_BOTH,
    ),
    dropout(
        "scales at evaluation as well",
        MASKED + "    return h * kept / (1 - q) if training else h * (1 - q)\n",
        ["evaluation"],
        "evaluation must not be scaled",
    ),
    with_k(
        dropout(
            "scales at evaluation instead of in training",
            MASKED + "    return h * kept if training else h * (1 - q)\n",
            ["mean", "evaluation"],
            "evaluation must not be scaled",
        ),
        *K_BOTH,
    ),
    dropout(
        "divides in evaluation too",
        MASKED + "    return h * kept / (1 - q) if training else h / (1 - q)\n",
        ["evaluation"],
        "as only training is",
    ),
    dropout(
        "drops in evaluation",
        MASKED + "    return h * kept / (1 - q)\n",
        ["evaluation"],
        "nothing may be dropped",
    ),
    with_k(
        dropout(
            "divides by q",
            MASKED + "    return h * kept / q if training else h\n",
            ["mean"],
            "divided by q, not by 1-q",
        ),
        *K_BOTH,
    ),
    with_k(
        dropout(
            "multiplies by 1-q",
            MASKED + "    return h * kept * (1 - q) if training else h\n",
            ["mean"],
            "multiplied by 1-q",
        ),
        *K_BOTH,
    ),
    with_k(
        dropout(
            "takes q for the probability of keeping",
            "    kept = torch.rand_like(h) < q\n    return h * kept / q if training else h\n",
            ["values"],
            "q is the probability of a zero",
        ),
        *K_BOTH,
    ),
    with_k(
        dropout(
            "one mask for all rows",
            "    kept = torch.rand_like(h[0]) >= q\n    return h * kept / (1 - q) if training else h\n",
            ["mean", "values"],
            "share one mask",
        ),
        "dropout_k_loss-variance",
    ),
    with_k(
        dropout(
            "one number for the whole tensor",
            "    kept = torch.rand(()) >= q\n    return h * kept / (1 - q) if training else h\n",
            ["mean", "values"],
            "is the mask one number",
        ),
        *K_BOTH,
    ),
    with_k(
        dropout(
            "no return",
            MASKED + "    h * kept / (1 - q)\n",
            ["mean", "values", "evaluation"],
            "Does it end with `return`?",
        ),
        *K_BOTH,
    ),
    moments(
        "mean of 1 + η",
        "[1.0, q / (1 - q), q * (2 * q - 1) / (1 - q) ** 2]",
        ["variance"],
        "what the noise adds",
    ),
    moments(
        "variance of the bare mask",
        "[0.0, q * (1 - q), q * (2 * q - 1) / (1 - q) ** 2]",
        ["variance"],
        "variance of the bare mask",
    ),
    moments(
        "the paper's slip of sign",
        "[0.0, q / (q - 1), q * (2 * q - 1) / (1 - q) ** 2]",
        ["variance"],
        "slip of sign",
    ),
    moments(
        "second moment of 1 + η",
        "[0.0, 1 / (1 - q), q * (2 * q - 1) / (1 - q) ** 2]",
        ["variance"],
        "take the square of η",
    ),
    moments(
        "standard deviation",
        "[0.0, (q / (1 - q)) ** 0.5, q * (2 * q - 1) / (1 - q) ** 2]",
        ["variance"],
        "the standard deviation",
    ),
    moments(
        "lost the sign of the cube",
        "[0.0, q / (1 - q), q + q**3 / (1 - q) ** 2]",
        ["third"],
        "(-1)³",
    ),
    moments(
        "thinks that the law is symmetric", "[0.0, q / (1 - q), 0.0]", ["third"], "not symmetric"
    ),
    moments(
        "forgot the probabilities",
        "[0.0, q / (1 - q), (q / (1 - q)) ** 3 - 1]",
        ["third"],
        "weigh each value",
    ),
    moments("two numbers", "[0.0, q / (1 - q)]", ["variance", "third"], "the shape should be (3,)"),
    error(
        "the spread, not the error",
        "torch.stack([draws.mean(0), draws.std(0)])",
        ["error"],
        "smaller by √n",
    ),
    error(
        "n for its root",
        "torch.stack([draws.mean(0), draws.std(0) / len(draws)])",
        ["error"],
        "as √n, not as n",
    ),
    error(
        "a variance",
        "torch.stack([draws.mean(0), draws.var(0) / len(draws)])",
        ["error"],
        "take its root",
    ),
    error(
        "n for n-1",
        "torch.stack([draws.mean(0), draws.std(0, correction=0) / len(draws) ** 0.5])",
        ["error"],
        "divide the squares by n-1",
    ),
    variance(
        "squares before summing shared masks",
        "q / (1 - q) * (h * w).square().sum()",
        ["shared"],
        "square before summing over the steps",
    ),
    variance(
        "sums shared masks always",
        "q / (1 - q) * (h * w).sum(0).square().sum()",
        ["independent"],
        "has its own mask",
    ),
    variance(
        "squares the sum over everything",
        "q / (1 - q) * (h * w).sum().square()",
        ["independent", "shared"],
        "units do not share a mask",
    ),
    variance(
        "variance of the bare mask",
        "q * (1 - q) * ((h * w).sum(0) if shared else h * w).square().sum()",
        ["independent", "shared"],
        "not q(1-q)",
    ),
    variance(
        "weights not squared",
        "q / (1 - q) * ((h.sum(0) ** 2 if shared else h**2) * (w**2 if shared else w)).sum()",
        ["independent"],
        "enter squared",
    ),
    k_loss(
        "reuses one mask for all k",
        "torch.stack([0.5 * (xs @ w - y).square().mean() for xs in [dropout(x, q)] * k]).mean()",
        ["variance"],
        "one mask is used for all k",
    ),
    k_loss(
        "averages the predictions",
        "0.5 * (torch.stack([dropout(x, q) @ w for _ in range(k)]).mean(0) - y).square().mean()",
        ["mean"],
        "not the k predictions",
    ),
    k_loss(
        "sums the losses",
        "sum(0.5 * (dropout(x, q) @ w - y).square().mean() for _ in range(k))",
        ["mean", "variance"],
        "divide by k",
    ),
    k_loss(
        "drops the ½",
        "torch.stack([(dropout(x, q) @ w - y).square().mean() for _ in range(k)]).mean()",
        ["mean", "variance"],
        "½ in front",
    ),
    k_loss(
        "no noise",
        "0.5 * (dropout(x, q, False) @ w - y).square().mean()",
        ["mean", "variance"],
        "nothing is random",
    ),
    trace(
        "not centred", "gradients.square().sum(1).mean()", ["value"], "subtract the mean gradient"
    ),
    trace("mean over coordinates", "gradients.var(0).mean()", ["value"], "do not average them"),
    trace("standard deviations", "gradients.std(0).sum()", ["value"], "not standard deviations"),
    trace("n for n-1", "gradients.var(0, correction=0).sum()", ["value"], "divide by n-1"),
    power("no logarithms", f"{LINE}(ks, traces)", ["slope"], "slope of log against log"),
    power("half the logarithms", f"{LINE}(ks, traces.log())", ["slope"], "not that of k"),
    power("sign", f"-{LINE}(ks.log(), traces.log())", ["slope"], "sign is turned around"),
    power(
        "axes exchanged",
        f"{LINE}(traces.log(), ks.log())",
        ["slope"],
        "the trace that depends on k",
    ),
]
