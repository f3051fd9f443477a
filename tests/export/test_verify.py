"""Verification passes what is right and fails what is frozen, changed or of another model; nothing is left then."""

import base64
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from camkit.check import Check
from camkit.errors import CamkitError
from camkit_export.inputs import SEED, random_classes, real_sample
from camkit_export.onnx import export_onnx
from camkit_export.publish import publish
from camkit_export.session import OnnxSession, Result, Session
from camkit_export.torchscript import TorchScriptSession, export_torchscript
from camkit_export.torchscript import _write as write_torchscript
from camkit_export.trace import Graph
from camkit_export.verify import compare, compare_kinds, verify_file
from standin import Small, images, make_request


@pytest.mark.parametrize("suffix", ["onnx", "pt"])
def test_right_file_passes(small_onnx, small_pt, small, suffix):
    path = small_onnx if suffix == "onnx" else small_pt
    for checks, count in ((verify_file(path), 3), (compare(path, small), 12)):
        assert all(check.passed for check in checks)
        named = {check.name.split(" against")[0]: check for check in checks}
        for name in ("logits", "map", "heatmap"):
            assert named[name].images == count
            assert 0 < named[name].error < named[name].tolerance <= 1e-3


class Frozen(nn.Module):
    """A graph whose map was computed while tracing: right shapes, right logits, and an answer for one image only."""

    def __init__(self, graph: Graph, request, images: torch.Tensor) -> None:
        super().__init__()
        self.graph = graph
        self.register_buffer("heatmap", graph(images, torch.zeros(1).long())[1])
        self.register_buffer("maps", request.explain(images, torch.zeros(1).long())[1])

    def forward(self, image: torch.Tensor, class_index: torch.Tensor):
        logits, _, _, explained = self.graph(image, class_index)
        batch = image.size(0)
        return logits, self.heatmap.expand(batch, -1, -1), self.maps.expand(batch, -1, -1), explained


class FrozenGradient(nn.Module):
    """Grad-CAM with the channel weights of one image: the map still changes with the image, as in pytorch#89675."""

    def __init__(self, graph: Graph, weights: torch.Tensor) -> None:
        super().__init__()
        self.graph = graph
        self.register_buffer("weights", weights)

    def forward(self, image: torch.Tensor, class_index: torch.Tensor):
        logits, heatmap, maps, explained = self.graph(image, class_index)
        return logits, heatmap, maps * self.weights, explained


@pytest.mark.parametrize("kind", ["map", "gradient"])
def test_graph_with_constants_baked_in_is_caught(small, tmp_path, kind):
    def write(graph, path, metadata):
        if kind == "map":
            baked = Frozen(graph, small, torch.ones(1, *small.image_shape))
        else:
            baked = FrozenGradient(graph, torch.tensor(1.01))
        return write_script(baked, graph, path, metadata)

    with pytest.raises(CamkitError, match=r"does not agree with its model \(map against the oracle: \d"):
        publish(small, tmp_path / "a.pt", write, TorchScriptSession)
    assert os.listdir(tmp_path) == []


def write_script(baked: nn.Module, graph: Graph, path, metadata) -> int:
    """Writes a module that wraps the graph the way the real exporter writes the graph."""
    inner = path.with_name("inner.pt")
    nodes = write_torchscript(graph, inner, metadata)
    baked.graph = torch.jit.load(inner)
    torch.jit.save(torch.jit.script(baked), path, _extra_files={"camkit.json": metadata})
    return nodes


@pytest.mark.parametrize("export", [export_onnx, export_torchscript])
def test_frozen_method_is_caught(small, tmp_path, export):
    """Eager itself is wrong here, so that tolerances follow an error that is too large: they stay capped."""
    _, frozen, _ = small.explain(torch.ones(1, *small.image_shape), torch.zeros(1).long())

    def explain(images, class_index):
        logits, maps, explained = small.explain(images, class_index)
        return logits, frozen + 0 * maps, explained

    suffix = ".onnx" if export is export_onnx else ".pt"
    with pytest.raises(CamkitError, match=r"map against the oracle: .*allowed 1e-03"):
        export(dataclasses.replace(small, explain=explain), tmp_path / f"a{suffix}")
    assert os.listdir(tmp_path) == []


