"""Image classifiers of Hugging Face transformers: built from folders, preprocessed, cut where their adapters say.

The models are transformers' own classes, small, every weight random.
"""

import json
import pickle
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import camkit
import zoo
from camkit import Explainer
from camkit.errors import CamkitWarning
from camkit.models import load_model
from camkit.testing.adapters import LEAST_SIMILARITY, check_adapter
from camkit_adapters.demo.scenes import generate
from camkit_adapters.transformers_preprocessing import preprocessing_of
from camkit_adapters.transformers_source import TransformersSource

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

CLASSES = 10
PLAIN = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 48,
    "patch_size": 8,
}
WINDOWS = {
    "image_size": 96,
    "embed_dim": 8,
    "depths": [2, 2, 2, 2],
    "num_heads": [1, 2, 2, 4],
    "window_size": 3,
}
STAGES = {"hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1]}
ATTENTIVE_STAGES = {**STAGES, "num_attention_heads": [1, 2, 2, 3]}


@dataclass(frozen=True)
class Family:
    """A small model, and what its adapter should make of it."""

    config: str
    options: dict[str, Any]
    adapter: str
    layer: str
    layout: str
    side: int = 96
    classifier: str = ""
    mixes: bool = False
    stages: dict[str, str] = field(default_factory=dict)


def of_stages(path: str, last: int = 4) -> dict[str, str]:
    return {f"stage{number}": path.format(number - 1) for number in range(1, last + 1)}


FAMILIES = {
    "vit": Family(
        "ViTConfig", PLAIN, "vit", "vit.layers.1.layernorm_before", "tokens(prefix 1, grid 6x6)", 48
    ),
    "deit": Family(
        "DeiTConfig", PLAIN, "deit", "deit.layers.1.layernorm_before", "tokens(prefix 2, grid 6x6)", 48
    ),
    "deit with teacher": Family(
        "DeiTConfig", PLAIN, "deit", "deit.layers.1.layernorm_before", "tokens(prefix 2, grid 6x6)", 48,
        classifier="DeiTForImageClassificationWithTeacher",
    ),
    "dinov2": Family(
        "Dinov2Config", {**PLAIN, "mlp_ratio": 2}, "dinov2", "dinov2.layernorm", "tokens(prefix 1, grid 6x6)", 48
    ),
    "dinov2 with registers": Family(
        "Dinov2WithRegistersConfig", {**PLAIN, "mlp_ratio": 2}, "dinov2.registers",
        "dinov2_with_registers.layernorm", "tokens(prefix 5, grid 6x6)", 48,
    ),
    "swin": Family(
        "SwinConfig", WINDOWS, "swin", "swin.layernorm", "tokens(prefix 0, grid 3x3)",
        stages=of_stages("swin.encoder.layers.{}.blocks.1"),
    ),
    "swinv2": Family(
        "Swinv2Config", WINDOWS, "swin", "swinv2.layernorm", "tokens(prefix 0, grid 3x3)",
        stages=of_stages("swinv2.encoder.layers.{}.blocks.1"),
    ),
    "convnext": Family(
        "ConvNextConfig", STAGES, "stages", "convnext.encoder.stages.3", "NCHW",
        stages=of_stages("convnext.encoder.stages.{}"),
    ),
    "convnextv2": Family(
        "ConvNextV2Config", STAGES, "stages", "convnextv2.encoder.stages.3", "NCHW",
        stages=of_stages("convnextv2.encoder.stages.{}"),
    ),
    "resnet": Family(
        "ResNetConfig", {**STAGES, "embedding_size": 8}, "stages", "resnet.encoder.stages.3", "NCHW",
        stages=of_stages("resnet.encoder.stages.{}"),
    ),
    "resnet of basic blocks": Family(
        "ResNetConfig", {**STAGES, "embedding_size": 8, "layer_type": "basic"}, "stages", "resnet.encoder.stages.3",
        "NCHW", stages=of_stages("resnet.encoder.stages.{}"),
    ),
    "beit": Family("BeitConfig", PLAIN, "beit.pooled", "beit.layernorm", "tokens(prefix 1, grid 6x6)", 48),
    "beit by class token": Family(
        "BeitConfig", {**PLAIN, "use_mean_pooling": False}, "beit.class-token", "beit.layers.1.layernorm_before",
        "tokens(prefix 1, grid 6x6)", 48,
    ),
}  # fmt: skip

OTHERS = {
    "data2vec": Family(
        "Data2VecVisionConfig", PLAIN, "beit.pooled", "data2vec_vision.layernorm", "tokens(prefix 1, grid 6x6)", 48
    ),
    "data2vec by class token": Family(
        "Data2VecVisionConfig", {**PLAIN, "use_mean_pooling": False}, "beit.class-token",
        "data2vec_vision.encoder.layer.1.layernorm_before", "tokens(prefix 1, grid 6x6)", 48,
    ),
    "vit-msn": Family(
        "ViTMSNConfig", PLAIN, "vit", "vit.layers.1.layernorm_before", "tokens(prefix 1, grid 6x6)", 48
    ),
    "ijepa": Family("IJepaConfig", PLAIN, "ijepa", "ijepa.layernorm", "tokens(prefix 0, grid 6x6)", 48),
    "clip": Family(
        "CLIPConfig", {"vision_config": PLAIN}, "clip", "vision_model.encoder.layers.1", "tokens(prefix 1, grid 6x6)",
        48,
    ),
    "siglip": Family(
        "SiglipConfig", {"vision_config": PLAIN}, "siglip", "vision_model.post_layernorm",
        "tokens(prefix 0, grid 6x6)", 48,
    ),
    "pvt": Family(
        "PvtConfig", {**ATTENTIVE_STAGES, "image_size": 96, "depths": [1, 1, 1, 2]}, "pvt",
        "pvt.encoder.block.3.1.layer_norm_1", "tokens(prefix 1, grid 3x3)",
        stages={"stage4": "pvt.encoder.block.3.1.layer_norm_1"},
    ),
    "pvt-v2": Family(
        "PvtV2Config", {**ATTENTIVE_STAGES, "image_size": 96}, "pvt-v2", "pvt_v2.encoder.layers.3.layer_norm",
        "tokens(prefix 0, grid 3x3)", mixes=True, stages=of_stages("pvt_v2.encoder.layers.{}.layer_norm"),
    ),
    "donut-swin": Family(
        "DonutSwinConfig", WINDOWS, "swin", "donut.encoder", "tokens(prefix 0, grid 3x3)",
        stages=of_stages("donut.encoder.layers.{}.blocks.1"),
    ),
    "focalnet": Family(
        "FocalNetConfig", {"image_size": 96, "embed_dim": 8, "depths": [1, 1, 1, 1]}, "focalnet",
        "focalnet.layernorm", "tokens(prefix 0, grid 3x3)", stages=of_stages("focalnet.encoder.stages.{}.layers.0"),
    ),
    "hiera": Family(
        "HieraConfig",
        {"image_size": [96, 96], "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]}, "hiera",
        "hiera.encoder", "tokens(prefix 0, grid 3x3)", stages={"stage4": "hiera.encoder"},
    ),
    "levit": Family(
        "LevitConfig",
        {
            "image_size": 96, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3,
            "key_dim": [8] * 3,
        },
        "levit", "levit.encoder.stages.2", "tokens(prefix 0, grid 2x2)", mixes=True,
    ),
    "segformer": Family(
        "SegformerConfig", ATTENTIVE_STAGES, "stages", "segformer.stages.3", "NCHW", mixes=True,
        stages=of_stages("segformer.stages.{}"),
    ),
    "regnet": Family(
        "RegNetConfig", {**STAGES, "embedding_size": 8, "groups_width": 4}, "stages", "regnet.encoder.stages.3",
        "NCHW", stages=of_stages("regnet.encoder.stages.{}"),
    ),
    "textnet": Family(
        "TextNetConfig", {}, "stages", "textnet.encoder.stages.3", "NCHW",
        stages=of_stages("textnet.encoder.stages.{}"),
    ),
    "bit": Family(
        "BitConfig", {"embedding_size": 8, "hidden_sizes": [64] * 4, "depths": [1] * 4, "num_groups": 2}, "stages",
        "bit.norm", "NCHW", stages=of_stages("bit.encoder.stages.{}"),
    ),
    "pp-lcnet": Family("PPLCNetConfig", {}, "pp-lcnet", "encoder.blocks.4", "NCHW", mixes=True),
    "efficientnet": Family(
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.4, "image_size": 96, "hidden_dim": 320},
        "efficientnet", "efficientnet.encoder.top_activation", "NCHW", mixes=True,
    ),
    "poolformer": Family(
        "PoolFormerConfig", {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}, "trunk-end", "norm", "NCHW"
    ),
    "swiftformer": Family(
        "SwiftFormerConfig", {"image_size": 96, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 16, 24]}, "trunk-end",
        "norm", "NCHW",
    ),
    "mobilenet-v1": Family(
        "MobileNetV1Config", {"depth_multiplier": 0.25}, "trunk-end", "mobilenet_v1.layer.25", "NCHW", mixes=True
    ),
    "mobilenet-v2": Family(
        "MobileNetV2Config", {"depth_multiplier": 0.25}, "trunk-end", "mobilenet_v2.conv_1x1", "NCHW", mixes=True
    ),
    "mobilevit-v2": Family(
        "MobileViTV2Config", {"image_size": 96, "width_multiplier": 0.5}, "trunk-end",
        "mobilevitv2.encoder.layer.4", "NCHW", mixes=True,
    ),
}  # fmt: skip
ALL = {**FAMILIES, **OTHERS}


