"""The forms of an exported graph: several classes, several maps, pictures in, maps alone, weights in float16."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import camkit
import zoo
from camkit import Explainer
from camkit.exports import request
from camkit.frames import Frames
from camkit.testing.equality import relative_error
from camkit_adapters.demo.scenes import generate
from camkit_export.session import output_names
from camkit_export.trace import trace
from camkit_export.verify import compare_session
from commandline import run, succeed

# of noise a map may speak against the class that is asked for
pytestmark = pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")

MODEL = "demo:resnet"
SIZE = 96


@pytest.fixture(scope="module")
def explainer() -> Explainer:
    return Explainer(camkit.models.load_model(MODEL))


@pytest.fixture(scope="module")
def exported(explainer, tmp_path_factory):
    """A session for a form, each written once."""
    made = {}

    def session(name: str, suffix: str = ".pt", **form):
        if (name, suffix) not in made:
            path = tmp_path_factory.mktemp("forms") / f"{name}{suffix}"
            report = camkit.export(explainer, path, **form)
            assert report.checks
            assert all(check.passed for check in report.checks)
            made[name, suffix] = camkit.load(path)
        return made[name, suffix]

    return session


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(11))


def pictures(height: int, width: int, count: int = 2) -> np.ndarray:
    coarse = np.random.RandomState(0).randint(0, 256, (count, 8, 9, 3), dtype=np.uint8)
    return np.stack(
        [np.array(Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC)) for one in coarse]
    )


def agree(found: np.ndarray, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert float(expected.std()) > 0
    assert float(relative_error(torch.from_numpy(np.ascontiguousarray(found)), expected).max()) <= tolerance


def test_top_classes_are_those_that_an_explainer_gives(exported, explainer):
    session = exported("top", top_k=3)
    assert (session.inputs, session.outputs) == (("image",), ("logits", "heatmap", "map", "explained_class"))
    result = session(images().numpy())
    assert result.heatmaps.shape == (3, 3, SIZE, SIZE)
    for rank, explanation in enumerate(explainer(images(), target="top-3")):
        assert result.classes[:, rank].tolist() == explanation.targets.tolist()
        agree(result.maps[:, rank], explanation.maps)
        assert np.abs(result.heatmaps[:, rank] - explanation.heatmaps.numpy()).max() <= 1e-3
    with zoo.refused("explains the top 3 classes", "no class can be asked for"):
        session(images().numpy(), 1)


def test_the_trunk_of_the_top_classes_is_traced_once(explainer):
    def convolutions(top_k):
        graph = trace(request(explainer, layer="stage3", top_k=top_k))
        return [str(node.target) for node in graph.explain.graph.nodes].count("aten.convolution.default")

    one, two, three = (convolutions(top_k) for top_k in (1, 2, 3))
    # what each class adds is the head's backward pass
    assert three - two == two - one < one / 2


def test_several_maps_share_one_graph(exported, explainer):
    methods, layers = ["gradcam", "layercam"], ["last", "stage3"]
    session = exported("several", method=methods, layer=layers)
    assert session.maps == ("gradcam__layer4", "layercam__layer4", "gradcam__layer3", "layercam__layer3")
    assert session.outputs == output_names(session.maps)
    assert [one["method"] for one in session.provenance["maps"]] == ["gradcam", "layercam"] * 2
    classes = [4, -1, 0]
    found = session.results(images().numpy(), classes)
    expected = explainer(images(), methods, target=torch.tensor(classes), layer=layers)
    by_name = {f"{one.method}__{one.layer}": one for one in expected}
    assert set(by_name) == set(session.maps)
    for result in found:
        agree(result.maps, by_name[result.name].maps)
        assert np.abs(result.heatmaps - by_name[result.name].heatmaps.numpy()).max() <= 1e-3
    with zoo.refused("has 4 maps", "gradcam__layer4", "results"):
        session(images().numpy())


def test_a_file_of_several_maps_runs_once_for_each_batch(exported, explainer, monkeypatch):
    """Its maps are compared one by one, and each run gives all of them."""
    form = {"method": ["gradcam", "layercam"], "layer": ["last", "stage3"]}
    session = exported("several", **form)
    runs, run = [], session.run
    monkeypatch.setattr(session, "run", lambda *inputs: runs.append(len(inputs[0])) or run(*inputs))
    checks = compare_session(session, request(explainer, **form))
    assert len(checks) > 4
    assert all(check.passed for check in checks)
    assert runs == [1, 3, 8]


def test_pictures_are_preprocessed_in_the_graph(exported, explainer):
    session = exported("pictures", frame_size=(120, 150))
    assert (session.image_shape, session.image_type) == ((120, 150, 3), np.uint8)
    given = pictures(120, 150)
    result = session(given, 2)
    assert result.heatmaps.shape == (2, 120, 150)
    frames = Frames(explainer.preprocessing, (120, 150))
    exact = explainer(frames.images(torch.from_numpy(given), torch.float32), target=2)
    agree(result.logits, exact.logits)
    agree(result.maps, exact.maps)
    # Pillow rounds to whole levels, the graph does not
    by_pillow = explainer(torch.stack([explainer.preprocessing(Image.fromarray(one)) for one in given]), target=2)
    agree(result.maps, by_pillow.maps, 5e-2)
    with zoo.refused("pictures of whole levels, uint8", "float32"):
        session(given.astype(np.float32))
    with zoo.refused("[batch, 120, 150, 3]"):
        session(given[:, :100])


def test_a_raw_graph_has_no_heatmaps(exported, explainer):
    session = exported("raw", raw=True)
    assert session.outputs == ("logits", "map", "explained_class")
    result = session(images().numpy(), 1)
    assert result.heatmaps.size == 0
    agree(result.maps, explainer(images(), target=1).maps)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_weights_in_float16_are_half_as_large_and_near(exported, explainer, suffix):
    session = exported("half", suffix, half=True)
    size = session.path.stat().st_size
    parameters = sum(parameter.numel() for parameter in explainer.module.parameters())
    assert 2 * parameters < size < 3 * parameters
    result = session(images().numpy(), 1)
    assert result.maps.dtype == np.float32
    agree(result.maps, explainer(images(), target=1).maps, 2e-2)


def test_everything_at_once_as_onnx(exported, explainer):
    session = exported(
        "all", ".onnx", method=["gradcam", "hirescam"], top_k=2, frame_size=(64, 80), half=True, raw=True
    )
    assert session.maps == ("gradcam__layer4", "hirescam__layer4")
    given = pictures(64, 80)
    frames = Frames(explainer.preprocessing, (64, 80)).images(torch.from_numpy(given), torch.float32)
    for result, method in zip(session.results(given), ("gradcam", "hirescam"), strict=True):
        for rank, expected in enumerate(explainer(frames, method, target="top-2")):
            assert result.classes[:, rank].tolist() == expected.targets.tolist()
            agree(result.maps[:, rank], expected.maps, 2e-2)


@pytest.mark.slow
def test_openvino_runs_every_form_alike(exported):
    openvino = pytest.importorskip("openvino")
    session = exported("pictures and classes", ".onnx", top_k=2, frame_size=(64, 80), half=True)
    compiled = openvino.Core().compile_model(str(session.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shown = np.stack([cv2.resize(scene.image, (80, 64)) for scene in generate(2, "test", 0)])
    found, expected = compiled({"image": shown}), session(shown)
    named = {name: value for output, value in found.items() for name in output.get_names()}
    assert named["explained_class"].tolist() == expected.classes.tolist()
    agree(named["map"], torch.from_numpy(expected.maps))
    agree(named["heatmap"], torch.from_numpy(expected.heatmaps))


def test_on_the_command_line(tmp_path):
    path = tmp_path / "pictures.pt"
    printed = succeed(
        "export", "--model", MODEL, "--output", path, "--top-k", "2", "--with-preprocessing", "--frame-size", "48x64"
    )
    assert "class 2 of 2, map against the oracle" in " ".join(printed.split())
    assert camkit.load(path)(pictures(48, 64)).maps.shape[:2] == (2, 2)
    assert "gives what it should" in succeed("verify", path, "--model", MODEL)


REFUSED = {
    "more classes than there are": (["--top-k", "99"], ["top 99 classes", "the model has"]),
    "no class": (["--top-k", "0"], ["top 0 classes"]),
    "a size that is none": (["--frame-size", "48"], ["--frame-size was '48'", "480x640"]),
    "a method that cannot be traced": (["--method", "gradcam,rise"], ["'rise' cannot be exported"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case, tmp_path: Path):
    arguments, words = REFUSED[case]
    result = run("export", "--model", MODEL, "--output", tmp_path / "no.pt", *arguments)
    assert (result.code, list(tmp_path.iterdir())) == (2, [])
    for word in words:
        assert word in " ".join(result.err.split())


def test_top_classes_of_a_model_without_classes_are_refused():
    module = copy.deepcopy(zoo.random_model("timm:vit"))
    module.reset_classifier(0)
    encoder = Explainer(module, "last")
    with zoo.refused("only of a target that is a class's"):
        request(encoder, top_k=1, target="embedding", images=zoo.images(1, 48))


def test_a_graph_of_other_maps_is_told(exported, explainer):
    from camkit_export.verify import compare_session

    with zoo.refused("is of another model: its maps are"):
        compare_session(exported("raw", raw=True), request(explainer, top_k=2, raw=True))
