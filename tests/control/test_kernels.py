"""Derivatives that PyTorch has wrong or lacks, and what is shared by threads and processes."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from dropreg import errors, explicit_regularizer, implicit_noise, replace_dropout
from dropreg.control.buffers import scratch_buffers
from dropreg.control.kernels import derivative_at_zero, differentiable_kernels, float32_precision

STEP = 1e-5
Function = Callable[[Tensor], Tensor]
EYE = torch.eye(3, dtype=torch.float64)
INDEX = torch.tensor([[0, 1, 1], [2, 0, 2], [1, 1, 0]])


def spread(x: Tensor) -> Tensor:
    """Three matrices that are far from singular, with determinants above zero."""
    return 4 * EYE + x.sin()


SMOOTH: dict[str, Function] = {
    "F.layer_norm": lambda x: F.layer_norm(x, (3,), x[0, 0], x[0, 1]),
    "torch.layer_norm": lambda x: torch.layer_norm(x, (3,), x[0, 0], x[0, 1], 1e-3, False),
    "torch.layer_norm by name": lambda x: torch.layer_norm(
        input=x, normalized_shape=(3,), eps=0.1, cudnn_enable=False
    ),
    "native_layer_norm": lambda x: torch.native_layer_norm(x, (3,), x[0, 0], None, 0.1)[0],
    "native_layer_norm's mean": lambda x: torch.native_layer_norm(x**2, (3,), None, None, 0.1)[1],
    "native_layer_norm's deviation": lambda x: torch.native_layer_norm(x, (3,), None, None, 0.1)[2],
    "aten.native_layer_norm": lambda x: torch.ops.aten.native_layer_norm.default(
        x, [3], None, None, 0.1
    )[0],
    "F.batch_norm": lambda x: F.batch_norm(x, None, None, x[0, 0], training=True),
    "torch.batch_norm": lambda x: torch.batch_norm(
        x, x[0, 0], x[0, 1], None, None, True, 0.1, 1e-3, False
    ),
    "torch.batch_norm by name": lambda x: torch.batch_norm(
        input=x,
        weight=None,
        bias=None,
        running_mean=None,
        running_var=None,
        training=True,
        momentum=0.1,
        eps=0.1,
        cudnn_enabled=True,
    ),
    "torch.batch_norm in eval mode": lambda x: torch.batch_norm(
        x, x[0, 0], None, EYE[0], EYE[0] + 1, False, 0.1, 1e-3, False
    ),
    "native_batch_norm": lambda x: torch.native_batch_norm(
        x, x[0, 0], None, None, None, True, 0.1, 0.1
    )[0],
    "native_batch_norm's deviation": lambda x: torch.native_batch_norm(
        x, None, None, None, None, True, 0.1, 0.1
    )[2],
    "native_batch_norm in eval mode": lambda x: torch.native_batch_norm(
        x, x[0, 0], None, EYE[0], EYE[0] + 1, False, 0.1, 0.1
    )[0],
    "F.instance_norm": lambda x: F.instance_norm(x, eps=0.1),
    "torch.instance_norm": lambda x: torch.instance_norm(
        x, x[0, 0], x[0, 1], None, None, True, 0.1, 0.1, False
    ),
    "F.group_norm": lambda x: F.group_norm(x, 3, x[0, 0], eps=0.1),
    "torch.group_norm": lambda x: torch.group_norm(x, 1, x[0, 0], x[0, 1], 0.1, False),
    "F.rms_norm": lambda x: F.rms_norm(x, (3,), x[0, 0], 0.1),
    "torch.rms_norm": lambda x: torch.rms_norm(x, [3]),
    "local_response_norm": lambda x: F.local_response_norm(x, 2, alpha=1.0),
    "F.normalize": lambda x: F.normalize(x, dim=-1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x.cos()),
    "glu": lambda x: F.glu(torch.cat([x, x**2], -1)),
    "hardsigmoid": lambda x: nn.Hardsigmoid()(x) * x,
    "det": lambda x: torch.linalg.det(spread(x)),
    "Tensor.det": lambda x: spread(x).det(),
    "logdet": lambda x: torch.logdet(spread(x)),
    "slogdet": lambda x: torch.linalg.slogdet(spread(x))[1],
    "solve": lambda x: torch.linalg.solve(spread(x), x),
    "solve by one computed from the other": lambda x: torch.linalg.solve(
        A=(a := spread(x)), B=a @ a.sin()
    ),
    "solve_ex": lambda x: torch.linalg.solve_ex(spread(x), x)[0],
    "tensorsolve": lambda x: torch.linalg.tensorsolve(spread(x)[0], x[0, 0]),
    "inv": lambda x: torch.linalg.inv(spread(x)),
    "lu_solve": lambda x: torch.linalg.lu_solve(*torch.linalg.lu_factor(spread(x)), x),
    "cholesky": lambda x: torch.linalg.cholesky(spread(x) @ spread(x).mT),
    "householder_product": lambda x: torch.linalg.householder_product(x, x[:, 0].cos()),
    "scatter_reduce": lambda x: (x[0] * 0).scatter_reduce(
        1, INDEX, x[0] + 3, "prod", include_self=False
    ),
    "scatter_reduce with self": lambda x: torch.scatter_reduce(
        x[1] + 3, 1, INDEX, x[0] + 3, reduce="prod"
    ),
}


def along(function: Function, w: Tensor, v: Tensor, u: Tensor) -> Tensor:
    """<u, J v>, by our forward mode."""
    return (u * derivative_at_zero(lambda s: function(w + s * v))[1]).sum()


def differences(function: Callable[[Tensor], Tensor], w: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return (function(w + STEP * v) - function(w - STEP * v)) / (2 * STEP)


def points(number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 3, 3, generator=generator, dtype=torch.float64) for _ in range(number)]


@pytest.mark.parametrize("name", SMOOTH)
def test_forward_mode_and_its_gradient(name: str) -> None:
    """Both against central differences, with and without gradients."""
    function = SMOOTH[name]
    w, v, direction = points(3)
    value, t = derivative_at_zero(lambda s: function(w + s * v))
    torch.testing.assert_close(value, function(w))
    torch.testing.assert_close(t, differences(function, w, v), rtol=1e-6, atol=1e-7)
    u = torch.randn(t.shape, generator=torch.Generator().manual_seed(1), dtype=t.dtype)
    with torch.no_grad():
        torch.testing.assert_close(along(function, w, v, u), (u * t).sum())
    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(along(function, leaf, v, u), leaf)
    expected = differences(lambda x: along(function, x, v, u), w, direction)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SMOOTH if "norm" in name and "eval" not in name])
def test_third_derivative(name: str) -> None:
    """The gradient of a curvature, as full_hessian has it, against central differences."""
    function = SMOOTH[name]
    w, v, direction = points(3)
    u = torch.randn(function(w).shape, generator=torch.Generator().manual_seed(1)).double()

    def curvature(x: Tensor) -> Tensor:
        with torch.enable_grad(), differentiable_kernels(third_order=True):
            s = torch.zeros((), dtype=x.dtype, requires_grad=True)
            value = (u * function(x + s * v)).sum()
            (slope,) = torch.autograd.grad(value, s, create_graph=True)
            return torch.autograd.grad(slope, s, create_graph=True)[0]

    leaf = w.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curvature(leaf), leaf, materialize_grads=True)
    expected = differences(lambda x: curvature(x).detach(), w, direction)
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    """A classifier with one site and a function after it."""

    def __init__(self, function: Function = torch.tanh) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.drop, self.last = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.drop(self.first(x))))


class Casting(Net):
    """Its forward casts a module, assigns to a parameter's data, and keeps an activation."""

    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.last.to(torch.float64).to(torch.float32)
        self.first.weight.data = self.first.weight.data.clone()
        self.kept = super().forward(x)
        self.mean = self.kept.mean(0)
        return self.kept


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def jvp(model: nn.Module) -> Tensor:
    return explicit_regularizer(model, X, method="jvp", generator=seeded())