def built(family: Family) -> Any:
    config = getattr(transformers, family.config)(**family.options, num_labels=CLASSES)
    kinds = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    named = [kind for kind in kinds if kind.__name__ == family.classifier]
    torch.manual_seed(1)
    return zoo.randomised((named or kinds)[0](config))


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Folders that `save_pretrained` wrote, by the name of the family; not to be changed."""
    made = {}

    def folder(name: str) -> Path:
        if name not in made:
            family = ALL[name]
            made[name] = tmp_path_factory.mktemp("saved")
            built(family).save_pretrained(made[name])
            side = {"height": family.side, "width": family.side}
            transformers.ViTImageProcessor(size=side).save_pretrained(made[name])
        return made[name]

    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a saved ViT that a test may spoil."""
    return Path(shutil.copytree(saved("vit"), tmp_path / "copied"))


def spec(folder: Path) -> str:
    return f"transformers:{folder}"


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    content.update(changes)
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# ------------------------------------------------------------------------------------------------------------ adapters


@pytest.mark.parametrize("name", ALL)
def test_an_adapter_keeps_its_promises(name, saved, watch):
    family = ALL[name]
    model = load_model(spec(saved(name)))
    watch(model.module)
    report = check_adapter(Explainer(model), zoo.images(2, family.side), exports=False)
    assert report.passed, report.failures
    assert report.adapter == f"transformers.{family.adapter}"
    assert report.layer == family.layer
    assert report.layout == family.layout
    assert report.gradient_share == 1
    assert report.follows > LEAST_SIMILARITY or family.mixes
    for stage, path in family.stages.items():
        # stage 1 divides the image by 4
        side = family.side // 2 ** (int(stage[-1]) + 1)
        assert report.layers[stage] == f"{path} {side}x{side}"
    # measured ones are elsewhere for other depths; that they can be had is enough
    assert not [found for stage, found in report.layers.items() if found.startswith("none")]


