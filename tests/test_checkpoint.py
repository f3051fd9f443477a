"""Checkpoints as training scripts write them: what fits loads, what does not is named."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from camkit.checkpoint import fit, load_checkpoint, load_into
from camkit.errors import CamkitError

CLASSES = 7


def network(classes: int = CLASSES, width: int = 6, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    ).eval()


def loaded(path: Path, module: nn.Module) -> nn.Module:
    load_into(module, fit(load_checkpoint(path), module))
    return module


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one(images), other(images), rtol=0, atol=0)


class Touch:
    """Creates a file when it is unpickled, as malicious checkpoints do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def wrapped(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "shape_of",
    [
        lambda state: state,
        lambda state: wrapped(state, "module."),
        lambda state: wrapped(state, "module._orig_mod."),
        lambda state: {"state_dict": wrapped(state, "model."), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        lambda state: {"state_dict": {**wrapped(state, "model."), "criterion.weight": torch.ones(5)}},
        lambda state: {"state_dict": wrapped(state, "net.backbone.")},
        lambda state: {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"model_state_dict": state},
        lambda state: {"n_averaged": torch.tensor(4), **wrapped(state, "module.")},
        lambda state: {**wrapped(state, "model."), **wrapped({k: v * 0 for k, v in state.items()}, "teacher.model.")},
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
        lambda state: {**state, "aux1.fc.weight": torch.ones(3, 3)},
    ],
)
def test_what_training_scripts_save_loads(tmp_path: Path, shape_of: Any) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    torch.save(shape_of(trained.state_dict()), tmp_path / "weights.pt")
    assert_same_weights(loaded(tmp_path / "weights.pt", fresh), trained)


def test_safetensors_in_half_precision(tmp_path: Path) -> None:
    trained, fresh = network(seed=1), network(seed=2)
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in trained.state_dict().items()
    }
    save_file(half, tmp_path / "weights.safetensors")
    loaded(tmp_path / "weights.safetensors", fresh)
    assert next(fresh.parameters()).dtype == torch.float32
    torch.testing.assert_close(next(fresh.parameters()), next(trained.parameters()), rtol=1e-3, atol=1e-3)


def test_legacy_names_of_densenet_fit() -> None:
    module = torchvision.models.densenet121(num_classes=3)
    legacy = {
        name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1.").replace("norm2.", "norm.2."): tensor
        for name, tensor in module.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in legacy
    load_into(module, fit(legacy, module))


def test_number_of_classes_is_read_off() -> None:
    checkpoint = wrapped(network(classes=12).state_dict(), "module.")
    fitted = fit(checkpoint, network())
    assert fitted.classes == 12
    with pytest.raises(CamkitError, match=r"'3\.weight' is \[12, 6\] where the model has \[7, 6\]"):
        load_into(network(), fitted)
    again = network(classes=12, seed=5)
    load_into(again, fitted)
    assert_same_weights(again, network(classes=12))
    assert fit(network().state_dict(), network()).classes is None


def test_other_architecture_names_a_tensor() -> None:
    with pytest.raises(CamkitError, match=r"'0\.0\.weight' is \[9, 3, 3, 3\] where the model has \[6, 3, 3, 3\] \(and"):
        fit(network(width=9).state_dict(), network())
    resnet18, resnet34 = torchvision.models.resnet18(), torchvision.models.resnet34()
    with pytest.raises(CamkitError, match=r"it has no 'layer1\.2\.conv1\.weight' and .* \(and \d+ more\)\.$"):
        fit(resnet18.state_dict(), resnet34)
    # Every tensor of ResNet-18 is in ResNet-34, of the same shape.
    with pytest.raises(CamkitError, match=r"the model has no 'layer1\.2\.conv1\.weight' and "):
        fit(
            wrapped(resnet34.state_dict(), "module."),
            resnet18,
            file="checkpoint 'w.pt'",
            model="'torchvision:resnet18'",
        )
    with pytest.raises(CamkitError, match=r"^The checkpoint 'w\.pt' is not one of 'a:b': it has no '0\.0\.weight'"):
        fit({"unrelated": torch.ones(2)}, network(), file="checkpoint 'w.pt'", model="'a:b'")


def test_pickle_of_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"state_dict": network().state_dict(), "extra": Touch(harm)}, tmp_path / "new.pt")
    torch.save(Touch(harm), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"a": Touch(harm)}))
    torch.save(network(), tmp_path / "module.pt")
    for name in ("new.pt", "old.pt", "bare.pkl", "module.pt"):
        with pytest.raises(CamkitError, match=r"more than plain weights.*torch\.save\(model\.state_dict\(\), FILE\)"):
            load_checkpoint(tmp_path / name)
    assert not harm.exists()
    pickle.loads((tmp_path / "bare.pkl").read_bytes())  # noqa: S301
    assert harm.exists(), "the pickle would have done harm"


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save(network().state_dict(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("hello world\n")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.safetensors").write_text("hello world\n")
    for name in ("cut.pt", "text.pt", "empty.pt", "text.safetensors"):
        with pytest.raises(CamkitError, match=rf"'.*{name}' is not a .*or is damaged"):
            load_checkpoint(tmp_path / name)
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("none.pt", "list.pt"):
        with pytest.raises(CamkitError, match="holds no weights by name"):
            load_checkpoint(tmp_path / name)
    torch.jit.trace(network(), torch.rand(1, 3, 9, 9)).save(tmp_path / "script.pt")
    with (
        pytest.raises(CamkitError, match="is a TorchScript file"),
        pytest.warns(UserWarning, match="TorchScript"),
    ):
        load_checkpoint(tmp_path / "script.pt")
    with pytest.raises(CamkitError, match="There is no checkpoint file"):
        load_checkpoint(tmp_path / "absent.pt")
