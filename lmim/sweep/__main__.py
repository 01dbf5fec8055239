"""`python -m lmim.sweep`."""

import sys

from lmim.sweep.command import main

sys.exit(main())
