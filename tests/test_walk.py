"""One walk over a model's layers, and the summary and the doctor as views of it."""

import io
import threading
import weakref

import pytest
import timm
import torch
import torchvision
from rich.console import Console
from torch import nn

from camkit.doctor import diagnose, render_doctor
from camkit.errors import CamkitError
from camkit.summary import render_summary, summary_rows, summary_totals
from camkit.walk import walk


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def images(batch=2, size=32):
    return torch.rand(batch, 3, size, size)


def convnet():
    """Convolutions, an in-place ReLU that is used twice, one layer that never runs, a linear head."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)
            self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
            self.unused = nn.Linear(7, 7)
            self.pool = nn.AdaptiveAvgPool2d(1)
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            x = self.relu(self.second(self.relu(self.first(x))))
            return self.head(self.pool(x).flatten(1))

    return Net().eval()


def tiny_vit(**options):
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return timm.models.VisionTransformer(**{**settings, **options}).eval()


def state(model):
    """All that a walk could leave changed."""
    return {
        "tensors": {name: (value.clone(), value._version) for name, value in model.state_dict(keep_vars=True).items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()],
        "flags": [(part.training, getattr(part, "inplace", None)) for part in model.modules()],
        "hooks": [
            (len(part._forward_hooks), len(part._forward_pre_hooks), len(part._backward_hooks))
            for part in model.modules()
        ],
    }


def assert_unchanged(model, before):
    after = state(model)
    for name, (value, version) in before["tensors"].items():
        assert torch.equal(value, after["tensors"][name][0])
        assert version == after["tensors"][name][1]
    for old, new in zip(before["grad"], after["grad"], strict=True):
        assert (old is None and new is None) or torch.equal(old, new)
    for part in ("requires_grad", "flags", "hooks"):
        assert before[part] == after[part]


def reference_gradients(model, batch, class_index):
    """Gradients of the class score by retain_grad, for models without in-place layers."""
    outputs, handles = {}, []
    for path, part in model.named_modules():

        def keep(_module, _inputs, output, path=path):
            output.retain_grad()
            outputs[path] = output

        handles.append(part.register_forward_hook(keep))
    model(batch.clone().requires_grad_())[:, class_index].sum().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return {path: output.grad for path, output in outputs.items()}


# what the records say


def test_records_follow_the_run_and_end_with_what_never_ran():
    found = walk(convnet(), images())
    assert [record.path for record in found.layers] == ["", "first", "relu", "second", "pool", "head", "unused"]
    by_path = {record.path: record for record in found.layers}
    assert by_path["second"].shape == (2, 6, 16, 16)
    assert by_path["second"].output == "[2, 6, 16, 16]"
    assert (by_path["relu"].calls, by_path["head"].calls, by_path["unused"].calls) == (2, 1, 0)
    assert by_path["relu"].shape == (2, 6, 16, 16)  # of the last call
    assert by_path["unused"].shape is None
    assert by_path["first"].class_name == "Conv2d"
    assert (by_path[""].depth, by_path["first"].depth) == (0, 1)
    assert (by_path[""].is_leaf, by_path["first"].is_leaf) == (False, True)
    assert found.explained == ()
    assert by_path["first"].gradient_share is None


@pytest.mark.parametrize("class_index", [0, 3])
def test_gradients_are_those_of_the_class_score(class_index):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(5), nn.Flatten(), nn.Linear(144, 5)).eval()
    batch = images()
    expected = reference_gradients(model, batch, class_index)
    found = walk(model, batch, gradients=True, class_index=class_index)
    assert found.explained == (class_index, class_index)
    for record in found.layers:
        gradient = expected[record.path]
        assert record.peak_gradient == pytest.approx(float(gradient.abs().max()), rel=1e-6)
        positions = (gradient != 0).any(dim=1) if gradient.ndim == 4 else (gradient != 0).any(dim=-1)
        assert record.gradient_share == pytest.approx(float(positions.float().mean()))
    # a maximum pool passes the gradient to few positions, so the shares differ
    shares = [found.layer(path).gradient_share for path in ("0", "1", "2")]
    assert shares[0] < 0.5 < shares[2]


def test_in_place_layers_give_the_gradients_of_their_out_of_place_twins():
    in_place, twin = convnet(), convnet()
    twin.load_state_dict(in_place.state_dict())
    twin.relu.inplace = False
    batch = images()
    assert walk(in_place, batch, gradients=True).layers == walk(twin, batch, gradients=True).layers


def test_of_a_layer_that_runs_twice_the_last_run_is_told():
    model = convnet()
    relu = walk(model, images(), gradients=True, class_index=2).layer("relu")
    # the last run's output is averaged over 16 x 16 positions and weighed by the head
    active = model.head.weight[2].abs().max().item() / 256
    assert relu.peak_gradient == pytest.approx(active, rel=1e-5)
    assert relu.gradient_share == 1


def test_a_view_that_is_changed_in_place_keeps_its_gradient():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(3600, 5)
    ).eval()
    batch = images()
    changed = walk(model, batch, gradients=True)
    model[2].inplace = False
    assert changed.layers == walk(model, batch, gradients=True).layers
    assert changed.layer("1").peak_gradient > 0


def test_a_first_layer_may_change_the_images_in_place_and_they_stay():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(3600, 5)).eval()
    batch = images() - 0.5
    before = batch.clone()
    assert walk(model, batch, gradients=True).layer("0").peak_gradient > 0
    assert torch.equal(batch, before)
    assert not batch.requires_grad


def test_densenet_with_its_functional_in_place_relu():
    model = torchvision.models.DenseNet(growth_rate=4, block_config=(1, 1), num_init_features=8, num_classes=5).eval()
    found = walk(model, images(), gradients=True)
    assert found.layer("features").gradient_share == 1
    assert found.layer("features.norm5").peak_gradient > 0


@pytest.mark.parametrize("class_index", [None, -1])
def test_the_top_class_is_explained_where_none_is_given(class_index):
    model, batch = convnet(), images(4)
    expected = tuple(model(batch).argmax(dim=1).tolist())
    assert walk(model, batch, gradients=True, class_index=class_index).explained == expected


def test_outputs_that_are_tuples_and_mappings():
    class Two(nn.Module):
        def forward(self, x):
            return x.mean(dim=1, keepdim=True), None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()
            self.conv = nn.Conv2d(1, 5, 1)

        def forward(self, x):
            return {"out": self.conv(self.two(x)[0]), "sizes": [3]}

    found = walk(Net().eval(), images(), gradients=True)
    assert found.layer("two").output == "([2, 1, 32, 32], None)"
    assert found.layer("two").shape == (2, 1, 32, 32)
    assert found.layer("two").gradient_share == 1
    assert found.layer("").output == "{out: [2, 5, 32, 32], sizes: (int)}"
    assert len(found.explained) == 2


def test_layouts_are_guessed_by_shape():
    vit = walk(tiny_vit(), images())
    assert (vit.layer("patch_embed.proj").layout, vit.layer("patch_embed.proj").grid) == ("NCHW", (4, 4))
    assert (vit.layer("blocks.1").layout, vit.layer("blocks.1").grid, vit.layer("blocks.1").prefix) == (
        "tokens",
        (4, 4),
        1,
    )
    assert vit.layer("head").layout == "none"
    registers = walk(tiny_vit(reg_tokens=4), images())
    assert registers.layer("blocks.1").prefix == 5
    wide = walk(tiny_vit(img_size=(32, 64)), torch.rand(1, 3, 32, 64))
    assert (wide.layer("norm").grid, wide.layer("norm").prefix) == ((4, 8), 1)
    swin = walk(
        timm.models.SwinTransformer(img_size=64, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(1, 1)).eval(),
        images(size=64),
    )
    assert (swin.layer("layers.1").layout, swin.layer("layers.1").grid) == ("NHWC", (8, 8))


def test_attention_weights_are_no_grid():
    model = tiny_vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    found = walk(model, images())
    assert found.layer("blocks.0.attn.attn_drop").shape == (2, 2, 17, 17)
    assert found.layer("blocks.0.attn.attn_drop").layout == "none"


def test_only_shapes_are_kept_of_a_plain_walk():
    outputs = []
    model = convnet()
    for part in model.modules():
        part.register_forward_hook(
            lambda _module, _inputs, output: outputs.append((weakref.ref(output), output.grad_fn))
        )
    found = walk(model, images())
    assert len(outputs) == 7
    assert all(reference() is None and graph is None for reference, graph in outputs)
    assert found.layer("first").shape == (2, 4, 32, 32)


# the model stays as it was


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("caller", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was_by_every_caller(gradients, caller):
    model = convnet()
    model.first.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    before = state(model)
    with caller():
        batch = images()
        found = walk(model, batch, gradients=gradients)
        assert torch.is_grad_enabled() == (caller is torch.enable_grad)
    assert_unchanged(model, before)
    assert batch.grad is None
    if gradients:
        assert all(record.peak_gradient > 0 for record in found.layers if record.calls)


def test_a_fully_frozen_model_has_gradients_too():
    model = convnet().requires_grad_(False)
    assert walk(model, images(), gradients=True).layer("second").gradient_share == 1


def test_training_mode_is_noted_walked_around_and_kept():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 5))
    model.train()
    model[2].eval()
    before = state(model)
    found = walk(model, images(batch=1), gradients=True)
    assert found.training
    assert_unchanged(model, before)
    assert diagnose(found)[0].problem == "training mode"
    assert not walk(model.eval(), images()).training


@pytest.mark.parametrize("gradients", [False, True])
def test_the_model_is_left_as_it_was_by_an_error_which_names_the_layer(gradients):
    model = convnet().train()
    model.head = nn.Linear(7, 5)  # 6 channels arrive
    before = state(model)
    with pytest.raises(CamkitError, match=r"fails at layer 'head' with: .*mat1 and mat2"):
        walk(model, images(), gradients=gradients)
    assert_unchanged(model, before)
    with pytest.raises(CamkitError, match="There is no class 99; the model has 5 classes"):
        walk(convnet(), images(), gradients=True, class_index=99)


def test_hooks_of_the_user_stay_and_run():
    model, seen = convnet(), []
    handle = model.first.register_forward_hook(lambda *_: seen.append(1))
    walk(model, images(), gradients=True)
    model(images())
    assert len(seen) == 2
    handle.remove()
    assert state(model)["hooks"] == state(convnet())["hooks"]


def test_another_thread_that_runs_the_model_is_not_counted():
    class Meeting(nn.Module):
        """Lets the other thread run the whole model in the middle of the walk."""

        def forward(self, x):
            if threading.current_thread() is walker:
                other = threading.Thread(target=lambda: model(images()))
                other.start()
                other.join()
            return x

    walker = threading.current_thread()
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Meeting(), nn.Conv2d(4, 5, 3)).eval()
    assert [record.calls for record in walk(model, images(), gradients=True).layers] == [1, 1, 1, 1]


def test_compiled_and_data_parallel_models_are_walked_as_what_they_wrap():
    model, batch = convnet(), images()
    expected = walk(model, batch, gradients=True).layers
    assert walk(torch.compile(model), batch, gradients=True).layers == expected
    assert walk(nn.DataParallel(model), batch, gradients=True).layers == expected
    model.compile()
    assert walk(model, batch, gradients=True).layers == expected


def test_checkpointed_layers_have_run_once():
    model, batch = tiny_vit(), images()
    expected = {record.path: record for record in walk(model, batch, gradients=True).layers}
    model.set_grad_checkpointing(True)
    for record in walk(model, batch, gradients=True).layers:
        if record.path != "blocks":  # with checkpoints its parts are called one by one
            assert record == expected[record.path]


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("make", "batch", "sentence"),
    [
        (convnet, torch.rand(3, 32, 32), "needs images"),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU())), images(), "scripted model"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), images(), "run it once"),
        (lambda: nn.Sequential(nn.Conv2d(4, 5, 3)), images(), "fails at layer '0' with"),
    ],
)
def test_what_cannot_be_walked_is_refused_in_one_sentence(make, batch, sentence):
    model = make()
    with pytest.raises(CamkitError, match=sentence):
        walk(model, batch, gradients=True)


def test_a_model_built_in_inference_mode_has_no_gradients():
    with torch.inference_mode():
        model = convnet()
    assert walk(model, images()).layer("first").shape == (2, 4, 32, 32)
    with pytest.raises(CamkitError, match=r"built under torch\.inference_mode"):
        walk(model, images(), gradients=True)


def test_an_unknown_layer_names_the_nearest():
    with pytest.raises(CamkitError, match="no layer 'secnd'; did you mean 'second'"):
        walk(convnet(), images()).layer("secnd")


# summary


@pytest.mark.parametrize(
    ("name", "parameters", "passes", "sizes"),
    [("alexnet", 61_100_840, 8.38, (233.08, 242.03)), ("vgg16", 138_357_544, 218.78, (527.79, 747.15))],
)
def test_summary_gives_the_well_known_totals(name, parameters, passes, sizes):
    with torch.device("meta"):  # shapes are enough, and cost neither time nor memory
        model = torchvision.models.get_model(name, weights=None).eval()
        found = walk(model, torch.empty(1, 3, 224, 224))
    totals = summary_totals(found)
    assert totals.parameters == totals.trainable == parameters
    assert summary_rows(found)[-1].running_total == parameters
    assert totals.input_mb == pytest.approx(0.57, abs=0.005)
    assert totals.passes_mb == pytest.approx(passes, abs=0.005)
    assert (totals.parameters_mb, totals.total_mb) == pytest.approx(sizes, abs=0.005)


def test_summary_counts_shared_and_frozen_parameters_once_and_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight
            self.third = nn.Linear(4, 2)

        def forward(self, x):
            return self.third(self.second(self.first(x)))

    model = Net().eval()
    model.third.requires_grad_(False)
    found = walk(model, torch.rand(1, 3, 4, 4))
    assert [row.parameters for row in summary_rows(found)] == [0, 16, 0, 10]
    assert [row.running_total for row in summary_rows(found)] == [0, 16, 16, 26]
    totals = summary_totals(found)
    assert (totals.parameters, totals.trainable, totals.non_trainable) == (26, 16, 10)


def printed(renderable, width=120):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_summary_is_printed_with_its_totals():
    text = printed(render_summary(walk(convnet(), images(batch=1))))
    lines = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert "relu (ReLU: 1) x2" in text
    assert "unused (Linear: 1) never runs" in text
    assert lines["Total parameters"].split()[-1] == f"{sum(p.numel() for p in convnet().parameters())}"
    assert lines["Input size (MB), 1 x 3 x 32 x 32"].split()[-1] == "0.01"


# doctor


def problems(found):
    return {finding.path: finding for finding in diagnose(found)}


def test_doctor_finds_nothing_wrong_with_a_sound_layer():
    found = problems(walk(convnet(), images(), gradients=True))
    assert set(found) == {"relu", "unused", "pool", "head"}
    assert found["relu"].problem == "runs often"
    assert "twice" in found["relu"].sentence
    assert found["relu"].blank  # the cut refuses it
    assert found["unused"].problem == "never runs"
    assert found["pool"].problem == "one position"
    assert found["head"].problem == "no positions"


@pytest.mark.parametrize(("registers", "phrase"), [(0, "the first token has"), (4, "the first 5 tokens have")])
def test_doctor_knows_that_patch_tokens_have_no_gradient_after_the_last_attention(registers, phrase):
    found = walk(tiny_vit(reg_tokens=registers), images(), gradients=True)
    assert found.layer("blocks.2").gradient_share == 0
    assert found.layer("blocks.2").peak_gradient > 0
    assert found.layer("blocks.2.norm1").gradient_share == 1
    finding = problems(found)["blocks.2"]
    assert finding.problem == "prefix only"
    assert finding.blank
    assert phrase in finding.sentence
    assert "choose 'blocks.2.norm1'" in finding.sentence
    assert "blocks.1" not in problems(found)


def test_doctor_says_where_a_zero_head_ends_the_gradient():
    model = convnet()
    nn.init.zeros_(model.head.weight)
    found = walk(model, images(), gradients=True)
    about_model, *_ = diagnose(found)
    assert (about_model.path, about_model.problem) == ("", "no gradient")
    assert "ends at 'head' (Linear)" in about_model.sentence
    assert problems(found)["second"].problem == "no gradient"


def test_doctor_says_that_a_detached_model_has_no_gradient_at_all():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = convnet()

        @torch.no_grad()
        def forward(self, x):
            return self.net(x)

    about_model, *_ = diagnose(walk(Detached().eval(), images(), gradients=True))
    assert about_model.problem == "no gradient"
    assert "does not even reach the last layer" in about_model.sentence


@pytest.mark.parametrize(("value", "problem"), [(0.0, "all zero"), (float("nan"), "not finite")])
def test_doctor_sees_activations_that_are_zero_or_not_finite(value, problem):
    model = convnet()
    nn.init.constant_(model.first.weight, value)
    nn.init.constant_(model.first.bias, value)
    assert problems(walk(model, images(), gradients=True))["first"].problem == problem


def test_doctor_sees_a_gradient_on_few_positions_only():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    finding = problems(walk(model, images(), gradients=True))["0"]
    assert finding.problem == "sparse"
    assert not finding.blank
    assert "< 1 %" in finding.sentence


def test_doctor_sends_from_a_list_that_never_runs_to_its_parts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 5, 1)])

        def forward(self, x):
            for stage in self.stages:
                x = stage(x)
            return x.mean(dim=(2, 3))

    finding = problems(walk(Net().eval(), images(), gradients=True))["stages"]
    assert finding.problem == "never runs"
    assert "only its parts do, such as 'stages.1'" in finding.sentence


def test_doctor_says_that_a_model_without_positions_has_no_place_for_a_map():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)).eval()
    about_model, *_ = diagnose(walk(model, images(), gradients=True))
    assert (about_model.problem, about_model.blank) == ("no positions", True)


def test_doctor_is_printed_with_the_verdict_on_the_chosen_layer():
    found = walk(tiny_vit(), images(), gradients=True)
    good = printed(render_doctor(found, "blocks.2.norm1"))
    assert "> blocks.2.norm1" in good
    assert (
        "'blocks.2.norm1' (LayerNorm, [2, 17, 24], tokens 1+4x4): Fit for a map. It has a gradient on 100 % of its"
        in good
    )
    bad = printed(render_doctor(found, "blocks.2"), width=200)
    assert "Only the first token has a gradient, none of the image's; choose 'blocks.2.norm1'." in bad.splitlines()[-1]
    with pytest.raises(CamkitError, match=r"no layer 'blocks\.7'"):
        render_doctor(found, "blocks.7")


def test_doctor_without_gradients_judges_shapes_only():
    found = walk(tiny_vit(), images())
    assert "Gradient" not in printed(render_doctor(found))
    assert {finding.problem for finding in diagnose(found)} == {"no positions", "never runs"}
