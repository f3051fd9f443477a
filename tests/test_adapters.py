"""Adapter files: their schema, which model they describe, who wins, and how they read a layer as a map."""

import re
import textwrap

import pytest
import timm
import torch
from torch import nn

import zoo
from camkit import Adapter, Explainer
from camkit.adapter_files import find_adapter, load_adapters
from camkit.cut import find_module
from camkit.layout import NCHW, NHWC, Tokens, resolve_layout
from camkit.testing import Oracle, assert_agrees


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


# --- the schema

WRONG = {
    "not TOML": ("[[adapter]\nname = 1", ["not valid TOML"]),
    "no name": ("[[adapter]]\nlibrary = 'timm'", ["adapter.0.name", "Field required"]),
    "unknown key": ("[[adapter]]\nname = 'a'\nlayuot = 'NCHW'", ["adapter.0.layuot", "not permitted"]),
    "unknown key of a target": (
        "[[adapter]]\nname = 'a'\n[adapter.targets.last]\npath = 'x'\nprefx = 1",
        ["last.prefx"],
    ),
    "unknown layout": ("[[adapter]]\nname = 'a'\nlayout = 'CHWN'", ["adapter.0.layout", "'NCHW'"]),
    "reference without @": ("[[adapter]]\nname = 'a'\nprefix = 'num_prefix_tokens'", ["adapter.0.prefix"]),
    "a call": ("[[adapter]]\nname = 'a'\nprefix = '@grid()'", ["adapter.0.prefix"]),
    "grid of three": ("[[adapter]]\nname = 'a'\ngrid = [1, 2, 3]", ["adapter.0.grid"]),
    "probability": ("[[adapter]]\nname = 'a'\nprobability = 'tanh'", ["adapter.0.probability", "'sigmoid'"]),
    "target without path": ("[[adapter]]\nname = 'a'\ntargets.last = []", ["adapter.0.targets.last"]),
    "a single table": ("[adapter]\nname = 'a'", ["adapter", "list"]),
    "another top level": ("[[adapters]]\nname = 'a'", ["wrong at"]),
    "empty": ("", ["wrong at", "adapter"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_told_in_one_sentence_that_names_the_place(case, write):
    text, words = WRONG[case]
    with zoo.refused("mine.toml", *words):
        load_adapters(write(text))


def test_a_missing_or_binary_file_is_told_in_one_sentence(tmp_path):
    with zoo.refused("nowhere.toml", "cannot be read"):
        load_adapters(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00\x80")
    with zoo.refused("binary.toml", "not valid TOML"):
        load_adapters(tmp_path / "binary.toml")


def test_every_field_is_read(write):
    (adapter,) = load_adapters(
        write("""
            [[adapter]]
            name = "all"
            library = "timm"
            class = ["VisionTransformer", "Eva"]
            equals = { global_pool = "token", num_prefix_tokens = 1 }
            class_of = { "blocks.-1" = "Block" }
            layout = "tokens"
            prefix = "@num_prefix_tokens"
            grid = [6, 6]
            channels = "@embed_dim"
            classifier = ["head", "fc"]
            output = "logits"
            probability = "sigmoid"
            targets.last = ["norm", "blocks.-1"]
            targets.early = { path = "blocks.0", layout = "NHWC", element = 1 }
        """)
    )
    assert adapter.classes == ("VisionTransformer", "Eva")
    assert adapter.class_of == {"blocks.-1": ("Block",)}
    assert (adapter.prefix, adapter.grid, adapter.channels) == ("@num_prefix_tokens", (6, 6), ("@embed_dim",))
    assert adapter.targets["last"].path == ("norm", "blocks.-1")
    assert (adapter.targets["early"].layout, adapter.targets["early"].element) == ("NHWC", 1)
    assert (adapter.output, adapter.probability) == ("logits", "sigmoid")


# --- which model an adapter describes

RESNET, VIT = "timm:resnet", "timm:vit"


class MyResNet(timm.models.ResNet):
    """A user's subclass: its own module is not timm's, its base is."""


MATCHES = {
    "library": (RESNET, {"library": "timm"}, None),
    "another library": (RESNET, {"library": "torchvision"}, "not from torchvision"),
    "torchvision's ResNet is not timm's": (
        "torchvision:resnet18",
        {"library": "timm", "classes": "ResNet"},
        "not from timm",
    ),
    "class": (RESNET, {"classes": "ResNet"}, None),
    "one of several classes": (RESNET, {"classes": ("VGG", "ResNet")}, None),
    "another class": (RESNET, {"classes": ("VGG", "Eva")}, "not one of VGG, Eva"),
    "attribute": (VIT, {"equals": {"global_pool": "token"}}, None),
    "attribute of a child": (VIT, {"equals": {"patch_embed.num_patches": 36}}, None),
    "another attribute": (VIT, {"equals": {"global_pool": "avg"}}, "global_pool is not 'avg'"),
    "missing attribute": (RESNET, {"equals": {"no_such.attribute": True}}, "no_such.attribute is not True"),
    "class of a child": (VIT, {"class_of": {"blocks.-1": ("Block",)}}, None),
    "another class of a child": (VIT, {"class_of": {"blocks.-1": ("Other",)}}, "blocks.-1 is a Block"),
    "missing child": (RESNET, {"class_of": {"blocks.-1": ("Block",)}}, "has no module blocks.-1"),
    "everything": (RESNET, {}, None),
}


@pytest.mark.parametrize("case", MATCHES)
def test_matching(case, random_model):
    name, facts, reason = MATCHES[case]
    found = Adapter(name="x", **facts).mismatch(random_model(name))
    assert found is None if reason is None else reason in found


def test_a_subclass_of_a_library_class_is_described_too():
    model = zoo.randomised(MyResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(4, 8, 8, 8), num_classes=10))
    assert Adapter(name="x", library="timm", classes="ResNet").mismatch(model) is None
    assert Adapter(name="x", library="timm", classes="MyResNet").mismatch(model) is not None
    assert find_adapter(model).adapter.name == "timm.resnet"
    assert Explainer(zoo.watch(model))(zoo.images(1, 64), relu=False).layer == "layer4"


# The adapter that each model gets, and where its `last` lies.
FIRST_PARTY = {
    "torchvision:alexnet": ("torchvision.alexnet", "features.11"),
    "torchvision:vgg11": ("torchvision.vgg", "features.19"),
    "torchvision:resnet18": ("torchvision.resnet", "layer4"),
    "torchvision:vit": ("torchvision.vit", "encoder.layers.encoder_layer_2.ln_1"),
    "timm:resnet": ("timm.resnet", "layer4"),
    "timm:vit": ("timm.vit.class-token", "blocks.2.norm1"),
    "timm:vit-registers": ("timm.vit.class-token", "blocks.2.norm1"),
    "timm:vit-postnorm": ("timm.vit.class-token.no-prenorm", "blocks.1"),
    "timm:vit-average": ("timm.vit.pooled", "norm"),
    "timm:vit-no-class-token": ("timm.vit.pooled", "norm"),
    "demo:resnet": ("timm.resnet", "layer4"),
    "demo:vgg": ("torchvision.vgg", None),
    "demo:vit": ("timm.vit.class-token", "blocks.3.norm1"),
}


@pytest.mark.parametrize("name", FIRST_PARTY)
def test_the_adapter_of_a_model_and_its_last_layer(name, random_model):
    model, (expected, path) = random_model(name), FIRST_PARTY[name]
    resolved = find_adapter(model)
    assert resolved.adapter.name == expected
    assert resolved.rule == f"first match in {expected.split('.')[0]}.toml"
    layer = resolved.adapter.layer(model)
    assert path is None or layer.path == path
    assert layer.module is model.get_submodule(layer.path)


def test_vgg_and_alexnet_are_cut_at_the_last_relu_before_the_last_pooling(random_model):
    for name in ("torchvision:alexnet", "torchvision:vgg11"):
        layer = find_adapter(random_model(name)).adapter.layer(zoo.random_model(name))
        assert isinstance(layer.module, nn.ReLU)
        assert isinstance(zoo.random_model(name).features[-1], nn.MaxPool2d)


# --- who wins

ENTRY = '[[adapter]]\nname = "{name}"\nlibrary = "timm"\nclass = "ResNet"\ntargets.last = "layer2"\n'


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed distribution `camkit-acme` with an adapter file and nothing else."""
    site = tmp_path / "site"
    info = site / "camkit_acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camkit]\nacme = camkit_acme\n")
    (site / "acme.toml").write_text(ENTRY.format(name="acme"))
    (site / "camkit_acme.py").write_text(
        "from pathlib import Path\nfrom camkit import plugin\n\n@plugin.hookimpl\ndef camkit_adapters():\n"
        "    return [Path(__file__).with_name('acme.toml')]\n"
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("CAMKIT_PLUGINS", "camkit-acme")


def test_argument_over_environment_over_third_party_over_first_party(write, monkeypatch, third_party, random_model):
    model = random_model(RESNET)

    def won(given=None):
        resolved = find_adapter(model, given)
        return resolved.adapter.name, resolved.rule, resolved.adapter.layer(model).path

    assert won() == ("acme", "first match in acme.toml of camkit-acme", "layer2")
    environment = write(ENTRY.format(name="environment"), "environment.toml")
    monkeypatch.setenv("CAMKIT_ADAPTERS", str(environment))
    assert won() == ("environment", "first match in environment.toml (CAMKIT_ADAPTERS)", "layer2")
    argument = write(ENTRY.format(name="argument").replace("layer2", "layer3"), "argument.toml")
    assert won(argument) == ("argument", "given in argument.toml", "layer3")
    assert won(str(argument)) == ("argument", "given in argument.toml", "layer3")
    assert won(Adapter(name="object", targets={"last": {"path": "layer1"}})) == ("object", "given", "layer1")
    monkeypatch.setenv("CAMKIT_PLUGINS", "")
    monkeypatch.delenv("CAMKIT_ADAPTERS")
    assert won() == ("timm.resnet", "first match in timm.toml", "layer4")


def test_several_files_in_the_environment_and_several_entries_in_a_file(write, monkeypatch, random_model):
    first = write('[[adapter]]\nname = "elsewhere"\nlibrary = "nowhere"\n', "first.toml")
    second = write(ENTRY.format(name="one") + ENTRY.format(name="two"), "second.toml")
    monkeypatch.setenv("CAMKIT_ADAPTERS", f"{first}:{second}")
    assert find_adapter(random_model(RESNET)).adapter.name == "one"


def test_a_given_file_that_does_not_describe_the_model_says_why(write, random_model):
    path = write('[[adapter]]\nname = "a"\nlibrary = "nowhere"\n[[adapter]]\nname = "b"\nclass = "VGG"\n')
    with zoo.refused("describes a ResNet", "'a': the model's class is not from nowhere", "'b': the model's class"):
        Explainer(random_model(RESNET), adapter=path)


def test_a_broken_file_in_the_environment_is_said_so(write, monkeypatch, random_model):
    monkeypatch.setenv("CAMKIT_ADAPTERS", str(write("[[adapter]]\nnam = 'a'")))
    with zoo.refused("mine.toml", "adapter.0"):
        Explainer(random_model(RESNET))


def test_an_unsupported_model_is_refused_with_the_adapters_reason(random_model):
    adapter = Adapter(name="no", unsupported="its head is random")
    with zoo.refused("'no'", "cannot be explained: its head is random"):
        Explainer(random_model(RESNET), adapter=adapter)(zoo.images(1, 64))


# --- paths

PATHS = {
    "layer4": "layer4",
    "layer4.-1": "layer4.0",
    "layer2.-1.conv1": "layer2.1.conv1",
    "layer2.-2": "layer2.0",
    "layer2.1": "layer2.1",
    "-1": "fc",
    "-2.-1": "global_pool.flatten",
}


@pytest.mark.parametrize("path", PATHS)
def test_dotted_paths_with_negative_parts(path, random_model):
    model = random_model(RESNET)
    found, module = find_module(model, path)
    assert found == PATHS[path]
    assert module is model.get_submodule(PATHS[path])


@pytest.mark.parametrize("path", ["layer4.-2", "layer4.1", "layer2.-3", "layer5", "layer4.conv", "layer4."])
def test_paths_that_lead_nowhere_are_refused(path, random_model):
    with zoo.refused(f"There is no layer '{path}'"):
        find_module(random_model(RESNET), path)


def test_a_target_with_several_paths_takes_the_first_that_exists(random_model):
    model = random_model(RESNET)
    adapter = Adapter(name="x", targets={"last": ["blocks.-1", "layer3", "layer4"], "none": "blocks.-1"})
    assert adapter.layer(model).path == "layer3"
    with zoo.refused("puts the target 'none' at blocks.-1", "a ResNet does not have; correct targets.none"):
        adapter.layer(model, "none")
    with zoo.refused("'bare' names no target layer"):
        Adapter(name="bare").layer(model)


def test_references_are_read_off_the_model_and_checked(random_model):
    model = random_model("timm:vit-registers")
    layer = find_adapter(model).adapter.layer(model)

    def layout(**facts):
        return Adapter(name="x", layout="tokens", targets={"last": layer.path}, **facts).layout_of(
            model, layer, (2, 40, 24), (48, 48)
        )

    expected = Tokens(4, (6, 6))
    assert layout(prefix="@num_prefix_tokens", grid="@patch_embed.grid_size") == expected
    assert layout(prefix=4, grid=(6, 6)) == layout(prefix=4) == expected
    for facts, words in [
        ({"prefix": "@no_such"}, ["'x', prefix, reads @no_such", "does not have", "@no_such? if it may be missing"]),
        ({"prefix": "@global_pool"}, ["'token'", "not a whole number"]),
        ({"grid": "@embed_dim"}, ["@embed_dim", "24", "not a height and a width"]),
    ]:
        with zoo.refused(*words):
            layout(**facts)


# --- layouts

# Kind, shape of the layer's output, image, what the adapter says; and the layout. Image (height, width).
LAYOUTS = {
    "maps": ("auto", (2, 8, 6, 6), (48, 48), {}, NCHW()),
    "channels last": ("auto", (2, 6, 6, 8), (48, 48), {}, NHWC()),
    "channels last, wide image": ("auto", (2, 4, 6, 64), (64, 96), {}, NHWC()),
    "maps, wide image": ("auto", (2, 64, 4, 6), (64, 96), {}, NCHW()),
    "few channels, told": ("auto", (2, 6, 6, 6), (48, 48), {"channels": 6}, NCHW()),
    "channels tell": ("auto", (2, 12, 6, 6), (48, 48), {"channels": 12}, NCHW()),
    "channels tell, last": ("auto", (2, 6, 12, 24), (48, 96), {"channels": 24}, NHWC()),
    "stated": ("NHWC", (2, 6, 6, 6), (48, 48), {}, NHWC()),
    "patches": ("tokens", (2, 36, 24), (48, 48), {}, Tokens(0, (6, 6))),
    "class token": ("tokens", (2, 37, 24), (48, 48), {"prefix": 1}, Tokens(1, (6, 6))),
    "registers": ("tokens", (2, 41, 24), (48, 48), {"prefix": 5}, Tokens(5, (6, 6))),
    "patches of a model with a class token": ("tokens", (2, 36, 24), (48, 48), {"prefix": 1}, Tokens(0, (6, 6))),
    "wide": ("tokens", (2, 25, 24), (32, 48), {"prefix": 1}, Tokens(1, (4, 6))),
    "tall": ("tokens", (2, 25, 24), (48, 32), {"prefix": 1}, Tokens(1, (6, 4))),
    "patches that are not square": (
        "tokens",
        (2, 73, 24),
        (48, 48),
        {"prefix": 1, "grid": (6, 12)},
        Tokens(1, (6, 12)),
    ),
    "grid of another image size": ("tokens", (2, 55, 24), (48, 72), {"prefix": 1, "grid": (6, 6)}, Tokens(1, (6, 9))),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layout_from_shape_image_and_what_the_adapter_says(case):
    kind, shape, image, facts, expected = LAYOUTS[case]
    assert resolve_layout(kind, shape, image, **facts) == expected


NO_LAYOUT = {
    "tokens that fit no grid": (
        "tokens",
        (2, 38, 24),
        (48, 48),
        {"prefix": 1},
        ["38 tokens", "1 prefix tokens", "48x48"],
    ),
    "a wrong prefix": ("tokens", (2, 40, 24), (48, 48), {"prefix": 1, "grid": (6, 6)}, ["40 tokens", "6x6"]),
    "no positions": ("NCHW", (2, 10), (48, 48), {}, ["[2, 10]", "spatial positions"]),
    "one position": ("NCHW", (2, 10, 1, 1), (48, 48), {}, ["1x1 maps", "before the pooling"]),
    "maps that were said to be tokens": ("tokens", (2, 8, 6, 6), (48, 48), {}, ["[2, 8, 6, 6]", "tokens"]),
    "tokens that were said to be maps": ("NCHW", (2, 36, 24), (48, 48), {}, ["[2, 36, 24]", "NCHW"]),
}


@pytest.mark.parametrize("case", NO_LAYOUT)
def test_what_fits_no_layout_is_refused(case):
    kind, shape, image, facts, words = NO_LAYOUT[case]
    with zoo.refused(*words):
        resolve_layout(kind, shape, image, **facts)


@pytest.mark.parametrize("layout", [NCHW(), NHWC(), Tokens(0, (2, 3)), Tokens(2, (2, 3))], ids=str)
def test_a_layout_read_as_maps_and_back_is_what_it_was(layout):
    shape = {NCHW: (2, 4, 2, 3), NHWC: (2, 2, 3, 4)}.get(type(layout), (2, getattr(layout, "prefix", 0) + 6, 4))
    output = torch.randn(shape)
    maps = layout.to_maps(output)
    assert maps.shape == (2, 4, 2, 3)
    assert torch.equal(layout.from_maps(maps, output), output)


def test_patches_are_read_row_by_row_behind_the_prefix():
    tokens = torch.arange(8.0)[None, :, None]  # two prefix tokens, then 2 rows of 3
    assert Tokens(2, (2, 3)).to_maps(tokens)[0, 0].tolist() == [[2, 3, 4], [5, 6, 7]]


MEASURED = {
    "timm:vit": Tokens(1, (6, 6)),
    "timm:vit-registers": Tokens(4, (6, 6)),
    "timm:vit-average": Tokens(1, (6, 6)),
    "timm:vit-average-registers": Tokens(4, (6, 6)),
    "timm:vit-no-class-token": Tokens(0, (6, 6)),
    "torchvision:vit": Tokens(1, (6, 6)),
    "demo:vit": Tokens(1, (12, 12)),
}


@pytest.mark.parametrize("name", MEASURED)
def test_prefix_and_grid_of_a_model_equal_the_measured_count_of_tokens(name, random_model):
    model, images = random_model(name), zoo.inputs(name)
    adapter = find_adapter(model).adapter
    layer, shapes = adapter.layer(model), []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model(images)
    handle.remove()
    layout = adapter.layout_of(model, layer, shapes[0], tuple(images.shape[2:]))
    assert layout == MEASURED[name]
    assert shapes[0][1] == layout.prefix + layout.grid[0] * layout.grid[1]


# the last two have as many patches as the grid that the model was built with
DYNAMIC = [((48, 72), (6, 9)), ((72, 48), (9, 6)), ((32, 72), (4, 9)), ((24, 96), (3, 12))]


@pytest.mark.parametrize(("size", "grid"), DYNAMIC)
def test_a_vit_with_a_dynamic_image_size_takes_the_grid_of_the_image(size, grid, random_model):
    explainer = Explainer(random_model("timm:vit-dynamic"))
    found = explainer(zoo.images(2, size), target=3, relu=False)
    assert found.maps.shape == (2, *grid)
    reference = Oracle(explainer, zoo.images(2, size))(zoo.images(2, size), torch.tensor([3, 3]))
    assert_agrees(found.logits, found.maps, reference, size, relu=False)


@pytest.mark.parametrize("column", [0, 5, 8])
def test_the_map_is_where_the_pixels_are(column, random_model):
    """A patch that is lit changes its own cell of the patch embedding and no other."""
    explainer = Explainer(random_model("timm:vit-dynamic"))
    dark, lit = torch.zeros(1, 3, 48, 72), torch.zeros(1, 3, 48, 72)
    lit[:, :, 16:24, 8 * column : 8 * column + 8] = 1.0
    plan = explainer.plan(dark, ["gradcam"], ["pos_drop"])
    tokens = [plan.forward(images).captured["pos_drop"] for images in (dark, lit)]
    layout = plan.adapter.layout_of(explainer.module, plan.layers[0], tokens[0].shape, (48, 72))
    changed = (layout.to_maps(tokens[1]) - layout.to_maps(tokens[0])).abs().sum(dim=1)[0]
    assert changed.shape == (6, 9)
    assert changed.nonzero().tolist() == [[2, column]]


class ChannelsLast(nn.Module):
    """Keeps its features as [B, h, w, K], as Swin does."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 24, 8, stride=8)
        self.turn = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 16), nn.GELU())
        self.head = nn.Linear(16, zoo.CLASSES)

    def forward(self, images):
        return self.head(self.turn(self.body(images).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


@pytest.mark.parametrize("size", [(48, 48), (48, 72)])
def test_channels_last_features_are_recognised_by_their_shape(size):
    explainer = Explainer(
        zoo.watch(zoo.randomised(ChannelsLast())), adapter=Adapter(name="nhwc", targets={"last": "turn"})
    )
    found = explainer(zoo.images(2, size), target=3, relu=False)
    assert found.maps.shape == (2, size[0] // 8, size[1] // 8)
    reference = Oracle(explainer, zoo.images(2, size))(zoo.images(2, size), torch.tensor([3, 3]))
    assert_agrees(found.logits, found.maps, reference, size, relu=False)


def test_swin_without_an_adapter_is_probed(monkeypatch):
    model = zoo.randomised(
        timm.models.SwinTransformer(64, 4, embed_dim=12, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=10)
    )
    monkeypatch.setattr("camkit.adapter_files._sources", lambda: ())
    assert find_adapter(model) is None
    explainer = Explainer(zoo.watch(model))
    found = explainer(zoo.images(2, 64), target=3, relu=False)
    resolved = explainer.resolve(zoo.images(2, 64))
    assert re.search(rf"no adapter describes a SwinTransformer; '{found.layer}' is the last layer", resolved.rule)
    assert resolved.adapter.name == "probed"
    assert found.maps.shape == (2, 8, 8)
    reference = Oracle(explainer, zoo.images(2, 64))(zoo.images(2, 64), torch.tensor([3, 3]))
    assert_agrees(found.logits, found.maps, reference, (64, 64), relu=False)


class Unknown(nn.Module):
    """No library's class: stages as in any convolutional network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(12, zoo.CLASSES)

    def forward(self, images):
        return self.head(self.pool(self.stage(self.stem(images))).flatten(1))


def test_an_unknown_model_is_probed_and_says_what_was_chosen_and_why():
    explainer = Explainer(zoo.watch(zoo.randomised(Unknown())))
    found = explainer(zoo.images(2, 48), target=3, relu=False)
    assert found.layer == "stage"
    rule = explainer.resolve(zoo.images(2, 48)).rule
    assert rule == "no adapter describes a Unknown; 'stage' is the last layer whose positions have gradients"
    reference = Oracle(explainer, zoo.images(2, 48))(zoo.images(2, 48), torch.tensor([3, 3]))
    assert_agrees(found.logits, found.maps, reference, (48, 48), relu=False)


def test_an_unknown_model_with_a_zero_head_or_without_positions_is_refused():
    silent = zoo.randomised(Unknown())
    nn.init.zeros_(silent.head.weight)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 8), nn.ReLU(), nn.Linear(8, 10)).eval()
    for model in (silent, flat):
        with zoo.refused("No adapter describes a", "name a layer, or write an adapter"):
            Explainer(zoo.watch(model))(zoo.images(2, 48))