@pytest.mark.parametrize("name", FAMILIES)
def test_models_have_their_weights_or_initial_ones(name, saved):
    family, folder = FAMILIES[name], saved(name)
    trained, untrained = load_model(spec(folder)).module, load_model(spec(folder), weights="none").module
    assert type(trained) is type(untrained) is type(built(family))
    assert not trained.training
    assert not untrained.training
    images = zoo.images(2, family.side)
    with torch.inference_mode():
        expected = built(family)(images).logits
        torch.testing.assert_close(trained(images).logits, expected, rtol=0, atol=0)
        assert untrained(images).logits.shape == (2, CLASSES)
        assert not torch.allclose(untrained(images).logits, expected, atol=1e-3)


def test_dinov2_with_another_number_of_registers_is_probed(watch):
    options = {**PLAIN, "mlp_ratio": 2, "num_register_tokens": 2}
    family = Family("Dinov2WithRegistersConfig", options, "", "", "")
    report = check_adapter(Explainer(watch(built(family))), zoo.images(2), exports=False)
    assert report.passed, report.failures
    assert (report.adapter, report.layout) == ("probed", "tokens(prefix 3, grid 6x6)")


def test_dinov2_shows_the_class_tokens_attention_at_a_target_of_its_own(saved):
    explainer = Explainer(load_model(spec(saved("dinov2"))))
    patches, attention = (explainer(zoo.images(2), target=3, layer=name).maps for name in ("last", "attention"))
    assert not torch.allclose(patches, attention)


