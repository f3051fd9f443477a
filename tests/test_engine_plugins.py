"""Engines: every task is done once, whoever does it, and whatever becomes of him."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
from PIL import Image

import camkit
from camkit import plugin, study_table
from camkit.engines import Engine, Light, Tasks, Work, find_engine
from camkit.errors import CamkitError
from camkit.registry import registry
from camkit.study import Study, begin
from camkit.study_run import run
from camkit.testing import check_engine
from camkit_adapters.demo.scenes import generate
from commandline import run as command
from commandline import succeed


def parsed(function) -> Engine:
    (mark,) = plugin.marks(function)
    return Engine.parse(function, mark, registry())


def test_every_task_is_done_in_this_process():
    assert list(find_engine("local")(range(5), lambda task: task * task)) == [0, 1, 4, 9, 16]


def test_what_an_engine_does_twice_counts_once_and_what_it_loses_is_missed():
    @plugin.engine("careless")
    def careless(tasks: Tasks, work: Work, *, lost: int = 0):
        for task in list(tasks)[lost:]:
            yield work(task)
            yield work(task)

    assert list(parsed(careless)(range(4), str)) == ["0", "1", "2", "3"]
    found: list[str] = []
    with pytest.raises(CamkitError, match="The engine 'careless' lost 1 of 4 tasks"):
        found.extend(parsed(careless)(range(4), str, {"lost": 1}))
    # what came before the error counts
    assert found == ["1", "2", "3"]


def test_what_was_loaded_stays_behind():
    @dataclass
    class Loads(Light):
        name: str

        @cached_property
        def heavy(self) -> bytes:
            return b"x" * 1000

    loads = Loads("a")
    assert len(loads.heavy) == 1000
    assert loads.__getstate__() == {"name": "a"}


def test_the_local_engine_conforms():
    check_engine("local")


# --- ray: one cluster for all, since starting one takes long


@dataclass(frozen=True)
class Load:
    """Loads a model; in another process than the tests', the first to explain so many batches is killed."""

    marker: Path | None = None
    own: int = 0
    batches: int = 2

    def __call__(self, spec: str) -> camkit.Explainer:
        explainer = camkit.Explainer(camkit.load_model(spec))
        if self.marker is not None and os.getpid() != self.own:
            explainer.module.register_forward_pre_hook(Kill(self.marker, self.batches))
        return explainer


@dataclass
class Kill:
    marker: Path
    left: int

    def __call__(self, module, images) -> None:
        self.left -= 1
        if self.left < 0 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    context = ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=2**28)
    yield context.address_info["address"]
    ray.shutdown()


def planned(**changes) -> Study:
    settings = {
        "models": ["demo:resnet"],
        "methods": ["gradcam", "smoothgradcam++"],
        "metrics": ["box_iou", "average_drop"],
        "data": "digit_scenes",
        "images": 12,
        "batch_size": 2,
        "fewer": {"smoothgradcam++": 5},
    }
    return Study.of({**settings, **changes})


def written(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda line: (line["place"], line["label"], line["method"]))


def test_a_killed_worker_loses_and_doubles_nothing(cluster, tmp_path):
    local, elsewhere = tmp_path / "local", tmp_path / "ray"
    local.mkdir()
    elsewhere.mkdir()
    (here,) = run(planned(), Load(), begin(planned(), local))
    # it goes on from what another run has left
    kept = (local / "results.jsonl").read_bytes().split(b"\n")[:5]
    begin(planned(), elsewhere)
    (elsewhere / "results.jsonl").write_bytes(b"\n".join(kept) + b"\n")
    load = Load(tmp_path / "killed", os.getpid())
    (there,) = run(planned(), load, begin(planned(), elsewhere), engine="ray", engine_options={"workers": 2})
    assert (tmp_path / "killed").exists()
    expected, found = written(local), written(elsewhere)
    assert len(found) == len({(line["method"], line["image"], line["label"]) for line in found}) == 24 + 10
    assert len({json.dumps(line["targets"]) for line in found}) > 20
    for one, other in zip(expected, found, strict=True):
        values, others = (line.pop("targets")["true"]["values"] for line in (one, other))
        assert one == other
        assert others == pytest.approx(values, abs=1e-5)
    tables = [
        study_table.table(planned(), studied, study_table.lines_of(planned(), studied, written(folder)))
        for studied, folder in ((here, local), (there, elsewhere))
    ]
    for one, other in zip(*tables, strict=True):
        assert (one.method, one.metric, one.n) == (other.method, other.metric, other.n)
        assert other.value == pytest.approx(one.value, abs=1e-5, nan_ok=True)
    # in the same test, as another process of the tests would start another cluster
    with pytest.raises(CamkitError, match=r"^Ray has 2 CPUs and 0 GPUs, which is not enough for a worker with 1 and 1"):
        list(find_engine("ray")(range(2), str, {"gpus": 1}))


@pytest.mark.slow
def test_explain_shares_out_a_folder(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    (tmp_path / "pictures").mkdir()
    for number, scene in enumerate(generate(5, "test", 3)):
        Image.fromarray(scene.image).save(tmp_path / "pictures" / f"{number}.png")
    common = ("explain", tmp_path / "pictures", "--model", "demo:vgg", "--batch-size", "2")
    here = succeed(*common, "-o", tmp_path / "here")
    there = succeed(*common, "-o", tmp_path / "there", "--engine", "ray", "--engine-option", "workers=1")
    assert there == here.replace(str(tmp_path / "here"), str(tmp_path / "there"))
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == names
    assert len(names) == 11
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name


@pytest.mark.slow
def test_ray_conforms(cluster):
    check_engine("ray", options={"workers": 1})


def test_without_ray_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CamkitError, match=r"pip install 'camkit\[ray\]'"):
        list(find_engine("ray")(range(2), str))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--engine", "rai"], "There is no engine 'rai'"),
        (["--engine", "ray", "--engine-option", "worker=2"], "did you mean 'workers'"),
        (["--engine", "ray", "--engine-option", "workers=0"], "option 'workers' of the engine 'ray' was 0"),
        (["--engine", "local", "--engine-option", "workers"], "name=value is expected"),
    ],
)
@pytest.mark.parametrize("which", ["explain", "evaluate"])
def test_one_sentence(tmp_path, which, given, sentence):
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    own = {
        "explain": (tmp_path / "a.png", "--model", "demo:resnet"),
        "evaluate": (
            "--models",
            "demo:resnet",
            "--methods",
            "gradcam",
            "--metrics",
            "box_iou",
            "--data",
            "digit_scenes",
        ),
    }[which]
    result = command(which, *own, *given, "-o", tmp_path / "out")
    assert result.code == 2
    assert sentence.lower() in result.err.lower()
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
