"""What every test runs under: seeds, one thread, no third-party plugins, and models that must stay as they are."""

import os

os.environ["CAMKIT_PLUGINS"] = ""
os.environ.pop("CAMKIT_ADAPTERS", None)
# test processes side by side are told the width of the screen, which they do not print to
os.environ.pop("COLUMNS", None)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

import zoo

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _models_stay_as_they_were():
    zoo.forget()
    yield
    try:
        assert zoo.changes() == []
    finally:
        zoo.forget()


@pytest.fixture
def random_model():
    """The factory of random models; each that it hands out must be as it was when the test ends."""
    return lambda name: zoo.watch(zoo.random_model(name))


@pytest.fixture
def watch():
    """Registers a model of the test's own, which must be as it was when the test ends."""
    return zoo.watch


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A folder with gradcam.onnx and gradcam.pt of a small model; `serve_process.small_explainer` explains the same."""
    # here, since it imports the exporters, which few tests need
    import serve_process

    return serve_process.exported(tmp_path_factory)