def test_cvt_is_refused_as_long_as_pytorch_has_its_gradient_wrong():
    normalisation = torch.nn.BatchNorm2d(4).eval()
    image = torch.randn(1, 4, 3, 3, requires_grad=True)
    # tokens [B, N, K] read as maps: the batch's stride is that of the tokens and not that of channels last
    incoming = torch.randn(1, 9, 4).permute(0, 2, 1).view(1, 4, 3, 3)
    (gradient,) = torch.autograd.grad(normalisation(image), image, incoming)
    assert not torch.allclose(gradient, incoming, atol=1e-3), "PyTorch is right now: give CvT an adapter"
    config = transformers.CvtConfig(embed_dim=[8, 12, 24], depth=[1, 2, 3], num_heads=[1, 1, 2], num_labels=3)
    with zoo.refused("transformers.cvt", "cannot be explained", "single image"):
        Explainer(transformers.CvtForImageClassification(config).eval())(zoo.images(2))


def test_what_takes_no_images_is_refused():
    config = transformers.ImageGPTConfig(n_layer=1, n_embd=16, n_head=2, num_labels=3)
    model = transformers.ImageGPTForImageClassification(config).eval()
    with zoo.refused("transformers.no-images", "cannot be explained", "no images"):
        Explainer(model)(zoo.images(2))


@pytest.mark.parametrize("name", ["dinov2 with registers", pytest.param("convnext", marks=pytest.mark.slow)])
def test_an_exported_graph_agrees_with_the_model(name, saved, tmp_path):
    explainer = Explainer(load_model(spec(saved(name))))
    images = zoo.images(3, ALL[name].side, seed=5)
    camkit.export(explainer, tmp_path / "gradcam.onnx")
    found = camkit.load(tmp_path / "gradcam.onnx")(images.numpy(), classes=3)
    expected = explainer(images, target=3)
    assert expected.maps.std() > 0
    np.testing.assert_allclose(found.maps, expected.maps.numpy(), rtol=0, atol=1e-4 * float(expected.maps.abs().max()))
    np.testing.assert_allclose(found.heatmaps, expected.heatmaps.numpy(), rtol=0, atol=1e-3)


# ------------------------------------------------------------------------------------------------- names and numbers