def test_a_class_for_which_maps_are_all_zero_proves_nothing_and_another_one_is_taken(small, tmp_path):
    """As of a method that has a ReLU inside: of untrained models half of the classes may have no map."""
    zeroed = int(random_classes(SEED + 8, 8, small.classes)[-2])

    def explain(images, class_index):
        logits, maps, explained = small.explain(images, class_index)
        return logits, maps * (explained != zeroed).float()[:, None, None], explained

    def oracle(images, class_index, inputs=None):
        logits, maps = small.oracle(images, class_index)
        return logits, maps * (class_index != zeroed)[:, None, None]

    asked = dataclasses.replace(small, explain=explain, oracle=oracle)
    assert all(check.passed for check in export_torchscript(asked, tmp_path / "a.pt").checks)


def test_old_file_survives_a_failed_export(small, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"before")

    def oracle(images, class_index, inputs=None):
        logits, maps = small.oracle(images, class_index)
        return logits * 1.01, maps

    with pytest.raises(CamkitError, match=r"logits against the oracle: 9\.9\de-03, allowed 1e-03"):
        export_torchscript(dataclasses.replace(small, oracle=oracle), path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_folder_that_is_missing(small, tmp_path):
    with pytest.raises(CamkitError, match=r"cannot be written: No such file"):
        export_torchscript(small, tmp_path / "none" / "a.pt")


def weights_changed(model):
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)
    tensor.raw_data = values.tobytes()


def vectors_changed(model):
    facts = json.loads(model.metadata_props[0].value)
    maps = np.frombuffer(base64.b64decode(facts["vectors"][0]["maps"]["float32"]), "<f4").copy()
    maps[5] += 1e-3 * np.abs(maps).max()
    facts["vectors"][0]["maps"]["float32"] = base64.b64encode(maps.tobytes()).decode()
    model.metadata_props[0].value = json.dumps(facts)


def resize_changed(model):
    (resize,) = [node for node in model.graph.node if node.op_type == "Resize"]
    (mode,) = [attribute for attribute in resize.attribute if attribute.name == "mode"]
    mode.s = b"nearest"


@pytest.mark.parametrize(
    ("change", "name"), [(weights_changed, "logits"), (vectors_changed, "map"), (resize_changed, "heatmap")]
)
def test_changed_file_fails_its_vectors(small_onnx, tmp_path, change, name):
    model = onnx.load(small_onnx)
    change(model)
    onnx.save(model, tmp_path / "a.onnx")
    failed = [check.name for check in verify_file(tmp_path / "a.onnx") if not check.passed]
    assert f"{name} against the stored vectors" in failed


@pytest.mark.parametrize(
    "change",
    [{"maps": {}}, {"shape": [3, 3, 2, 2]}, {"shape": [10**9, 3, 45, 38]}, {"logits": {"shape": [1], "float32": "?"}}],
)
def test_damaged_vectors_are_refused(small_onnx, tmp_path, change):
    model = onnx.load(small_onnx)
    facts = json.loads(model.metadata_props[0].value)
    facts["vectors"][0].update(change)
    model.metadata_props[0].value = json.dumps(facts)
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(CamkitError, match=r"test vectors of .* are damaged"):
        verify_file(tmp_path / "a.onnx")


def test_another_model_fails(small_onnx):
    torch.manual_seed(5)
    other = make_request(Small(), "stage.1", (45, 38))
    failed = [check.name for check in compare(small_onnx, other) if not check.passed]
    assert {"logits against the oracle", "map against the oracle", "map against the eager model"} <= set(failed)
    wider = make_request(Small(classes=9), "stage.1", (45, 38))
    with pytest.raises(CamkitError, match="its classes are 7, the model's 9"):
        compare(small_onnx, wider)


def replaced(request, maps):
    """The request with `maps(logits, maps, class_index)` in eager and in the oracle."""

    def explain(images, class_index):
        logits, found, explained = request.explain(images, class_index)
        return logits, maps(logits, found, explained), explained

    def oracle(images, class_index, inputs=None):
        logits, found = request.oracle(images, class_index)
        return logits, maps(logits, found, torch.where(class_index < 0, logits.argmax(1), class_index))

    return dataclasses.replace(request, explain=explain, oracle=oracle)


def constant_map(logits, maps, classes):
    return maps.mean(dim=(1, 2), keepdim=True).expand_as(maps)


def map_of_no_image(logits, maps, classes):
    return torch.arange(maps.shape[2]).to(maps) + 1e-9 * maps


