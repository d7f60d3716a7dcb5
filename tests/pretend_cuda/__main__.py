"""python -m pretend_cuda SCRIPT FLAGS: a script of the project on the emulated device."""

import os
import runpy
import sys

from .install import install
from .report import REPORT

install()
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if path := os.environ.get("PRETEND_OUT"):
        REPORT.write(path)