def test_class_names_are_the_labels_unless_these_are_counted_out(copied):
    assert load_model(spec(copied)).class_names is None
    names = [f"digit {index}" for index in range(CLASSES)]
    edit(copied, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    assert load_model(spec(copied)).class_names == tuple(names)
    assert load_model(spec(copied), weights="none", num_classes=CLASSES).class_names == tuple(names)
    fewer = load_model(spec(copied), weights="none", num_classes=4)
    assert fewer.class_names is None
    assert fewer.module.classifier.out_features == 4
    edit(copied, id2label={**dict(enumerate(names[:-1])), 99: "astray"})
    assert load_model(spec(copied)).class_names is None
    with zoo.refused("have 10 classes"):
        load_model(spec(copied), num_classes=4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "softmax"),
        ({"problem_type": "single_label_classification"}, "softmax"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"id2label": {"0": "defect"}, "label2id": {"defect": 0}}, "sigmoid"),
    ],
)
def test_probability(changes, expected, copied):
    edit(copied, **changes)
    assert load_model(spec(copied), weights="none").probability == expected


def test_a_checkpoint_of_another_number_of_classes_just_loads(copied, tmp_path):
    trained = load_model(spec(copied), weights="none", num_classes=6).module
    torch.save(trained.state_dict(), tmp_path / "fine-tuned.pt")
    loaded = load_model(spec(copied), weights=tmp_path / "fine-tuned.pt").module
    torch.testing.assert_close(loaded.classifier.weight, trained.classifier.weight, rtol=0, atol=0)


def test_what_a_model_could_give_beside_its_logits_is_left_out(copied):
    edit(copied, output_hidden_states=True, output_attentions=True, return_dict=False)
    model = load_model(spec(copied)).module
    with torch.inference_mode():
        assert list(model(zoo.images(1))) == ["logits"]


def test_transformers_goes_on_reporting_as_before(saved):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(spec(saved("vit")))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# ------------------------------------------------------------------------------------------------------ preprocessing

# Image processors and their options.
PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("BeitImageProcessor", {}),
    ("BitImageProcessor", {}),
    ("CLIPImageProcessor", {}),
    ("ConvNextImageProcessor", {}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 56}}),
    ("DeiTImageProcessor", {}),
    ("EfficientNetImageProcessor", {}),
    ("EfficientNetImageProcessor", {"rescale_factor": 1 / 127.5, "rescale_offset": True, "include_top": False}),
    ("LevitImageProcessor", {}),
    ("MobileNetV1ImageProcessor", {}),
    ("MobileNetV2ImageProcessor", {}),
    ("MobileViTImageProcessor", {"do_flip_channel_order": False}),
    ("PoolFormerImageProcessor", {}),
    ("PvtImageProcessor", {}),
    ("SegformerImageProcessor", {}),
    ("SiglipImageProcessor", {}),
    ("ViTImageProcessor", {}),
    ("ViTImageProcessor", {"size": {"height": 40, "width": 56}, "resample": 1}),
    ("ViTImageProcessor", {"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
    ("ViTImageProcessor", {"do_normalize": False}),
    ("ViTImageProcessor", {"do_rescale": False}),
    ("ViTImageProcessor", {"do_rescale": False, "do_normalize": False}),
    ("ViTImageProcessor", {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 90, "width": 100}}),
]


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(generate(1, "test", 0)[0].image).resize((width, height), Image.Resampling.BICUBIC)


def prepared(folder: Path, image: Image.Image, backend: str) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
    return torch.as_tensor(np.asarray(processor(image, return_tensors="pt")["pixel_values"][0])).float()


@pytest.mark.parametrize(("name", "options"), PROCESSORS)
def test_preprocessing_is_the_image_processors(name, options, tmp_path):
    getattr(transformers, name)(**options).save_pretrained(tmp_path)
    preprocessing = preprocessing_of(tmp_path, transformers.ViTConfig(), "x")
    image = picture(384, 480)
    found = preprocessing(image)
    # in levels of 255; in Pillow's arithmetic nothing but float rounding is left
    level = torch.tensor(preprocessing.std)[:, None, None] * 255
    assert ((found - prepared(tmp_path, image, "pil")) * level).abs().max() < 0.01
    # torchvision rounds the weights of its filters to 8 bits
    difference = ((found - prepared(tmp_path, image, "torchvision")) * level).abs()
    assert difference.max() < 3
    assert difference.mean() < 0.05
    assert found.std() > 0.02


