"""The .pt2 file: loaded by torch alone, nothing of its machine in it, and what would run code on loading is refused."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import camkit
from camkit.errors import CamkitError
from camkit_export.pt2 import Pt2Session, _write
from camkit_export.trace import traced
from standin import assert_equals_eager, assert_torch_alone_loads

ROOT = Path(__file__).resolve().parents[2]


def test_torch_alone_loads_it(small_pt2, tmp_path):
    assert_torch_alone_loads(small_pt2, "torch.export.load(sys.argv[1], extra_files=extra).module()", tmp_path)


@pytest.fixture(scope="module")
def session(small_pt2):
    return camkit.load(small_pt2)


@pytest.mark.parametrize("batch", [1, 4])
def test_it_agrees_with_eager(session, small, batch):
    assert_equals_eager(session, small, batch)


def test_facts(session, small):
    assert isinstance(session, Pt2Session)
    assert session.provenance == small.provenance
    assert (session.image_shape, session.classes) == ((3, 45, 38), 7)


def members(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_no_pickle_and_no_trace_of_this_machine(small_pt2):
    found = members(small_pt2)
    assert found["data/sample_inputs/model.pt"] == b""
    graph = json.loads(found["models/model.json"])
    assert graph["guards_code"] == []
    assert all(node["metadata"] == {} for node in graph["graph_module"]["graph"]["nodes"])
    torch_folder = os.path.dirname(torch.__file__)
    for text in (str(ROOT), str(Path.home()), torch_folder, "site-packages", "eval_with_key", 'File "'):
        assert not [name for name, data in found.items() if text.encode() in data], text


def test_torch_writes_pickles_and_traces_by_itself(small, tmp_path):
    """An archive as torch writes it would have failed the test above."""
    graph = traced(small)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(graph, graph.example, dynamic_shapes=dict.fromkeys(graph.inputs, batch))
    torch.export.save(program, tmp_path / "a.pt2", extra_files={"camkit.json": "{}"})
    found = members(tmp_path / "a.pt2")
    assert found["data/sample_inputs/model.pt"]
    assert str(ROOT).encode() in found["models/model.json"]
    with pytest.raises(CamkitError, match="sample inputs, which are a pickle"):
        Pt2Session(tmp_path / "a.pt2")


def test_the_same_export_gives_the_same_bytes(small, small_pt2, tmp_path):
    metadata = members(small_pt2)["extra/camkit.json"].decode()
    _write(traced(small), tmp_path / "a.pt2", metadata)
    assert (tmp_path / "a.pt2").read_bytes() == small_pt2.read_bytes()


def refused(path, sentence):
    with pytest.raises(CamkitError, match=sentence) as error:
        Pt2Session(path)
    assert len(str(error.value).splitlines()) == 1


def test_missing_file(tmp_path):
    refused(tmp_path / "none.pt2", "cannot be read: No such file")


@pytest.mark.parametrize("keep", [0, 1, 100, 20_000, -1, -200])
def test_truncated_file_is_refused(small_pt2, tmp_path, keep):
    (tmp_path / "a.pt2").write_bytes(small_pt2.read_bytes()[:keep])
    refused(tmp_path / "a.pt2", "truncated or not an archive")


def test_damaged_weights_are_refused(small_pt2, tmp_path):
    data = bytearray(small_pt2.read_bytes())
    data[data.index(members(small_pt2)["data/weights/weight_2"])] ^= 255
    (tmp_path / "a.pt2").write_bytes(data)
    refused(tmp_path / "a.pt2", "truncated or not an archive")


def test_program_of_somebody_else_is_refused(tmp_path):
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    torch.export.save(program, tmp_path / "a.pt2")
    refused(tmp_path / "a.pt2", "not exported by camkit")


def test_script_is_refused(small_pt, tmp_path):
    (tmp_path / "a.pt2").write_bytes(small_pt.read_bytes())
    refused(tmp_path / "a.pt2", "holds no graph of torch.export")


# --- what runs code


def packed(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data, compression)
    return path


def changed(source, target, change):
    """The file with something done to its members, and to its graph and its weights' description as JSON."""
    contents = members(source)
    graph, weights = (json.loads(contents[f"{name}.json"]) for name in ("models/model", WEIGHTS))
    change(contents, graph, weights["config"])
    contents["models/model.json"], contents[f"{WEIGHTS}.json"] = (json.dumps(one).encode() for one in (graph, weights))
    return packed(target, contents)


WEIGHTS = "data/weights/model_weights_config"
MARKER = "it-ran"


class Marks:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return open, (MARKER, "w")


def marking_pickle():
    buffer = io.BytesIO()
    torch.save((Marks(),), buffer)
    return buffer.getvalue()


def nodes(graph):
    return graph["graph_module"]["graph"]["nodes"]


def by_sample_inputs(contents, graph, weights):
    contents["data/sample_inputs/model.pt"] = marking_pickle()


def by_weights(contents, graph, weights):
    first = next(iter(weights.values()))
    first["use_pickle"] = True
    contents[f"data/weights/{first['path_name']}"] = marking_pickle()