def map_of_no_class(logits, maps, classes):
    return logits.mean(dim=1).view(-1, 1, 1) * map_of_no_image(logits, maps, classes)


@pytest.mark.parametrize(
    ("maps", "sentence"),
    [
        (constant_map, "constant over every test image"),
        (map_of_no_image, "does not change with the image"),
        (map_of_no_class, "does not change with the class"),
    ],
)
def test_reference_that_proves_nothing_is_refused(small, tmp_path, maps, sentence):
    with pytest.raises(CamkitError, match=sentence):
        export_torchscript(replaced(small, maps), tmp_path / "a.pt")
    assert os.listdir(tmp_path) == []


def test_method_that_says_it_knows_no_class_may_ignore_it(small, tmp_path):
    request = replaced(small, map_of_no_class)
    request = dataclasses.replace(request, provenance={**request.provenance, "class_specific": False})
    assert export_torchscript(request, tmp_path / "a.pt").path.exists()


class Answers(Session):
    """A session that answers what it is told, to see what verification makes of it."""

    def __init__(self, session: Session, change) -> None:
        self.__dict__.update(session.__dict__)
        self.session, self.change = session, change

    def _run(self, images, classes):
        result = self.change(self.session(images, classes))
        return result.logits, result.heatmaps, result.maps, result.classes


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda r: dataclasses.replace(r, logits=r.logits * np.float32(1.0003)), "logits"),
        (lambda r: dataclasses.replace(r, maps=r.maps * np.nan), "map"),
        (lambda r: dataclasses.replace(r, maps=r.maps[:, 1:]), "map"),
        (lambda r: dataclasses.replace(r, heatmaps=r.heatmaps + np.float32(2e-3)), "heatmap"),
        (lambda r: dataclasses.replace(r, heatmaps=r.heatmaps * np.nan), "heatmap"),
        (lambda r: dataclasses.replace(r, classes=r.classes + 1), "explained class"),
    ],
)
def test_wrong_answers_fail(small_pt, small, change, name):
    from camkit_export.verify import compare_session

    def answer(result: Result) -> Result:
        return change(result)

    session = Answers(TorchScriptSession(small_pt), answer)
    failed = [check.name for check in compare_session(session, small) if not check.passed]
    assert [one for one in failed if one.startswith(name)]


def test_ties_are_left_out_and_counted(small, tmp_path):
    """Two logits that are always equal: the top class is either of them."""

    def double(logits):
        return torch.cat([logits, logits.amax(dim=1, keepdim=True)], dim=1)

    def explain(images, class_index):
        logits, maps, explained = small.explain(images, class_index.clamp(max=6))
        return double(logits), maps, torch.where(class_index < 0, explained, class_index)

    def oracle(images, class_index, inputs=None):
        logits, maps = small.oracle(images, class_index.clamp(max=6))
        return double(logits), maps

    request = dataclasses.replace(small, explain=explain, oracle=oracle, classes=8)
    report = export_torchscript(request, tmp_path / "a.pt")
    maps = next(check for check in report.checks if check.name == "map against the oracle")
    assert maps.ties_left_out == 3
    assert maps.images == 9


@pytest.mark.parametrize(("distance", "passes"), [(0.0, True), (0.01, False)])
def test_jump_of_the_map_is_left_out_and_counted(small, tmp_path, distance, passes):
    """At one pixel value the map jumps by 1 %, and one test image has it: the oracle and eager take different sides."""
    edge = images(8, small.image_shape, seed=8)[4, 0, 0, 0]

    def explain(batch, class_index):
        logits, maps, explained = small.explain(batch, class_index)
        return logits, maps * (1 + 0.01 * (batch[:, 0, 0, 0] > edge).float()).view(-1, 1, 1), explained

    def oracle(batch, class_index, inputs=None):
        logits, maps = small.oracle(batch, class_index)
        return logits, maps * (1 + 0.01 * (batch[:, 0, 0, 0] >= edge - distance).double()).view(-1, 1, 1)

    request = dataclasses.replace(small, explain=explain, oracle=oracle)
    if passes:
        report = export_torchscript(request, tmp_path / "a.pt")
        maps = next(check for check in report.checks if check.name == "map against the oracle")
        assert (maps.images, maps.ties_left_out) == (11, 1)
        assert maps.error < 1e-5
    else:
        with pytest.raises(CamkitError, match=r"map against the oracle: 9\.\d\de-03"):
            export_torchscript(request, tmp_path / "a.pt")


