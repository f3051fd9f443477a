"""Rules that find a layer, references that are read off a model, and the choice that a probe makes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from camkit import Adapter, Explainer
from camkit.adapter_files import find_adapter
from camkit.cut import Layer
from camkit.layout import Tokens
from camkit.probe import probe
from camkit.references import follow, read
from camkit.rules import at_stride, trunk_end
from camkit.testing import Oracle, assert_agrees
from camkit.testing.models import SmallTransformer
from camkit.walk import walk


class Staged(nn.Module):
    """Strides 2, 4 and 8; an auxiliary head in the middle, a stage in a list that is only iterated."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.aux_head = nn.Linear(12, zoo.CLASSES)
        self.blocks = nn.ModuleList([nn.Conv2d(12, 16, 3, 2, 1), nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 1))])
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(16, zoo.CLASSES)

    def forward(self, images):
        x = self.stage(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x).mean(dim=(2, 3)))


@pytest.fixture
def staged():
    return zoo.randomised(Staged())


def test_the_trunk_ends_in_front_of_the_readout(staged):
    assert trunk_end(staged, ["pool", "head*"], ["aux*"]) == "blocks.1.1"
    assert trunk_end(staged, ["pool", "head*", "blocks"], ["aux*"]) == "stage.1"
    assert trunk_end(staged, ["pool", "head*", "blocks"], []) == "aux_head"
    assert trunk_end(staged, ["STEM"], []) is None


def test_a_layer_by_its_stride_lies_in_the_trunk_and_is_whole(staged):
    images = zoo.images(1, (64, 96))
    assert at_stride(staged, images, 2, "blocks.1") == "stem"
    assert at_stride(staged, images, 4, "blocks.1") == "stage"
    # the pooling gives 4x4 of 8x12, which is no place of the trunk
    assert at_stride(staged, images, 8, "blocks.1") == "blocks.1"
    with zoo.refused("A Staged has no layer that divides images of 64x96 by 16", "divide them by 2, 4, 8."):
        at_stride(staged, images, 16, "blocks.1")


def test_a_named_stage_costs_one_walk_for_each_size_of_image(staged):
    runs = []
    handle = staged.register_forward_hook(lambda *_: runs.append(1))
    adapter = Adapter(name="x", targets={"last": "blocks.1", "stage1": "@stride:4"})
    explainer = Explainer(staged, adapter=adapter)
    assert not runs
    for _ in range(2):
        assert explainer(zoo.images(2, 64), target=1, layer="stage1").layer == "stage"
    assert len(runs) == 3
    assert explainer(zoo.images(2, 96), target=1, layer="stage1").layer == "stage"
    assert len(runs) == 5
    handle.remove()


@pytest.mark.parametrize("name", ["timm:resnet", "timm:vit", "torchvision:vit", "torchvision:densenet", "demo:vgg"])
def test_finding_the_adapter_costs_no_forward_pass(name, random_model):
    model, runs = random_model(name), []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        Explainer(model, layer="last")
        assert find_adapter(model) is not None
    finally:
        handle.remove()
    assert not runs


def test_an_unknown_model_costs_one_forward_pass(staged):
    runs = []
    handle = staged.register_forward_hook(lambda *_: runs.append(1))
    explainer = Explainer(staged)
    explainer.resolve(zoo.images(1, 64))
    explainer.resolve(zoo.images(1, 64))
    handle.remove()
    assert len(runs) == 1


def test_a_probe_takes_the_end_of_a_block_and_names_the_stages(staged):
    staged.pool = nn.AdaptiveAvgPool2d(1)
    found = probe(staged, zoo.images(1, 64))
    paths = {name: position.path for name, position in found.adapter.targets.items()}
    assert paths == {"last": ("blocks.1",), "stage1": ("stage",), "stage2": ("blocks.1",)}


def test_a_probed_transformer_is_cut_behind_the_last_whole_block_whose_patches_count():
    """The queries and keys of the last block come later and have gradients, but they are no place to cut."""
    module = zoo.watch(SmallTransformer())
    found = probe(module, zoo.images(1, 24))
    assert found.adapter.targets["last"].path == ("blocks.1",)
    explainer = Explainer(module)
    explanation = explainer(zoo.images(2, 24), target=1, relu=False)
    reference = Oracle(explainer, zoo.images(2, 24))(zoo.images(2, 24), torch.tensor([1, 1]))
    assert_agrees(explanation.logits, explanation.maps, reference, (24, 24), relu=False)


def test_a_cut_is_what_all_paths_to_the_score_pass_through():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.shrink, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, zoo.CLASSES)

        def forward(self, images):
            x = self.first(images)
            x = self.last(x + F.relu(self.branch(x)))
            return self.head(self.shrink(x).mean(dim=(2, 3)) + x.mean(dim=(2, 3)))

    seen = walk(zoo.watch(zoo.randomised(Skipping())), zoo.images(1, 16), gradients=True)
    cuts = {record.path for record in seen.layers if record.is_cut}
    assert cuts == {"", "first", "last", "head"}
    assert walk(zoo.randomised(Skipping()), zoo.images(1, 16)).layer("first").is_cut is None


# --- references


class Described(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2)
        self.num_classes, self._secret = 7, 8
        self.feature_info = [{"reduction": 8}, {"reduction": 16}]

    def factory(self):
        raise AssertionError("a reference calls nothing")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("num_classes", 7),
        ("stem.kernel_size", (2, 2)),
        ("stem.kernel_size.0", 2),
        ("-1.out_channels", 4),
        ("feature_info.-1.reduction", 16),
        ("feature_info.0.reduction", 8),
        ("feature_info.2.reduction", None),
        ("feature_info.0.stride", None),
        ("_secret", None),
        ("stem.__class__", None),
        ("no_such.thing", None),
    ],
)
def test_references_are_attributes_keys_and_indices(path, value):
    assert read(Described(), path) == value


def test_a_reference_that_may_be_missing_says_so():
    module = Described()
    assert follow(module, "@no_such?", "The adapter 'x'") is None
    with zoo.refused("The adapter 'x' reads @no_such, which a Described does not have", "@no_such?"):
        follow(module, "@no_such", "The adapter 'x'")


def test_layouts_from_a_stride_and_from_several_numbers_of_channels():
    adapter = Adapter(
        name="x",
        stride="@feature_info.-1.reduction",
        channels=["@no_such?", "@num_classes"],
        targets={"last": "stem"},
    )
    module = Described()
    layer = Layer("last", "stem", module.stem)
    assert adapter.layout_of(module, layer, (1, 15, 4), (40, 80)) == Tokens(0, (3, 5))
    assert str(adapter.layout_of(module, layer, (1, 7, 8, 8), (64, 64))) == "NCHW"
    assert str(adapter.layout_of(module, layer, (1, 8, 8, 7), (64, 64))) == "NHWC"
