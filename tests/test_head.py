"""The head as a graph: the scores of full forward passes with the layer's output replaced, for a fraction of them."""

import copy
import gc
import weakref

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import zoo
from camkit import Explainer, plugin
from camkit.contracts import Head, ModelScores
from camkit.cut import replay
from camkit.errors import CamkitWarning
from camkit.head import NoHead, head_graph
from camkit.testing import relative_error

COUNT = 5


@plugin.method("scores-of-ablated", paper="none")
def ablated(activations: Tensor, head: Head) -> Tensor:
    """The head's scores without each of the first channels, as a "map" [B, 1, n] that the test reads."""

    def make(i: int) -> Tensor:
        changed = activations.clone()
        changed[:, i] = 0
        return changed

    return head.map(make, COUNT)[:, None]


@plugin.method("scores-of-full-passes", paper="none")
def in_full(activations: Tensor, head: Head) -> Tensor:
    """The same by calls, which run the whole model as long as no graph was made."""
    scores = []
    for i in range(COUNT):
        changed = activations.clone()
        changed[:, i] = 0
        scores.append(head(changed))
    return torch.stack(scores, dim=1)[:, None]


def compare(model: nn.Module, layer: str | None, images: Tensor, *, allowed: float = 1e-5) -> None:
    full, graph = (Explainer(zoo.watch(model), layer)(images, m, 3, relu=False).maps for m in (in_full, ablated))
    # what ablation changes is what methods weigh by, so the difference is measured against that and not the score
    changes = full - full.mean(dim=2, keepdim=True)
    assert bool((changes.flatten(1).abs().amax(dim=1) > 1e-3 * full.flatten(1).abs().amax(dim=1)).all())
    assert float(relative_error(graph, full).max()) <= allowed


PLACES = [
    ("torchvision:resnet18", 64, "last"),
    ("torchvision:resnet18", 64, "layer2.0"),
    ("torchvision:vgg11", 64, "features.-3"),
    ("torchvision:alexnet", 96, "last"),
    ("torchvision:densenet", 64, "features.norm5"),
    ("torchvision:densenet", 64, "features.denseblock1"),
    ("torchvision:vit", 48, "last"),
    ("torchvision:vit", 48, "encoder.layers.1"),
    ("timm:vit", 48, "last"),
    ("timm:vit", 48, "blocks.0.attn"),
    ("timm:vit-registers", 48, "last"),
    ("timm:vit-average", 48, "last"),
    ("timm:vit-dynamic", (48, 72), "last"),
]


# a fall-back would warn, and warnings of camkit are errors in these tests
@pytest.mark.filterwarnings("ignore:The map by")
@pytest.mark.parametrize(("name", "size", "layer"), PLACES)
def test_the_graph_gives_the_scores_of_full_passes(name, size, layer, random_model):
    compare(random_model(name), layer, zoo.images(2, size))


