import warnings
from importlib.util import find_spec

import torch

# The networks here are tiny: a second thread only waits for the first.
torch.set_num_threads(1)

# On its first use forward mode scripts some decompositions, which PyTorch itself deprecates.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))

if find_spec("hypothesis"):  # a lent GPU's machine may lack it, and only tests elsewhere need it
    from hypothesis import settings

    # The same examples in every run, and no limit on the time of one: the machine may be busy.
    settings.register_profile("dropreg", deadline=None, derandomize=True, max_examples=40)
    settings.load_profile("dropreg")