def test_a_crop_may_be_one_pixel_further(tmp_path):
    """Where 4 divides the margin with 3 left: torchvision and camkit round the half pixel, transformers cuts it."""
    transformers.PoolFormerImageProcessor().save_pretrained(tmp_path)
    preprocessing = preprocessing_of(tmp_path, transformers.ViTConfig(), "x")
    image = picture(480, 301)  # resized to 395 x 248, cropped to 224
    found, expected = preprocessing(image), prepared(tmp_path, image, "pil")
    torch.testing.assert_close(found[:, :-1], expected[:, 1:], rtol=0, atol=1e-5)


def test_the_processors_file_may_be_of_an_older_kind(copied):
    expected = load_model(spec(copied)).preprocessing
    (copied / "preprocessor_config.json").write_text(
        json.dumps({"feature_extractor_type": "ViTFeatureExtractor", "size": 48, "image_mean": [0.5] * 3})
    )
    assert load_model(spec(copied)).preprocessing == expected
    (copied / "preprocessor_config.json").write_text(json.dumps({"size": 48}))
    assert load_model(spec(copied)).preprocessing == expected
    content = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 48}}
    (copied / "processor_config.json").write_text(json.dumps(content))
    (copied / "preprocessor_config.json").unlink()
    assert load_model(spec(copied)).preprocessing == expected


@pytest.mark.parametrize(
    ("config", "options", "size", "mean"),
    [
        ("ViTConfig", PLAIN, (48, 48), (0.5, 0.5, 0.5)),
        ("ViTConfig", {**PLAIN, "image_size": [48, 64]}, (48, 64), (0.5, 0.5, 0.5)),
        ("ViTConfig", {**PLAIN, "num_channels": 1}, (48, 48), (0.5,)),
        ("ResNetConfig", STAGES, (224, 224), (0.485, 0.456, 0.406)),
        ("SiglipConfig", {"vision_config": PLAIN}, (48, 48), (0.5, 0.5, 0.5)),
    ],
)
def test_without_a_processors_file_the_customary_is_done_and_said(config, options, size, mean, tmp_path):
    getattr(transformers, config)(**options).save_pretrained(tmp_path)
    height, width = size
    with pytest.warns(CamkitWarning, match=rf"stretched to {height}x{width} .* since it has no preprocessor_config"):
        found = load_model(spec(tmp_path), weights="none").preprocessing
    assert (found.size, found.resize, found.mean, found.channels) == (size, size, mean, len(mean))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("MobileViTImageProcessor", {}, "it turns RGB into BGR"),
        ("PerceiverImageProcessor", {}, "a PerceiverImageProcessor may have steps of its own"),
        ("ViTImageProcessor", {"do_pad": True}, "it pads"),
    ],
)
def test_steps_that_are_not_followed_are_named(name, options, words, tmp_path):
    getattr(transformers, name)(**options).save_pretrained(tmp_path)
    with pytest.warns(CamkitWarning, match=words):
        preprocessing_of(tmp_path, transformers.ViTConfig(), "x")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "JSON"),
        ('{"image_processor_type": "NoSuchImageProcessor", "size": 3}', ""),
        ('{"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 48}}', "not a shortest_edge"),
        ('{"image_processor_type": "ViTImageProcessor", "size": 48, "image_std": [0, 0, 0]}', "std must be positive"),
        ('{"image_processor_type": "ViTImageProcessor", "size": 48, "image_mean": [0.5]}', "mean has 1 values"),
        ('{"image_processor_type": "ViTImageProcessor", "size": 48, "resample": 17}', "17"),
        ('{"image_processor_type": "ViTImageProcessor", "size": "wide"}', "wide"),
        ('{"auto_map": {"AutoImageProcessor": "code.Processor"}, "size": 48}', ""),
    ],
)
def test_a_processors_file_that_cannot_be_followed(content, words, copied):
    (copied / "code.py").write_text("raise SystemExit('this ran')")
    (copied / "preprocessor_config.json").write_text(content)
    if content.startswith(('{"image_processor_type": "NoSuch', '{"auto_map"')):
        # the model's own type then says what is done
        assert load_model(spec(copied)).preprocessing.interpolation == "bilinear"
    else:
        with zoo.refused("The images of", str(copied), "cannot be made", words):
            load_model(spec(copied))


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_missing_library_is_told(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with zoo.refused("needs the package transformers", "pip install 'camkit[transformers]'"):
        load_model(spec(saved("vit")))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["has no config.json", "save_pretrained"]),
        ("{", ["is not JSON"]),
        ("[1]", ["is not an object with a model_type"]),
        ("{}", ["has the model_type None"]),
        ('{"model_type": ["vit"]}', ["has the model_type ['vit']"]),
        ('{"model_type": "resnetty"}', ["has the model_type 'resnetty'", "install a newer version"]),
        ('{"model_type": "bert"}', ["of type 'bert'", "no image classifier"]),
        ('{"model_type": "vit", "hidden_size": "wide"}', ["cannot be used", "hidden_size"]),
        ('{"model_type": "vit", "id2label": ["cat"]}', ["cannot be used"]),
        ('{"model_type": "vit", "num_attention_heads": 0}', ["cannot be built"]),
        ('{"architecture": "resnet10t", "num_classes": 3}', ["is timm's resnet10t", "timm:hf-hub:OWNER/NAME"]),
        ('{"model_type": "timm_wrapper", "architecture": "resnet10t"}', ["is timm's resnet10t"]),
        ('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}', ["code that comes with it", "python:"]),
        (
            '{"model_type": "vit", "architectures": ["MyViT"], "auto_map": {"AutoConfig": "code.Config"}}',
            ["code that comes with it", "python:"],
        ),
    ],
)
@pytest.mark.parametrize("weights", ["default", "none"])
def test_a_config_that_does_not_serve(content, words, weights, copied):
    (copied / "code.py").write_text("raise SystemExit('this ran')")
    if content is None:
        (copied / "config.json").unlink()
    else:
        (copied / "config.json").write_text(content)
    if weights == "default" and "cannot be built" in words[0]:
        words = ["cannot be loaded"]
    with zoo.refused(str(copied), *words):
        load_model(spec(copied), weights=weights)