class Blindfolded(nn.Module):
    """Attention in which one query may look at nothing: its softmax is zeros in eager, not a number in the graph."""

    def __init__(self, blind: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.fc = nn.Linear(8, 5)
        seen = torch.ones(16, 16, dtype=torch.bool)
        seen[3] = not blind
        self.register_buffer("seen", seen)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(image).flatten(2).mT
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, attn_mask=self.seen)
        return self.fc((tokens + attended).mean(dim=1).tanh())


@pytest.mark.parametrize("blind", [False, True])
def test_query_that_sees_nothing_is_refused(tmp_path, blind):
    torch.manual_seed(0)
    request = make_request(Blindfolded(blind), "stem", 16)
    if blind:
        with pytest.raises(CamkitError, match="logits against the oracle: inf"):
            export_torchscript(request, tmp_path / "a.pt")
        assert os.listdir(tmp_path) == []
    else:
        assert export_torchscript(request, tmp_path / "a.pt").path.exists()


def test_nan_does_not_pass():
    assert not Check("map", float("nan"), 1.0, 1).passed


WITHOUT_TORCH = """
import sys
for name in ("torch", "pluggy", "onnx", "pydantic"):
    sys.modules[name] = None
from camkit_export.verify import verify_file
assert all(check.passed for check in verify_file(sys.argv[1]))
"""


def test_vectors_need_no_torch(small_onnx):
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, small_onnx], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def spoilt(request, *, threshold, eager=None, oracle=None):
    """The request with other logits for images beyond a size, in eager, in the oracle or in both."""

    def changed(function, change):
        def explain(images, class_index, *inputs):
            logits, *rest = function(images, class_index, *inputs)
            beyond = images.flatten(1).abs().amax(dim=1, keepdim=True) > threshold
            return torch.where(beyond, change(logits), logits), *rest

        return explain if change else function

    return dataclasses.replace(request, explain=changed(request.explain, eager), oracle=changed(request.oracle, oracle))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"oracle": lambda logits: logits * np.nan}, "the reference is not finite"),
        ({"eager": lambda logits: logits * np.inf}, "float32 is not enough"),
        ({"eager": lambda logits: logits * 1.01}, "float32 is not enough"),
    ],
)
def test_huge_images_without_an_answer_are_left_out_and_counted(small_pt, small, change, reason):
    found = compare_kinds(TorchScriptSession(small_pt), spoilt(small, threshold=100, **change))
    kinds = {one.kind: one for one in found}
    assert kinds["huge"].left_out == {reason: 12}
    assert [check.images for check in kinds["huge"].checks["oracle"]] == [0] * 4
    assert (kinds["huge"].passed, kinds["huge"].proves) == (True, False)
    assert [(kinds[kind].left_out, kinds[kind].proves) for kind in ("random", "constant", "tiny")] == [({}, True)] * 3


def test_random_images_without_an_answer_fail(small_pt, small):
    request = spoilt(small, threshold=0, oracle=lambda logits: logits * np.nan)
    failed = [check.name for check in compare(small_pt, request) if not check.passed]
    assert "logits against the oracle" in failed


def test_real_images_come_in_batches_of_every_size():
    given = np.arange(22.0, dtype=np.float32).reshape(22, 1, 1, 1)
    assert [len(batch) for batch in real_sample(given).batches] == [1, 3, 8, 8, 2]
    assert np.concatenate(real_sample(given).batches).ravel().tolist() == list(range(22))


def test_provider_is_the_one_that_runs(small_onnx):
    session = OnnxSession(small_onnx)
    assert (session.provider, session.providers) == ("CPUExecutionProvider", ("CPUExecutionProvider",))
    assert session.runtime.startswith("onnxruntime ")


WISHED = """
import sys
from camkit_export.session import OnnxSession
print(*OnnxSession(sys.argv[1], ["CUDAExecutionProvider", "CPUExecutionProvider"]).providers)
"""


def test_provider_that_cannot_start_is_not_reported(small_onnx):
    """Without a GPU to be seen CUDA cannot start, also where ONNX Runtime lists it."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, "-W", "ignore", "-c", WISHED, small_onnx]
    run = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert run.stdout.split() == ["CPUExecutionProvider"], run.stderr
