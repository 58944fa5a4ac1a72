"""What `tools/elsewhere.py` has IPython run in a kernel before the first cell of a notebook."""


def _elsewhere() -> None:
    import os
    import random
    from typing import Any

    import numpy as np
    import torch

    if threads := int(os.environ.get("ELSEWHERE_THREADS", "0")):
        set_num_threads = torch.set_num_threads
        set_num_threads(threads)
        torch.set_num_threads = lambda nthreads: set_num_threads(threads)

    # So far that seeds which a cell counts up from one another meet none of another shift.
    shift = 10_000 * int(os.environ.get("ELSEWHERE_SHIFT", "0"))
    if not shift:
        return
    seed_torch, seed_random, seed_numpy = torch.manual_seed, random.seed, np.random.default_rng

    def shifted(seed: Any) -> Any:
        return seed + shift if isinstance(seed, int) else seed

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(shifted(seed))

    class Random(random.Random):
        def seed(self, a: Any = None, version: int = 2) -> None:
            super().seed(shifted(a), version)

    torch.Generator, torch.manual_seed = Generator, lambda seed: seed_torch(shifted(seed))  # type: ignore[misc]
    random.Random, random.seed = Random, lambda a=None, version=2: seed_random(shifted(a), version)  # type: ignore[misc]
    np.random.default_rng = lambda seed=None: seed_numpy(shifted(seed))


_elsewhere()
del _elsewhere  # a startup file runs among the notebook's own names
