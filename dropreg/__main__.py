"""``python -m dropreg`` is the command line ``dropreg``."""

import sys

from dropreg.book.cli import main

sys.exit(main())
