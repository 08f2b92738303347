"""``python -m huvr`` is the command ``huvr``."""

import sys

from huvr.cli import main

sys.exit(main())
