import warnings

import torch
from hypothesis import settings

# The networks here are tiny: a second thread only waits for the first.
torch.set_num_threads(1)

# On its first use forward mode scripts some decompositions, which PyTorch itself deprecates.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
    torch.func.jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))

# The same examples in every run, and no limit on the time of one: the machine may be busy.
settings.register_profile("dropreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("dropreg")
