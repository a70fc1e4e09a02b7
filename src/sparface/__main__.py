"""`python -m sparface`, which torchrun needs."""

import sys

from sparface.cli import main

sys.exit(main())
