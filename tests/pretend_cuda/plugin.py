"""pytest -p pretend_cuda.plugin: tests of CUDA without a GPU.

The report goes to the file that PRETEND_OUT names, if it does.
"""

import os

import pytest

from .graphs import _recording
from .install import install
from .report import REPORT

install()


@pytest.fixture(autouse=True)
def pretend_phase(request):
    """Name the test in the report; one that was broken off leaves nothing to the next."""
    REPORT.phase, REPORT.sync_debug_mode = request.node.name, "default"
    _recording.clear()


def pytest_sessionfinish(session):
    """Write the report."""
    if path := os.environ.get("PRETEND_OUT"):
        REPORT.write(path)
