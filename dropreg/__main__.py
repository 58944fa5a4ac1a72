"""``python -m dropreg`` is the command line ``dropreg``."""

import sys

from dropreg.cli import main

sys.exit(main())
