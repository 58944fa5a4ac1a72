"""One draw of the noise, replayed at several scales."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import run
from torch import Tensor, nn

from dropreg import Law, LockedDropout, Probe


class Shared(nn.Module):
    def __init__(self, p: float, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.drop = nn.Dropout(p), LockedDropout(p, dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.first(x))


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    data=st.data(),
    p=st.floats(0.01, 0.95),
    law=st.sampled_from([str(law) for law in Law]),
)
def test_a_probe_replays_and_mirrors(
    shape: tuple[int, ...], data: st.DataObject, p: float, law: str
) -> None:
    """The same probe at +e and -e is an antithetic pair, at every site, with the site's sharing."""
    dims = tuple(data.draw(st.lists(st.integers(-len(shape), len(shape) - 1), max_size=2)))
    model, x = Shared(p, dims).double(), torch.ones(shape, dtype=torch.float64)
    probe = Probe(law, torch.Generator().manual_seed(0))
    seen: dict[float, list[Tensor]] = {}
    for scale in (1.0, -1.0, 1.0, 0.25):
        noise, etas = probe.at(scale), []

        def keep(site, noise=noise, etas=etas):
            etas.append(noise(site))
            return etas[-1]

        _, sites = run(model, x, keep)
        if scale in seen:
            torch.testing.assert_close(etas, seen[scale], rtol=0, atol=0)
        seen[scale] = etas
    for up, down, weak, site in zip(seen[1.0], seen[-1.0], seen[0.25], sites, strict=True):
        assert torch.equal(up, -down)
        assert torch.equal(weak, 0.25 * up)
        assert up.shape == site.mask_shape
    shared = {d % len(shape) for d in dims}
    expected = tuple(1 if d in shared else size for d, size in enumerate(shape))
    assert sites[1].mask_shape == expected
    assert sites[0].mask_shape == shape