def by_constants(contents, graph, weights):
    meta = next(iter(weights.values()))
    constants = {"config": {"a": {**meta, "path_name": "opaque_obj_0", "use_pickle": False}}}
    contents["data/constants/model_constants_config.json"] = json.dumps(constants).encode()
    # a multiple of the element's size, as torch demands of tensors
    pickled = pickle.dumps(Marks())
    contents["data/constants/opaque_obj_0"] = pickled + bytes(-len(pickled) % 4)


def by_size(contents, graph, weights):
    sizes = graph["graph_module"]["graph"]["sym_int_values"]
    next(iter(sizes.values()))["as_expr"]["expr_str"] = f"open('{MARKER}', 'w').fileno()"


def guards(contents, graph, weights):
    graph["guards_code"] = [f"open('{MARKER}', 'w')"]


def by_guards(contents, graph, weights):
    """Torch looks at guards where there are sample inputs."""
    guards(contents, graph, weights)
    buffer = io.BytesIO()
    torch.save(((torch.zeros(3, 3, 45, 38), torch.zeros(3, dtype=torch.int64)), {}), buffer)
    contents["data/sample_inputs/model.pt"] = buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (by_sample_inputs, "sample inputs, which are a pickle"),
        (by_weights, "may be code"),
        (by_constants, "'data/constants/opaque_obj_0', which may be code"),
        (by_size, "the size .* may be code"),
        (by_guards, "sample inputs"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_torch_would_run_is_refused(small_pt2, tmp_path, monkeypatch, change, sentence):
    monkeypatch.chdir(tmp_path)
    path = changed(small_pt2, tmp_path / "a.pt2", change)
    refused(path, sentence)
    assert not Path(MARKER).exists()
    try:
        torch.export.load(path).module()(torch.ones(2, 3, 45, 38), torch.tensor([-1, 3]))
    except Exception as error:  # that it fails afterwards helps nobody
        print(error)
    assert Path(MARKER).exists()


def operator(target):
    def change(contents, graph, weights):
        next(node for node in nodes(graph) if "relu" in node["target"])["target"] = target

    return change


def argument(value):
    def change(contents, graph, weights):
        nodes(graph)[1]["inputs"][0]["arg"] = value

    return change


def member(name):
    def change(contents, graph, weights):
        contents[name] = b"?"

    return change


def named(name):
    def change(contents, graph, weights):
        nodes(graph)[1]["name"] = name

    return change


def packed_in_a_class(contents, graph, weights):
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace("builtins.dict", "collections.OrderedDict")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (named("a = open('it-ran', 'w'); b"), "the name .* may be code"),
        (named("a.b"), "the name 'a.b' may be code"),
        (named("__class__"), "the name '__class__' may be code"),
        (operator("torch.os.system"), "not torch's own"),
        (operator("torch.ops.camkit_test.twice.default"), "not torch's own"),
        (operator("torch.ops.higher_order.cond"), "not torch's own"),
        (operator("torch.ops.aten.absent.default"), "not torch's own"),
        (operator("torch.ops.aten.__class__.mro"), "not torch's own"),
        (operator("_operator.methodcaller"), "not torch's own"),
        (operator("#extension:op"), "not torch's own"),
        (operator(7), "not torch's own"),
        (operator("torch.ops.aten.relu_.default"), "does more than compute"),
        (operator("torch.ops.aten.from_file.default"), "does more than compute"),
        (argument({"as_operator": "torch.os.system"}), "subgraphs, guards or objects"),
        (argument({"as_graph": {"name": "a", "graph": {}}}), "subgraphs, guards or objects"),
        (argument({"as_custom_obj": {"name": "a", "class_fqn": "b"}}), "subgraphs, guards or objects"),
        (argument({"as_string": "/etc/passwd"}), "may be code"),
        (guards, "subgraphs, guards or objects"),
        (packed_in_a_class, "packed in classes"),
        (member("data/aotinductor/model/a.so"), "native code; if you trust"),
        (member("data/weights/model.pt"), "may be code"),
        (member("models/other.json"), "may be code"),
        (member("code/__torch__.py"), "may be code"),
    ],
)
def test_what_is_not_a_plain_graph_is_refused(small_pt2, tmp_path, change, sentence):
    refused(changed(small_pt2, tmp_path / "a.pt2", change), sentence)


def test_other_archives_are_refused(small_pt2, tmp_path):
    contents = members(small_pt2)
    refused(packed(tmp_path / "a.pt2", contents, zipfile.ZIP_DEFLATED), "members are compressed")
    refused(packed(tmp_path / "b.pt2", {**contents, "models/model.json": b"{"}), "damaged")
    refused(packed(tmp_path / "c.pt2", {**contents, "models/model.json": b"[" * 100_000}), "damaged")
    refused(packed(tmp_path / "d.pt2", {**contents, "models/model.json": b"{}"}), "torch cannot load")
    refused(packed(tmp_path / "e.pt2", {**contents, "extra/camkit.json": b"{}"}), "metadata of .* is damaged")
    with zipfile.ZipFile(packed(tmp_path / "f.pt2", contents), "a") as archive:
        archive.writestr("other/models/model.json", "{}")
    refused(tmp_path / "f.pt2", "two members of one name")
