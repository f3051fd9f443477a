"""Attention, its gradients, and the methods on them: against hand-computed values, a plain reference, and a peer."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchcam.methods as tc
import torchvision
from timm.models.vision_transformer import ParallelThingsBlock
from torch import nn

import camkit
import reference_attention as reference
import zoo
from camkit import Explainer
from camkit.registry import registry
from camkit.testing import Oracle, check_method, relative_error
from camkit_quantities.attention import AttentionWeights

METHODS = ["rollout", "gradient-rollout", "chefer", "legrad"]
CLASSES = [3, 7, 1]
# Two passes in float32 that differ in nothing but the order of sums.
SAME = 1e-5
# Where every patch has its share of the map, what differs between images or classes is a hundredth of it.
DIFFERENT = 1e-3


def class_token(model, tokens):
    return model.head(model.norm(tokens)[:, 0])


def pooled(model, tokens):
    return model.head(model.fc_norm(model.norm(tokens)[:, model.num_prefix_tokens :].mean(dim=1)))


def torchvision_class_token(model, tokens):
    return model.heads(model.encoder.ln(tokens)[:, 0])


# What stands behind the last block, the number of prefix tokens, and whether the class token is read.
MODELS = {
    "timm:vit": (class_token, 1, True),
    "timm:vit-registers": (class_token, 4, True),
    "timm:vit-average": (pooled, 1, False),
    "timm:vit-average-registers": (pooled, 4, False),
    "timm:vit-no-class-token": (pooled, 0, False),
    "timm:vit-linear": (pooled, 1, False),
    "torchvision:vit": (torchvision_class_token, 1, True),
}


def referenced(name, method, images, classes, **options):
    """Maps [B, 6, 6] of the plain reference, and its logits."""
    tail, prefix, reads_class_token = MODELS[name]
    reads = [0] if reads_class_token else range(prefix, prefix + 36)
    *found, logits = reference.PlainViT(zoo.random_model(name), tail)(images, classes)
    maps = []
    for attention, total, own in zip(*found, strict=True):
        vector = {
            "rollout": lambda a=attention: reference.rollout(a, reads, **options),
            "gradient-rollout": lambda a=attention, g=total: reference.gradient_rollout(a, g, reads, **options),
            "chefer": lambda a=attention, g=total: reference.chefer(a, g, reads),
            "legrad": lambda g=own: reference.legrad(g[-options.get("last", 0) :]),
        }[method]()
        maps.append(vector[prefix:].reshape(6, 6))
    maps = torch.from_numpy(np.stack(maps))
    largest, smallest = maps.flatten(1).amax(dim=1), maps.flatten(1).amin(dim=1)
    assert bool((largest - smallest > 1e-3 * largest).all())
    return maps, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_maps_equal_the_plain_reference(name, method, dtype, random_model):
    images = zoo.images(3)
    expected, logits = referenced(name, method, images, CLASSES)
    model = random_model(name) if dtype == torch.float32 else copy.deepcopy(zoo.random_model(name)).double()
    target = "top" if method == "rollout" else torch.tensor(CLASSES)
    found = Explainer(model)(images.to(dtype), method, target, relu=False)
    assert found.layer is None
    assert float(relative_error(found.logits, logits).max()) < 1e-5
    # an Explanation keeps float32
    assert float(relative_error(found.maps, expected).max()) < (1e-5 if dtype == torch.float32 else 2e-7)


OPTIONS = [
    ("rollout", {"heads": "max"}),
    ("rollout", {"heads": "min"}),
    ("rollout", {"discard_ratio": 0.5}),
    ("rollout", {"heads": "max", "discard_ratio": 0.9}),
    ("gradient-rollout", {"discard_ratio": 0.97}),
    ("legrad", {"last": 2}),
]


@pytest.mark.parametrize(("method", "options"), OPTIONS)
@pytest.mark.parametrize("name", ["timm:vit", "timm:vit-no-class-token"])
def test_options_equal_the_plain_reference_and_change_the_map(name, method, options, random_model):
    images, explainer = zoo.images(3), Explainer(random_model(name))
    expected, _ = referenced(name, method, images, CLASSES, **options)
    target = "top" if method == "rollout" else torch.tensor(CLASSES)
    found = explainer(images, method, target, options=options)
    assert float(relative_error(found.maps, expected).max()) < 1e-5
    assert float(relative_error(explainer(images, method, target).maps, expected).min()) > DIFFERENT


class Bare:
    """Attention weights of one image, whose relevance is shown as it is."""

    def __init__(self, *weights):
        self.weights = tuple(torch.tensor([layer], dtype=torch.float64) for layer in weights)

    def relevance(self, matrix):
        return matrix


# Two layers over two tokens; the first has two heads, whose mean is [1/2 1/2; 1/4 3/4].
A = Bare([[[0.2, 0.8], [0.5, 0.5]], [[0.8, 0.2], [0.0, 1.0]]], [[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]])
G = (
    torch.tensor([[[[5.0, -5.0], [2.0, 4.0]], [[0.0, 10.0], [9.0, -3.0]]]], dtype=torch.float64),
    torch.tensor([[[[2.0, 4.0], [-1.0, 7.0]], [[2.0, 0.0], [-1.0, 7.0]]]], dtype=torch.float64),
)
HAND = {
    # (A + I)/2: [3/4 1/4; 1/8 7/8] and then [3/4 1/4; 1/2 1/2]; their product, the second one on the left
    "rollout": [[19 / 32, 13 / 32], [7 / 16, 9 / 16]],
    # mean of G A: [(1+0)/2 (-4+2)/2; (1+0)/2 (2-3)/2] = [1/2 -1; 1/2 -1/2] and [1 1; -1 0], where positive, plus I:
    # rows [1.5 0; 0.5 1] -> [1 0; 1/3 2/3] and [2 1; 0 1] -> [2/3 1/3; 0 1]
    "gradient-rollout": [[7 / 9, 2 / 9], [1 / 3, 2 / 3]],
    # mean of relu(G A): [(1+0)/2 (0+2)/2; (1+0)/2 (2+0)/2] = [1/2 1; 1/2 1] and [1 1; 0 0]
    # R = I + first = [1.5 1; 0.5 2]; R + [1.5+0.5 1+2; 0 0] - I
    "chefer": [[2.5, 4.0], [0.5, 1.0]],
    # column sums of relu(G): 5+2+0+9 and 0+4+10+0 over 4, 2+0+2+0 and 4+7+0+7 over 4; their means
    "legrad": [[2.5, 4.0], [2.5, 4.0]],
}


@pytest.mark.parametrize("method", HAND)
def test_hand_computed_value(method):
    found = registry().get("method", method)
    given = {"attention": A, "attention_gradients": G, "layer_attention_gradients": G}
    result = found.function(*(given[name] for name in found.signature.asks))
    torch.testing.assert_close(result[0], torch.tensor(HAND[method], dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm:vit", "timm:vit-average-registers"])
def test_fused_attention_and_attention_in_the_open_give_the_same(name, method, random_model):
    images, model = zoo.images(2), random_model(name)
    unfused = copy.deepcopy(model)
    for block in unfused.blocks:
        assert block.attn.fused_attn
        block.attn.fused_attn = False
    expected = Explainer(model)(images, method, target=3 if method != "rollout" else "top").maps
    found = Explainer(zoo.watch(unfused))(images, method, target=3 if method != "rollout" else "top").maps
    assert float(relative_error(found, expected).max()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_a_batch_gives_what_single_images_give(name, method, random_model):
    images, explainer = zoo.images(3), Explainer(random_model(name))
    together = explainer(images, method, target=2)
    alone = torch.cat([explainer(image[None], method, target=2).maps for image in images])
    assert float(relative_error(together.maps, alone).max()) < SAME
    assert float(relative_error(together.maps, alone.roll(1, dims=0)).min()) > DIFFERENT


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm:vit", "torchvision:vit", "timm:vit-average", "timm:vit-postnorm"])
def test_conformance(name, method, random_model):
    check_method(method, Explainer(random_model(name)), zoo.images(2), exports=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm:vit", "torchvision:vit"])
def test_frozen_parameters_and_callers_without_autograd(name, method, random_model):
    images = zoo.images(2)
    expected = Explainer(random_model(name))(images, method, target=3).maps
    frozen = copy.deepcopy(zoo.random_model(name)).requires_grad_(False)
    explainer = Explainer(zoo.watch(frozen))
    with torch.no_grad():
        assert torch.equal(explainer(images, method, target=3).maps, expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(explainer(images.clone(), method, target=3).maps, expected)
    assert torch.is_grad_enabled()


def test_one_pass_for_several_methods_and_targets_gives_what_each_alone_gives(random_model):
    images, explainer = zoo.images(2), Explainer(random_model("timm:vit"))
    methods = ["gradcam", "chefer", "legrad", "gradient-rollout", "rollout"]
    found = explainer(images, methods, target=[3, 7], relu=False)
    assert len(found) == 10
    for one in found:
        alone = explainer(images, one.method, target=int(one.targets[0]), relu=False)
        assert float(relative_error(one.maps, alone.maps).max()) < SAME
        assert (one.layer is None) == (one.method != "gradcam")


def test_methods_on_attention_give_one_map_wherever_the_model_is_cut(random_model):
    images, explainer = zoo.images(2), Explainer(random_model("timm:vit"))
    layers = ["patch_embed.proj", "blocks.0", "blocks.-1", "norm"]
    expected = explainer(images, "chefer", target=3).maps
    for layer in layers:
        assert float(relative_error(explainer(images, "chefer", 3, layer).maps, expected).max()) < SAME
    assert len(explainer(images, ["chefer", "legrad"], 3, layers)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_not_square(method, random_model):
    explainer = Explainer(random_model("timm:vit-dynamic"))
    found = explainer(zoo.images(2, (40, 64)), method, target=3)
    assert found.maps.shape == (2, 5, 8)
    oracle = Oracle(explainer, zoo.images(2, (40, 64)), method)(zoo.images(2, (40, 64)), torch.tensor([3, 3]))
    assert float(relative_error(found.maps, oracle.maps).max()) < 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["timm:vit", "torchvision:vit"])
def test_half_precision(name, method, watch):
    images = zoo.images(2)
    half = watch(copy.deepcopy(zoo.random_model(name)).bfloat16())
    expected = Explainer(copy.deepcopy(half).float())(images.bfloat16().float(), method, target=3).maps
    found = Explainer(half)(images.bfloat16(), method, target=3)
    assert float(relative_error(found.maps, expected).max()) < 2e-2


def test_the_class_matters_to_all_but_rollout(random_model):
    images, explainer = zoo.images(2), Explainer(random_model("timm:vit"))
    for method in METHODS:
        three, seven = (explainer(images, method, target=index).maps for index in (3, 7))
        difference = float(relative_error(three, seven).min())
        assert difference == 0 if method == "rollout" else difference > 0.05
    with zoo.refused("rollout", "same map for every class"):
        explainer(images, "rollout", target="counterfactual:3")


@pytest.mark.parametrize("name", ["torchvision:vit"])
def test_legrad_equals_torchcam(name, random_model):
    """torchcam pools tokens and averages layers as we do; the maps it adds up are compared before its min-max."""
    images, model = zoo.images(2), copy.deepcopy(zoo.random_model(name))
    with tc.LeGrad(model, list(model.encoder.layers)) as extractor:
        model(images)
        expected = extractor.compute_cams([3, 7], normalized=False)
    expected = torch.stack(expected).mean(dim=0) if len(expected) > 1 else expected[0]
    assert float(expected.std()) > 0
    found = Explainer(random_model(name))(images, "legrad", torch.tensor([3, 7])).maps
    assert float(relative_error(found, expected.detach()).max()) < 1e-5


ATTENTION = {
    "plain": {},
    "boolean mask": {"attn_mask": torch.rand(5, 5, generator=torch.Generator().manual_seed(1)) + torch.eye(5) > 0.5},
    "added mask": {"attn_mask": torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("case", ATTENTION)
def test_watched_attention_gives_what_fused_attention_gives(case, graph):
    query, key, value = torch.randn(3, 2, 4, 5, 6)
    options = ATTENTION[case]
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    with torch.set_grad_enabled(True), AttentionWeights(graph) as seen:
        found = F.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(found, expected)
    (kept,) = seen.weights
    assert kept.requires_grad == found.requires_grad == graph
    torch.testing.assert_close(kept @ value, expected)


def test_watched_attention_with_fewer_keys_than_queries():
    query, key, value = torch.randn(2, 4, 5, 6), *torch.randn(2, 2, 2, 5, 6)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with AttentionWeights(False) as seen:
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, enable_gqa=True), expected)
    assert seen.weights[0].shape == (2, 4, 5, 5)


@pytest.mark.parametrize("options", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize("causal", [False, True])
def test_watched_multi_head_attention_gives_what_it_gives_alone(options, causal):
    module = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    tokens = torch.randn(2, 5, 12)
    mask = {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)} if causal else {}
    with torch.no_grad():
        output, shown = module(tokens, tokens, tokens, **mask, **options)
        _, every = module(tokens, tokens, tokens, **mask, average_attn_weights=False)
        with AttentionWeights(False) as seen:
            found, found_shown = module(tokens, tokens, tokens, **mask, **options)
    torch.testing.assert_close(found, output)
    torch.testing.assert_close(seen.weights[0], every)
    assert (found_shown is None) == (shown is None)
    if shown is not None:
        torch.testing.assert_close(found_shown, shown)


def test_the_fast_path_of_an_encoder_layer_is_watched():
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True).eval()
    tokens = torch.randn(2, 5, 12)
    with torch.no_grad():
        expected = layer(tokens)
        with AttentionWeights(False) as seen:
            found = layer(tokens)
    torch.testing.assert_close(found, expected)
    assert [each.shape for each in seen.weights] == [(2, 3, 5, 5)]


@pytest.mark.parametrize("method", METHODS)
def test_a_model_without_attention_is_refused(method, random_model):
    with zoo.refused("has no attention", "ResNet", "gradcam"):
        Explainer(random_model("timm:resnet"))(zoo.images(2), method)


def timm_swin():
    sizes = {"img_size": 64, "window_size": 4, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 2)}
    return timm.models.swin_transformer.SwinTransformer(**sizes, num_classes=10)


def torchvision_swin():
    return torchvision.models.SwinTransformer([4, 4], 12, [1, 2], [2, 2], [4, 4], num_classes=10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [timm_swin, torchvision_swin])
def test_attention_within_windows_is_refused(build, method, watch):
    explainer = Explainer(watch(zoo.randomised(build())), "layers.1" if build is timm_swin else "features.3")
    with zoo.refused("SwinTransformer", "windows", "gradcam"):
        explainer(zoo.images(2, 64), method, target=3)


def test_a_model_that_pools_by_attention_is_refused(watch):
    explainer = Explainer(watch(zoo.randomised(zoo.timm_vit(global_pool="map", class_token=False))))
    with zoo.refused("attention of shape [2, 3, 1, 36]", "gradcam"):
        explainer(zoo.images(2), "chefer", target=3)


def test_a_model_that_mixes_its_attention_with_a_positional_one_is_refused(watch):
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 3, "num_classes": 10}
    model = zoo.randomised(timm.models.convit.ConVit(**sizes))
    with torch.no_grad():
        model(zoo.images(2))  # it makes a table of positions for itself in its first pass
    explainer = Explainer(watch(model), "blocks.0")
    with zoo.refused("between their softmax and their use", "gradcam"):
        explainer(zoo.images(2), "rollout")


def test_tokens_that_the_adapter_does_not_explain_are_refused(random_model):
    adapter = camkit.Adapter(name="own", targets={"last": "blocks.-1"}, layout="tokens", prefix=2)
    with zoo.refused("40 tokens", "'own'", "prefix and grid"):
        Explainer(random_model("timm:vit-registers"), "patch_embed.proj", adapter)(zoo.images(2), "rollout")


def test_legrad_refuses_blocks_with_two_attention_layers(watch):
    explainer = Explainer(watch(zoo.randomised(zoo.timm_vit(block_fn=ParallelThingsBlock))))
    with zoo.refused("no chain of blocks", "chefer"):
        explainer(zoo.images(2), "legrad", target=3)
    assert explainer(zoo.images(2), "chefer", target=3).maps.shape == (2, 6, 6)


@pytest.mark.parametrize("options", [{"discard_ratio": 1.0}, {"discard_ratio": -0.1}, {"heads": "median"}])
def test_bad_options_are_refused(options, random_model):
    with zoo.refused("rollout", next(iter(options))):
        Explainer(random_model("timm:vit"))(zoo.images(2), "rollout", options=options)


@pytest.mark.parametrize("suffix", [".pt", pytest.param(".onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("timm:vit", "rollout", {"heads": "max", "discard_ratio": 0.5}),
        pytest.param("torchvision:vit", "gradient-rollout", {}, marks=pytest.mark.slow),
        pytest.param("timm:vit-average-registers", "chefer", {}, marks=pytest.mark.slow),
        pytest.param("timm:vit", "legrad", {}, marks=pytest.mark.slow),
    ],
)
def test_eager_and_exported_agree(name, method, options, suffix, random_model, tmp_path):
    explainer, images = Explainer(random_model(name)), zoo.images(3, seed=5)
    path = tmp_path / f"explained{suffix}"
    report = camkit.export(explainer, path, method, options=options, images=images)
    assert all(check.passed for check in report.checks)
    session = camkit.load(path)
    for batch in (1, 3):
        eager = explainer(images[:batch], method, torch.tensor(CLASSES[:batch]), options=options)
        served = session(images[:batch].numpy(), CLASSES[:batch])
        assert float(eager.maps.std()) > 0
        assert float(relative_error(torch.from_numpy(served.maps), eager.maps).max()) < 1e-4
        assert float(relative_error(torch.from_numpy(served.logits), eager.logits).max()) < 1e-4
