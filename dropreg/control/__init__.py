"""How anybody's model is run under a chosen noise; README.md tells the story."""

# Imported for what it does: it registers the adapters of PyTorch's own functions.
from dropreg.control import adapters as adapters
from dropreg.control.control import Control, register_adapter

__all__ = ["Control", "register_adapter"]
