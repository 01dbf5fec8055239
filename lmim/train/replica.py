"""`python -m lmim.train.replica RANK SIZE TEAM PARENT`: one process of a trial whose processes others place.

It waits at the store that the environment names for the trial's own process, which says what is trained, and
ends with the process PARENT that started it.
"""

import os
import sys

from lmim.train.loop import replica
from lmim.train.processes import Team
from lmim.train.processes import replica as wait
from lmim.trial.folder import RENDEZVOUS

if __name__ == "__main__":
    rank, size, team, parent = map(int, sys.argv[1:])
    wait(Team(os.environ[RENDEZVOUS], size, number=team), rank, parent, replica)
