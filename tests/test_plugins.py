"""Third-party plugins as installed distributions: what a good one adds, and that a broken one harms nobody."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from camkit_adapters import demo
from commandline import SCRIPT, Result

SCENE = Path(demo.__file__).with_name("images") / "scene-01.png"

GOOD = """
    from pathlib import Path

    import torch
    from torch import Tensor

    from camkit import plugin
    from camkit.attacks import Loss


    @plugin.method("mean-map", paper="none", class_specific=False)
    def mean_map(activations: Tensor, *, power: int = 1) -> Tensor:
        "The mean of the channels to a power."
        return activations.mean(dim=1) ** power


    @plugin.target("margin", inputs=("class_index",))
    def margin(logits: Tensor, class_index: Tensor) -> Tensor:
        own = logits.gather(1, class_index[:, None])[:, 0]
        return own - logits.mean(dim=1)


    @plugin.metric("blank", paper="none", higher_is_better=False)
    def blank(heatmaps: Tensor) -> Tensor:
        return (heatmaps == 0).float().mean(dim=(1, 2))


    @plugin.attack("brighter", norm="linf", paper="none")
    def brighter(pixels: Tensor, epsilon: float) -> Tensor:
        return pixels + epsilon


    @plugin.hookimpl
    def camkit_methods():
        return plugin.collect(__name__, "method")

    @plugin.hookimpl
    def camkit_targets():
        return plugin.collect(__name__, "target")

    @plugin.hookimpl
    def camkit_metrics():
        return plugin.collect(__name__, "metric")

    @plugin.hookimpl
    def camkit_attacks():
        return plugin.collect(__name__, "attack")

    @plugin.hookimpl
    def camkit_adapters():
        return [Path(__file__).with_name("good.toml")]
"""

GOOD_ADAPTER = """
    [[adapter]]
    name = "good.net"
    library = "good_models"
    class = "Net"
    layout = "NCHW"
    classifier = "head"
    targets.last = "body.0"
"""

GOOD_MODELS = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 9, 8), nn.Conv2d(4, 4, 3))
            self.head = nn.Linear(4, 5)

        def forward(self, images):
            return self.head(self.body(images).mean((2, 3)))
"""

GOOD_COMMANDS = """
    def hello(name: str = "you") -> None:
        "Say hello."
        print(f"hello {name}")

    def explain() -> None:
        print("the other explain")
"""

HEADER = """
    from torch import Tensor
    from camkit import plugin
"""

METHODS = """
    @plugin.hookimpl
    def camkit_methods():
        return plugin.collect(__name__, "method")
"""

