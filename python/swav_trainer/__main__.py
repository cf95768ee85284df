"""`python -m swav_trainer` is `swav`."""

import sys

from swav_trainer.cli import main

sys.exit(main())
