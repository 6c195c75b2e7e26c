"""``python -m slime_trio`` is ``slime-router``."""

import sys

from slime_trio.cli import main

sys.exit(main())
