"""`python -m experiments.worlds`."""

import sys

from experiments.worlds.run import main

sys.exit(main())
