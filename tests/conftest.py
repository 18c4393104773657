"""What every test relies on: no setting of the machine's owner, and the same examples at every run."""

import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")  # on an NVIDIA GPU float32 is to mean float32; MLX reads it once

import pytest
from hypothesis import settings

from paged_core import executors

# A failure that came once must come again; and a busy machine is no failure.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_executor_of_the_environment(monkeypatch):
    monkeypatch.delenv(executors.VARIABLE, raising=False)
