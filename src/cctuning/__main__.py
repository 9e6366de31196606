"""`python -m cctuning` is `cctuning`; accelerate launches it so."""

import sys

from cctuning.cli import main

sys.exit(main())