def test_a_model_that_casts_its_modules_keeps_its_weights() -> None:
    model = Casting()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = jvp(Net())
    for _ in range(2):
        assert jvp(model).item() == pytest.approx(expected.item())
    for name, value in model.state_dict().items():
        assert type(value) is Tensor
        torch.testing.assert_close(value, before[name])
    assert not hasattr(model, "kept")  # no activation of a pass that does not count
    with forward_ad.dual_level():
        for tensor in (*model.parameters(), model.mean):
            assert forward_ad.unpack_dual(tensor).tangent is None
    model(X).sum().backward()
    expected.backward()


class Doubled(torch.autograd.Function):
    """Has no forward-mode derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class Cubed(torch.autograd.Function):
    """Has one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * grad * ctx.saved_tensors[0] ** 2

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return 3 * tangent * ctx.saved_tensors[0] ** 2


def test_a_function_of_ones_own_with_a_forward_mode_derivative() -> None:
    values, gradients = [], []
    for function in (Cubed.apply, lambda x: x * x * x):
        model = Net(function)
        value = jvp(model)
        value.backward()
        values.append(value)
        gradients.append(model.first.weight.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


@pytest.fixture(scope="module")
def extension() -> Function:
    library = torch.library.Library("dropreg_tests", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: 2 * x, "CompositeExplicitAutograd")
    operation: Function = torch.ops.dropreg_tests.doubled
    operation.library = library  # it lives as long as the operation
    return operation


def test_an_operation_without_a_forward_mode_derivative_is_named(extension: Function) -> None:
    cases: list[tuple[Function, str]] = [
        (Doubled.apply, "autograd.Function Doubled"),
        (lambda x: torch.cdist(x, x.cos()) @ x, "_cdist_forward"),
        (extension, "dropreg_tests.doubled"),
    ]
    for function, name in cases:
        with pytest.raises(errors.NotYetSupportedError, match=rf"{name} has no.*'central'"):
            jvp(Net(function))
        jvp(Net())  # nothing is left behind


@pytest.mark.parametrize("method", ["jvp", "full_hessian"])
def test_a_wrong_derivative_without_a_definition_is_refused(method: str) -> None:
    with pytest.raises(errors.NotYetSupportedError, match=r"i1e.* wrong.*'central'"):
        explicit_regularizer(Net(torch.special.i1e), X, targets=Y, method=method)
    model = Net(lambda x: x * torch.special.i1e(torch.ones(8)))  # a constant
    explicit_regularizer(model, X, targets=Y, method=method)


def test_a_derivative_that_has_none_itself_is_refused_at_once() -> None:
    def function(x: Tensor) -> Tensor:
        return torch._C._nn.glu(torch.cat([x, x], -1), -1)

    with pytest.raises(errors.NotYetSupportedError, match=r"glu_jvp is not implemented.*'central'"):
        jvp(Net(function))
    with torch.no_grad():  # nobody will differentiate it
        torch.testing.assert_close(jvp(Net(function)), jvp(Net(lambda x: x * x.sigmoid())))


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, ValueError])
def test_errors_of_the_model_pass_unchanged(error: type[Exception]) -> None:
    model = Net()
    jvp(model)  # audited

    def fail(x: Tensor) -> Tensor:
        raise error("mine")

    model.function = fail
    with pytest.raises(error, match=r"^mine$"):
        jvp(model)
    jvp(Net())


