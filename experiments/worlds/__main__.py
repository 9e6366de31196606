"""`python -m experiments.worlds`."""

import sys

from experiments.worlds.cli import main

sys.exit(main())
