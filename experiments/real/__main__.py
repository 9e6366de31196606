"""`python -m experiments.real`."""

import sys

from experiments.real.run import main

sys.exit(main())
