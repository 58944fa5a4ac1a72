"""The declared mistakes are modules of their own: found from this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