# What is wrong with a whole plugin: the source of its module, and the reason that must be said.
BROKEN_PLUGINS = {
    "import-error": ("import absent_module_of_test", "ModuleNotFoundError: No module named 'absent_module_of_test'"),
    "syntax-error": ("def (:", "SyntaxError"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3"),
    "unknown-hook": ("@plugin.hookimpl\ndef camkit_metods():\n    return []", "unknown hook 'camkit_metods'"),
    "hook-with-arguments": ("@plugin.hookimpl\ndef camkit_methods(model):\n    return []", "model"),
    "hook-that-raises": (
        "@plugin.hookimpl\ndef camkit_methods():\n    raise ValueError('no\\nluck')",
        "camkit_methods failed: ValueError: no luck",
    ),
    "hook-of-no-list": ("@plugin.hookimpl\ndef camkit_methods():\n    return 3", "camkit_methods failed: TypeError"),
    "unmarked": (
        "def free(): pass\n@plugin.hookimpl\ndef camkit_methods():\n    return [free]",
        "which is not marked as a method",
    ),
    "marked-otherwise": (
        "@plugin.dataset('free')\ndef free(): pass\n@plugin.hookimpl\ndef camkit_methods():\n    return [free]",
        "which is not marked as a method",
    ),
    "impossible-name": ("@plugin.method('a,b', paper='')\ndef f(): pass", "A method cannot be called 'a,b'"),
    "too-early": ("from camkit.registry import registry\nregistry()", "while plugins are being loaded"),
    "asks-for-itself": (
        "from camkit.registry import registry\n@plugin.hookimpl\ndef camkit_methods():\n"
        "    return registry().values('method')",
        "camkit_methods failed: The registry was asked for an item while plugins are being loaded",
    ),
    "asks-for-its-adapters": (
        "from camkit.registry import registry\n@plugin.hookimpl\ndef camkit_adapters():\n"
        "    return registry().adapter_files()",
        "camkit_adapters failed: The registry was asked for an item while plugins are being loaded",
    ),
    "adapter-file": (
        "from pathlib import Path\n@plugin.hookimpl\ndef camkit_adapters():\n    return [Path(__file__)]",
        "is not valid TOML",
    ),
    "no-adapter-file": (
        "@plugin.hookimpl\ndef camkit_adapters():\n    return ['absent.toml']",
        "'absent.toml' cannot be read",
    ),
    "no-path": ("@plugin.hookimpl\ndef camkit_adapters():\n    return [3]", "TypeError"),
}

# What is wrong with one method, which is found when it registers.
BROKEN_METHODS = {
    "unknown-quantity": (
        "(gradient: Tensor) -> Tensor",
        "asks for 'gradient', which nothing provides; did you mean 'gradients'",
    ),
    "wrong-annotation": ("(activations: int) -> Tensor", "annotates 'activations' as int, but it is Tensor."),
    "missing-annotation": ("(activations)", "has no annotation; write 'activations: Tensor'."),
    "unreadable-annotation": ("(activations: 'Tensr') -> Tensor", "cannot be read: name 'Tensr' is not defined"),
    "positional-option": (
        "(activations: Tensor, power: int = 1) -> Tensor",
        "options are keyword-only, write '*' first.",
    ),
    "option-without-default": ("(activations: Tensor, *, power: int) -> Tensor", "'power' of the method"),
    "wrong-default": ("(activations: Tensor, *, power: int = 'two') -> Tensor", "'power' of the method"),
    "any-arguments": ("(*anything: Tensor) -> Tensor", "its parameters must be named"),
}

# What is wrong with one method, which is found when it is used.
BAD_RESULTS = {
    "returns-none": ("None", "The method 'returns-none' returned NoneType, but a map method returns a tensor"),
    "returns-a-number": ("activations.mean()", "returned shape []"),
    "returns-one-map": ("activations[0, 0]", "returned shape [12, 12]"),
    "forgets-the-batch": ("activations.mean(dim=0)[:3].repeat(1, 1, 1)", "returned shape [3, 12, 12]"),
}


def install(site: Path, name: str, modules: Mapping[str, str], entries: Mapping[str, Mapping[str, str]]) -> None:
    """A distribution as an installer leaves it: modules, and metadata with entry points."""
    for file, source in modules.items():
        (site / file).write_text(dedent(source))
    metadata = site / f"{name.replace('-', '_')}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    groups = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in entries.items()]
    (metadata / "entry_points.txt").write_text("\n".join(groups))


def install_plugin(site: Path, name: str, source: str) -> None:
    module = f"{name.replace('-', '_')}_of_test"
    install(site, name, {f"{module}.py": dedent(HEADER) + dedent(source)}, {"camkit": {"items": module}})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("good")
    modules = {
        "good_plugin.py": GOOD,
        "good.toml": GOOD_ADAPTER,
        "good_models.py": GOOD_MODELS,
        "good_commands.py": GOOD_COMMANDS,
    }
    commands = {"hello": "good_commands:hello", "explain": "good_commands:explain"}
    install(site, "camkit-good", modules, {"camkit": {"all": "good_plugin"}, "camkit.commands": commands})
    return site


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("broken")
    for name, (source, _) in BROKEN_PLUGINS.items():
        install_plugin(site, name, source)
    methods = {name: f"def f{signature}: return activations" for name, (signature, _) in BROKEN_METHODS.items()}
    methods |= {
        name: f"def f(activations: Tensor) -> Tensor: return {result}" for name, (result, _) in BAD_RESULTS.items()
    }
    for name, function in methods.items():
        install_plugin(site, name, f'@plugin.method("{name}", paper="none")\n{function}\n' + dedent(METHODS))
    mine = '@plugin.method("{0}", paper="none")\ndef f{1}(activations: Tensor) -> Tensor: return activations.mean(1)\n'
    install_plugin(site, "twin", mine.format("gradcam", 1) + dedent(METHODS))
    install_plugin(site, "twice", mine.format("twice", 1) + mine.format("twice", 2) + dedent(METHODS))
    install(site, "bad-command", {}, {"camkit.commands": {"oops": "absent_module_of_test:oops"}})
    install(site, "bad-engine", {}, {"camkit.engines": dict.fromkeys(("onnx", "absent"), "absent_module_of_test:S")})
    return site


def environment(site: Path, selected: str | None = None) -> dict[str, str]:
    chosen = {} if selected is None else {"CAMKIT_PLUGINS": selected}
    inherited = {key: value for key, value in os.environ.items() if key != "CAMKIT_PLUGINS"}
    return {**inherited, **chosen, "PYTHONPATH": str(site)}


def camkit(site: Path, *arguments: object, selected: str | None = None) -> Result:
    done = subprocess.run(
        [SCRIPT, *map(str, arguments)], env=environment(site, selected), capture_output=True, text=True, timeout=120
    )
    return Result(done.returncode, done.stdout, done.stderr)


def python(site: Path, program: str, **values: object) -> Any:
    """What a program leaves in `found`, run where the distributions are installed; `values` are its variables."""
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    source = f"import json\n{given}{dedent(program)}\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment(site), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- a good one


def test_a_good_plugin_serves_the_library(good: Path):
    found = python(
        good,
        """
        import torch, camkit
        from camkit.registry import registry
        loaded = camkit.load_model("demo:resnet")
        explainer = camkit.Explainer(loaded)
        images, views = loaded.read(scene)
        mean = explainer(images, "mean-map", options={"power": 2})
        qualified = explainer(images, "camkit-good:mean-map", options={"power": 2})
        margin = explainer(images, "gradcam", target="margin:six", relu=False)
        by_name = explainer(images, "gradcam", target="camkit-good:margin:six", relu=False)
        attacked = camkit.attack(explainer, images, "brighter", epsilon=0.1)
        measured = camkit.measure(explainer, "blank", "digit_scenes", data_options={"count": 4})
        try:
            explainer(images, "mean-map", options={"power": "wide"})
        except camkit.CamkitError as error:
            sentence = str(error)
        (activations,) = explainer.plan(images, [], ["layer4"]).forward(images).captured.values()
        found = {
            "maps": torch.allclose(mean.maps, activations.mean(1) ** 2, atol=1e-6),
            "constant": float(mean.maps.std()) == 0,
            "qualified": torch.equal(mean.maps, qualified.maps),
            "margin": float(margin.scores - (margin.logits[0, 6] - margin.logits.mean())),
            "by_name": torch.equal(margin.maps, by_name.maps),
            "attack": type(attacked).__name__,
            "metric": measured.value,
            "judged": measured.judged,
            "sentence": sentence,
            "broken": [plugin.error for plugin in registry().plugins if plugin.error],
        }
        """,
        scene=str(SCENE),
    )
    assert found["maps"]
    assert not found["constant"]
    assert found["qualified"]
    assert abs(found["margin"]) < 1e-5
    assert found["by_name"]
    assert found["attack"] == "AttackResult"
    assert 0 < found["metric"] < 1
    assert found["judged"] > 0
    assert found["sentence"].startswith("Option 'power' of the method 'mean-map' was 'wide': ")
    assert found["broken"] == []


def test_a_good_plugin_serves_the_command_line(good: Path, tmp_path: Path):
    asked = ("--model", "python:good_models:Net", "--method", "mean-map", "--option", "mean-map.power=2")
    done = camkit(good, "explain", SCENE, *asked, "-o", tmp_path)
    assert (done.code, done.err) == (0, "")
    (line,) = (json.loads(text) for text in (tmp_path / "explanations.jsonl").read_text().splitlines())
    # the layer is the one that the plugin's adapter names; probing would have taken the last
    assert (line["layer"], line["method"], line["options"]) == ("body.0", "mean-map", {"power": 2})
    assert line["map"]["minimum"] >= 0
    assert (tmp_path / line["picture"]).is_file()


def test_commands_of_plugins(good: Path):
    listed = camkit(good, "--help").out
    assert "hello" in listed
    assert "From camkit-good." in listed
    assert camkit(good, "hello", "--name", "world").out == "hello world\n"
    assert "Say hello." in camkit(good, "hello", "--help").out
    # of two commands of one name camkit's own keeps it, and the other is reached by its distribution
    assert "Usage: camkit explain " in camkit(good, "explain", "--help").out
    assert camkit(good, "camkit-good:explain").out == "the other explain\n"
    assert "There is no command 'hello'" in camkit(good, "hello", selected="").err


# --- broken ones


@pytest.fixture(scope="module")
def listed(broken: Path) -> dict[str, Any]:
    done = camkit(broken, "plugins", "--json")
    assert done.code == 0, done.err
    return {"note": done.err, **json.loads(done.out)}


@pytest.fixture(scope="module")
def used(broken: Path) -> dict[str, Any]:
    """What is said when each method is used, on a model that camkit still explains."""
    return python(
        broken,
        """
        import warnings, camkit
        warnings.simplefilter("ignore")
        from camkit.registry import Registry, selection
        loaded = camkit.load_model("demo:resnet")
        explainer = camkit.Explainer(loaded)
        images, _ = loaded.read([scene, scene])
        found = {}
        for name in names:
            try:
                explainer(images, name)
            except camkit.CamkitError as error:
                found[name] = str(error)
        def third_party(listed):
            registry = Registry(selection({"CAMKIT_PLUGINS": listed}))
            return {p.distribution: p.error for p in registry.plugins if p.distribution != "camkit"}
        found["selections"] = {listed: third_party(listed) for listed in selections}
        """,
        scene=str(SCENE),
        names=["gradcam", "twin:gradcam", "twice", "no-such-method", *BROKEN_METHODS, *BAD_RESULTS],
        selections=["", "twin", "twin, import-error", "Twin,UNKNOWN_HOOK", "absent"],
    )


@pytest.mark.parametrize("name", BROKEN_PLUGINS)
def test_a_broken_plugin_is_listed_with_its_reason(name: str, listed: dict[str, Any]):
    (plugin,) = [plugin for plugin in listed["plugins"] if plugin["distribution"] == name]
    assert BROKEN_PLUGINS[name][1] in plugin["error"]
    assert "\n" not in plugin["error"]
    assert plugin["version"] == "1.2"


@pytest.mark.parametrize("name", BROKEN_METHODS)
def test_a_broken_method_is_listed_with_its_reason(name: str, listed: dict[str, Any], used: dict[str, Any]):
    (item,) = [item for item in listed["items"] if item["name"] == name]
    assert (item["kind"], item["distribution"]) == ("method", name)
    assert BROKEN_METHODS[name][1] in item["error"]
    assert used[name] == f"The method '{name}' of {name} is broken: {item['error']}"


@pytest.mark.parametrize("name", BAD_RESULTS)
def test_a_wrong_result_is_found_at_use(name: str, listed: dict[str, Any], used: dict[str, Any]):
    assert [item["error"] for item in listed["items"] if item["name"] == name] == [None]
    assert BAD_RESULTS[name][1] in used[name]


def test_camkit_itself_is_whole(listed: dict[str, Any], used: dict[str, Any]):
    own = [entry for entry in [*listed["plugins"], *listed["items"]] if entry["distribution"] == "camkit"]
    assert len(own) > 20
    assert not [entry for entry in own if entry["error"]]
    assert "gradcam" not in used


def test_of_two_methods_of_one_name_the_first_party_one_keeps_it(listed: dict[str, Any], used: dict[str, Any]):
    assert listed["note"] == (
        "Note: Both camkit and twin contribute the method 'gradcam': that name means camkit:gradcam; write "
        "twin:gradcam for the other.\n"
    )
    both = [item for item in listed["items"] if item["name"] == "gradcam"]
    assert [item["distribution"] for item in both] == ["camkit", "twin"]
    assert "twin:gradcam" not in used


def test_two_of_one_name_in_one_plugin(listed: dict[str, Any], used: dict[str, Any]):
    (item,) = [item for item in listed["items"] if item["name"] == "twice"]
    assert item["error"] == "twice contributes two of that name."
    assert item["error"] in used["twice"]


def test_an_unknown_name_is_answered_with_the_plugins_that_could_not_be_loaded(used: dict[str, Any]):
    assert used["no-such-method"].startswith("There is no method 'no-such-method'")
    assert "import-error (ModuleNotFoundError" in used["no-such-method"]


def test_selection(used: dict[str, Any]):
    found = used["selections"]
    assert found[""] == {}
    assert found["twin"] == {"twin": None}
    assert set(found["twin, import-error"]) == {"twin", "import-error"}
    assert set(found["Twin,UNKNOWN_HOOK"]) == {"twin", "unknown-hook"}
    assert list(found["absent"]) == ["absent"]
    assert "no such distribution with a camkit plugin is installed" in found["absent"]["absent"]


def test_the_table_of_plugins_says_what_is_broken(broken: Path):
    done = camkit(broken, "plugins", selected="import-error,unknown-quantity,twin")
    assert done.code == 0
    assert "broken: The method 'unknown-quantity' asks for 'gradient'" in done.out
    assert "Broken plugins" in done.out
    assert "No module named 'absent_module_of_test'" in done.out
    assert "hook-that-raises" not in done.out


def test_a_broken_method_in_a_command(broken: Path, tmp_path: Path):
    asked = ("--model", "demo:resnet", "--method", "unknown-quantity", "-o", tmp_path / "out")
    done = camkit(broken, "explain", SCENE, *asked, selected="unknown-quantity")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Error: The method 'unknown-quantity' of unknown-quantity is broken: ")
    assert not (tmp_path / "out").exists()


def test_a_broken_command(broken: Path):
    listed = camkit(broken, "--help")
    assert listed.code == 0
    assert "oops" in listed.out
    assert camkit(broken, "oops") == Result(
        2,
        "",
        "Error: The command 'oops' of bad-command cannot be loaded: ModuleNotFoundError: No module named "
        "'absent_module_of_test'.\n",
    )


def test_an_engine_of_a_plugin_does_not_take_the_place_of_our_own(broken: Path, tmp_path: Path):
    program = """
        import camkit
        try:
            camkit.load(path)
        except camkit.CamkitError as error:
            found = str(error)
    """
    (tmp_path / "damaged.onnx").write_bytes(b"no graph")
    (tmp_path / "damaged.absent").write_bytes(b"no graph")
    assert "absent_module_of_test" not in python(broken, program, path=str(tmp_path / "damaged.onnx"))
    # the plugin's engine is there, for what only it can open
    found = python(broken, program, path=str(tmp_path / "damaged.absent"))
    assert found == "'damaged.absent' cannot be opened because absent_module_of_test is not installed."