def test_code_beside_a_model_that_transformers_knows_is_left_alone(copied):
    (copied / "code.py").write_text("raise SystemExit('this ran')")
    edit(copied, auto_map={"AutoConfig": "code.Config", "AutoModelForImageClassification": "code.Model"})
    assert type(load_model(spec(copied)).module) is transformers.ViTForImageClassification


def test_weights_that_do_not_serve(copied, tmp_path):
    weights = copied / "model.safetensors"
    tensors = load_file(weights)
    named = spec(copied)

    headless = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    save_file(headless, weights, metadata={"format": "pt"})
    with zoo.refused(named, "have no 'classifier.bias' (and 1 more)", "--weights none"):
        load_model(named)

    wider = {**tensors, "classifier.weight": torch.ones(7, 24), "classifier.bias": torch.ones(7)}
    save_file(wider, weights, metadata={"format": "pt"})
    with zoo.refused(named, "do not fit its config.json: 'classifier.bias' (and 1 more) has another shape"):
        load_model(named)

    weights.write_bytes(b"no weights")
    with zoo.refused(named, "cannot be loaded"):
        load_model(named)

    weights.unlink()
    with zoo.refused(named, "has no weights (model.safetensors)", "--weights none"):
        load_model(named)
    assert load_model(named, weights="none").weights == "none"


class Harmful:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_read_for_its_tensors_alone(copied, tmp_path):
    named, module = spec(copied), load_model(spec(copied)).module
    (copied / "model.safetensors").unlink()
    torch.save(module.state_dict(), copied / "pytorch_model.bin")
    torch.testing.assert_close(load_model(named).module.state_dict(), module.state_dict(), rtol=0, atol=0)
    harmed = tmp_path / "harmed"
    torch.save({"weight": Harmful(harmed)}, copied / "pytorch_model.bin")
    with zoo.refused(named, "cannot be loaded"):
        load_model(named)
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful(harmed), protocol=2))
    with zoo.refused(named, "cannot be loaded"):
        load_model(named)
    assert not harmed.exists()