def test_noise_that_no_derivative_reaches_is_refused() -> None:
    with pytest.raises(errors.NotYetSupportedError, match="detach"):
        jvp(Net(lambda x: x.detach()))


def test_inside_a_forward_mode_derivative_of_the_users() -> None:
    one = torch.ones(())
    with forward_ad.dual_level(), pytest.raises(errors.NotYetSupportedError, match="nest"):
        jvp(Net())
    with pytest.raises(errors.NotYetSupportedError, match="nest"):
        torch.func.jvp(lambda x: x * jvp(Net()), (one,), (one,))
    jvp(Net())


def test_threads_that_share_a_model() -> None:
    """The same value in each, and afterwards PyTorch and the buffers as they were."""
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))

    def methods() -> list[float]:
        return [
            explicit_regularizer(
                model, X, targets=Y, method=method, step=0.01, generator=seeded()
            ).item()
            for method in ("jvp", "exact", "central", "full_hessian")
        ]

    def settings() -> list[object]:
        backends = torch.backends
        return [backends.mkldnn.enabled, backends.cudnn.enabled, backends.cuda.flash_sdp_enabled()]

    before, expected = settings(), methods()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    results: list[list[float]] = []
    threads = [
        threading.Thread(target=lambda: results.extend(methods() for _ in range(5)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 20
    for result in results:
        assert result == pytest.approx(expected, rel=1e-4)
    assert settings() == before
    for name, value in model.named_buffers():
        assert torch.equal(value, buffers[name])


@pytest.mark.parametrize(
    "context", [differentiable_kernels, float32_precision, lambda: scratch_buffers(nn.Linear(1, 1))]
)
def test_one_thread_at_a_time_and_an_exception_lets_the_next_in(
    context: Callable[[], Any],
) -> None:
    entered = threading.Event()

    def enter() -> None:
        with context():
            entered.set()

    other = threading.Thread(target=enter, daemon=True)

    def fail() -> None:
        with context(), context():
            other.start()
            assert not entered.wait(0.05)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        fail()
    assert entered.wait(10)


def test_a_backward_pass_in_another_thread_does_not_wait() -> None:
    """Deep reentrant backward passes go on in threads of PyTorch's, for which the first waits."""

    class Deep(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, depth: int) -> Tensor:
            ctx.depth = depth
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            with torch.enable_grad(), float32_precision():
                leaf = torch.ones((), requires_grad=True)
                if ctx.depth:
                    Deep.apply(leaf, ctx.depth - 1).backward()
            used.add(threading.get_ident())
            return grad, None

    used: set[int] = set()

    def work() -> None:
        with float32_precision():
            Deep.apply(torch.ones((), requires_grad=True), 100).backward()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert len(used) > 1


def _train(rank: int, port: int, results: Any) -> None:
    """Each method under DistributedDataParallel: gradient's error, and how far the ranks drift."""
    store = dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows: dict[tuple[str, str], Any] = {}
    for option in ("none", "find_unused_parameters", "static_graph"):
        for method in ("central", "even_odd", "exact", "sampled_labels", "jvp", "full_hessian"):
            expected = []
            for part in range(2):
                net = Net()
                loss = replace_dropout(net, method=method, generator=seeded()).loss
                loss(X.chunk(2)[part], Y.chunk(2)[part]).backward()
                expected.append(net.first.weight.grad)
            options = {} if option == "none" else {option: True}
            model = nn.parallel.DistributedDataParallel(Net(), **options)
            loss = replace_dropout(model, method=method, generator=seeded()).loss
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            first = None
            try:
                for _ in range(3):
                    optimizer.zero_grad()
                    loss(X.chunk(2)[rank], Y.chunk(2)[rank]).backward()
                    if first is None:
                        first = model.module.first.weight.grad.clone()
                    optimizer.step()
            except errors.NotYetSupportedError:
                rows[option, method] = "refused"
                continue
            weights = [torch.zeros(8, 4) for _ in range(2)]
            dist.all_gather(weights, model.module.first.weight.detach().clone())
            error = (first - sum(expected) / 2).abs().max().item()
            rows[option, method] = (error, (weights[0] - weights[1]).abs().max().item())
    if rank == 0:
        results.put(rows)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_average_their_gradients_or_are_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_train, args=(rank, port, results)) for rank in range(2)]
    for process in processes:
        process.start()
    rows = results.get(timeout=120)
    for process in processes:
        process.join(20)
    for (option, method), row in rows.items():
        if row == "refused":
            assert option != "none"
            assert method in ("exact", "sampled_labels", "jvp", "full_hessian")
        else:
            assert row == pytest.approx((0.0, 0.0), abs=1e-6), (option, method)
    assert all(rows["static_graph", method] == "refused" for method in ("exact", "jvp"))
    assert all(rows[option, "central"] != "refused" for option in ("none", "static_graph"))


def test_a_static_graph_is_refused_wherever_it_lies() -> None:
    class Static(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module, self.static_graph = module, True
            self.require_backward_grad_sync = True

        def forward(self, *args: Any) -> Any:
            return self.module(*args)

    model = nn.Sequential(Static(Net()))
    for method in ("exact", "sampled_labels", "jvp", "full_hessian"):
        with pytest.raises(errors.NotYetSupportedError, match=r"static_graph=False.*'central'"):
            explicit_regularizer(model, X, targets=Y, method=method)
    with pytest.raises(errors.NotYetSupportedError, match="static_graph=False"):
        implicit_noise(model, X, Y)
    explicit_regularizer(model, X, method="central")


@pytest.mark.filterwarnings("ignore:None of the inputs")  # of passes without gradients
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_forward_mode_goes_through_checkpoints(use_reentrant: bool) -> None:
    class Block(nn.Module):
        def __init__(self, *, checkpointed: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
            self.block = nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh())
            self.checkpointed = checkpointed

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            if not self.checkpointed:
                return self.head(self.block(h))
            return self.head(checkpoint(self.block, h, use_reentrant=use_reentrant))

    rows = []
    for checkpointed in (False, True):
        model = Block(checkpointed=checkpointed).double()
        value = explicit_regularizer(model, X.double(), method="jvp", generator=seeded())
        value.backward()
        rows.append([value, *(p.grad for p in model.parameters())])
    for plain, ours in zip(*rows, strict=True):
        torch.testing.assert_close(ours, plain)