FAMILIES = [
    ("timm", "swin_tiny_patch4_window7_224", 224, "layers.3"),
    ("timm", "swin_tiny_patch4_window7_224", 224, "layers.2.blocks.5.norm1"),
    ("timm", "convnext_atto", 64, "stages.3"),
    ("timm", "efficientnet_b0", 64, "blocks.6"),
    ("timm", "mobilenetv3_small_100", 64, "blocks.4"),
    ("timm", "regnetx_002", 64, "s4"),
    ("timm", "mixer_s32_224", 224, "blocks.6"),
    ("timm", "deit_tiny_patch16_224", 224, "blocks.11.norm1"),
    ("timm", "maxvit_pico_rw_256", 256, "stages.3"),
    ("torchvision", "mobilenet_v2", 64, "features.18"),
    ("torchvision", "googlenet", 96, "inception5b"),
    ("torchvision", "swin_t", 224, "features.7"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The map by")
@pytest.mark.parametrize(("library", "name", "size", "layer"), FAMILIES)
def test_other_families_have_heads_too(library, name, size, layer):
    torch.manual_seed(0)
    if library == "timm":
        model = timm.create_model(name)
    else:
        options = {"init_weights": False} if name == "googlenet" else {}
        model = torchvision.models.get_model(name, weights=None, **options)
    compare(zoo.randomised(model), layer, zoo.images(2, size), allowed=1e-4)


@pytest.mark.filterwarnings("ignore:The map by")
def test_float64_is_exact(random_model):
    model = copy.deepcopy(random_model("timm:vit")).double()
    compare(model, "last", zoo.images(2, 48).double(), allowed=1e-6)  # maps are float32


class Undecided(nn.Module):
    """A model whose path hangs on a value, which no exported graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, stride=4)
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.features(images).relu().mean(dim=(2, 3))
        return self.classifier(pooled if float(pooled.detach().sum()) > 0 else -pooled)


def test_a_model_that_cannot_be_exported_runs_as_a_whole_and_says_so_once():
    torch.manual_seed(0)
    model = zoo.watch(Undecided().eval())
    explainer = Explainer(model, "features")
    images = zoo.images(2, 32)
    with pytest.warns(CamkitWarning, match=r"behind 'features' is not run alone, because torch.export refuses"):
        graph = explainer(images, ablated, 3, relu=False)
    # another warning would be an error
    explainer(images, ablated, 3, relu=False)
    full = explainer(images, in_full, 3, relu=False)
    torch.testing.assert_close(graph.maps, full.maps)
    assert float(full.maps.std()) > 0


class Half(nn.Module):
    """Reads its layer's output and, past it, what only the trunk of one image size gives."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 6, 3, stride=4)
        self.beside = nn.Conv2d(3, 6, 3, stride=4)
        self.classifier = nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        beside = self.beside(images)
        return self.classifier((self.features(images) * beside.sigmoid()).relu().mean(dim=(2, 3)))


@pytest.mark.filterwarnings("ignore:The map by")
def test_what_bypasses_the_layer_belongs_to_its_own_image():
    torch.manual_seed(0)
    model = Half().eval()
    compare(model, "features", zoo.images(3, 32))
    forward = Explainer(model, "features").plan(zoo.images(2, 32), ["gradcam"], ["features"]).forward(zoo.images(2, 32))
    graph = head_graph(model, Explainer(model).plan(zoo.images(2, 32), [], ["features"]).layers[0], forward)
    assert [bypass.dimension for bypass in graph.bypasses] == [0]


def layer_of(model, images, path):
    plan = Explainer(model, path).plan(images, ["gradcam"], [path])
    return plan.layers[0], plan.forward(images)


def test_the_graph_holds_the_head_alone(random_model):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, 64)
    graph = head_graph(model, *layer_of(model, images, "layer4"))
    called = [str(node.target) for node in graph.head.graph.nodes if node.op == "call_function"]
    assert not [name for name in called if "conv" in name]
    assert [bypass for bypass in graph.bypasses if bypass.size is None] == []
    assert len(list(graph.trunk.graph.nodes)) <= 2


def test_the_graph_is_made_once_and_again_when_the_model_has_other_parts():
    torch.manual_seed(0)
    model, images = Half().eval(), zoo.images(2, 32)
    layer, forward = layer_of(model, images, "features")
    first = head_graph(model, layer, forward)
    assert head_graph(model, layer, forward) is first
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    assert head_graph(model, layer, forward) is first
    doubled = first.run(forward.captured["features"], first.prepare(images), 1)
    torch.testing.assert_close(doubled, model(images))
    model.classifier = nn.Linear(6, 7).eval()
    again = head_graph(model, *layer_of(model, images, "features"))
    assert again is not first
    assert again.run(forward.captured["features"], again.prepare(images), 1).shape == (2, 7)


def test_a_model_is_not_kept_alive_by_its_graph():
    model, images = Half().eval(), zoo.images(2, 32)
    head_graph(model, *layer_of(model, images, "features"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_why_there_is_no_graph_is_remembered():
    model, images = Undecided().eval(), zoo.images(2, 32)
    place = layer_of(model, images, "features")
    reasons = []
    for _ in range(2):
        with pytest.raises(NoHead) as caught:
            head_graph(model, *place)
        reasons.append(caught.value)
    assert reasons[0] is reasons[1]


def test_replay_is_the_model_with_another_output_of_the_layer(random_model):
    model, images = random_model("torchvision:resnet18"), zoo.images(2, 64)
    layer, forward = layer_of(zoo.watch(model), images, "layer4")
    captured = forward.captured["layer4"].detach()
    with torch.no_grad():
        torch.testing.assert_close(replay(model, images, layer, captured), model(images))
        pooled = model.avgpool(captured * 2).flatten(1)
        torch.testing.assert_close(replay(model, images, layer, captured * 2), model.fc(pooled))


@plugin.method("sizes", paper="none", class_specific=False)
def sizes(images: Tensor, activations: Tensor, model_scores: ModelScores, head: Head) -> Tensor:
    """How many copies were asked for before the model ran again, read from when `make` was called."""
    model_scores.map(lambda i: images * (i + 1), 40)
    head.map(lambda i: activations * (i + 1), 40)
    return activations.mean(dim=1)


@pytest.mark.parametrize("megabytes", [0, 1, 8])
def test_chunks_keep_to_the_memory_that_they_are_given(megabytes, random_model):
    """Not more images at a time than fit; with no memory at all one copy of the batch after the other."""
    model = random_model("torchvision:resnet18")
    seen = []
    handle = model.fc.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[0]))
    try:
        explainer = Explainer(model, memory=megabytes * 2**20)
        explainer(zoo.images(2, 64), sizes, 3)
    finally:
        handle.remove()
    # while the head's graph is made the number of images is a symbol
    chunks = [size for size in seen if isinstance(size, int)][1:]
    # the first result of a resnet for 64x64 is 64 channels of 32x32 floats, and four of its size may live at a time
    per_image = 4 * 64 * 32 * 32 * 4
    assert chunks[0] == 2
    assert max(chunks) <= max(2, megabytes * 2**20 / per_image)
    assert max(chunks) > 2 or megabytes < 8