# ------------------------------------------------------------------------------------------------------------ the hub


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "a/b/c", "what is this"])
def test_what_is_neither_a_folder_nor_a_name_on_the_hub(name):
    with zoo.refused(f"There is no folder '{name}'", "OWNER/NAME"):
        load_model(f"transformers:{name}")


@pytest.mark.parametrize("answers", ["nothing listens", "nothing is said"])
@pytest.mark.parametrize("weights", ["default", "none"])
def test_hub_that_cannot_be_reached(answers, weights, tmp_path, monkeypatch):
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("camkit_adapters.transformers_source.SECONDS_WITHOUT_ANSWER", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers == "nothing is said":
            silent.listen()
        monkeypatch.setattr(hf_api.api, "endpoint", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with zoo.refused(
            "There is no folder 'nobody/nothing', and no model of that name could be had from the Hugging Face hub (",
            "); check the name and the connection, or give a folder that save_pretrained wrote.",
        ):
            load_model("transformers:nobody/nothing", weights=weights)
        assert time.monotonic() - start < 3
    assert not list(tmp_path.iterdir())


class Hub:
    """Stands in for the hub: one model, of which only the files that are asked for are handed out."""

    def __init__(self, monkeypatch, source: Path, cache: Path):
        self.source, self.cache, self.asked = source, cache, []
        monkeypatch.setattr("huggingface_hub.model_info", self.info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", self.download)
        self.error: Exception | None = None

    def info(self, name, timeout):
        if self.error:
            raise self.error

    def download(self, name, allow_patterns, local_files_only=False):
        if local_files_only and not (self.cache / "config.json").exists():
            raise FileNotFoundError(name)
        self.asked += allow_patterns
        for pattern in () if local_files_only else allow_patterns:
            for file in self.source.glob(pattern):
                shutil.copy(file, self.cache)
        return str(self.cache)


@pytest.fixture
def hub(monkeypatch, copied, tmp_path):
    (tmp_path / "cache").mkdir()
    return Hub(monkeypatch, copied, tmp_path / "cache")


def test_a_model_of_the_hub(hub):
    torch.save({}, hub.source / "pytorch_model.bin")
    (hub.source / "code.py").write_text("raise SystemExit('this ran')")
    (hub.source / "model.fp16.safetensors").touch()
    model = load_model("transformers:someone/something")
    assert (model.spec, model.preprocessing.size) == ("transformers:someone/something", (48, 48))
    assert sorted(path.name for path in hub.cache.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]


def test_a_model_of_the_hub_without_weights_or_with_a_pickle(hub):
    load_model("transformers:someone/something", weights="none")
    assert not [path for path in hub.cache.iterdir() if path.suffix == ".safetensors"]
    module = TransformersSource().build(str(hub.source), pretrained=True, num_classes=None).module
    torch.save(module.state_dict(), hub.source / "pytorch_model.bin")
    (hub.source / "model.safetensors").unlink()
    loaded = load_model("transformers:someone/something").module
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_what_was_fetched_before_serves_where_the_hub_does_not_answer(hub):
    hub.error = OSError("no route")
    with zoo.refused("There is no folder 'someone/something'", "(OSError: no route)"):
        load_model("transformers:someone/something")
    hub.error = None
    load_model("transformers:someone/something")
    hub.error = OSError("no route")
    assert load_model("transformers:someone/something").weights == "default"


def test_a_model_that_the_hub_does_not_have(hub):
    from huggingface_hub.errors import RepositoryNotFoundError

    hub.error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    with zoo.refused("There is no folder 'someone/something'", "it has none, or only for those whom its owner lets in"):
        load_model("transformers:someone/something")
