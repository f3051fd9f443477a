"""Model repositories for Triton: the folder, its text, and Triton's own schema of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import camkit
import commandline
from camkit.errors import CamkitError
from camkit_export.triton import write_model

TEXT = """\
name: "gradcam"
platform: "onnxruntime_onnx"
max_batch_size: 8
input {
  name: "image"
  data_type: TYPE_FP32
  dims: [3, 96, 96]
}
input {
  name: "class_index"
  data_type: TYPE_INT64
  dims: [1]
  reshape { shape: [ ] }
}
output {
  name: "logits"
  data_type: TYPE_FP32
  dims: [10]
  label_filename: "labels.txt"
}
output {
  name: "heatmap"
  data_type: TYPE_FP32
  dims: [96, 96]
}
output {
  name: "map"
  data_type: TYPE_FP32
  dims: [12, 12]
}
output {
  name: "explained_class"
  data_type: TYPE_INT64
  dims: [1]
  reshape { shape: [ ] }
}
dynamic_batching { max_queue_delay_microseconds: 2000 }
"""


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_onnx_model(served: Path, tmp_path: Path):
    made = write_model(served / "gradcam.onnx", tmp_path / "models")
    assert made == tmp_path / "models" / "gradcam"
    assert files(tmp_path / "models") == ["gradcam/1/model.onnx", "gradcam/config.pbtxt", "gradcam/labels.txt"]
    assert (made / "1" / "model.onnx").read_bytes() == (served / "gradcam.onnx").read_bytes()
    text = (made / "config.pbtxt").read_text()
    head, _, last = text.partition("parameters")
    assert head == TEXT
    assert '\\"preprocessing\\"' in last
    assert (made / "labels.txt").read_text().splitlines() == list(camkit.load(served / "gradcam.onnx").class_names)


def test_a_torchscript_model_goes_by_places(served: Path, tmp_path: Path):
    made = write_model(served / "gradcam.pt", tmp_path)
    assert (made / "1" / "model.pt").is_file()
    text = (made / "config.pbtxt").read_text().partition("parameters")[0]
    names = ("image", "class_index", "logits", "heatmap", "map", "explained_class")
    places = ("INPUT__0", "INPUT__1", "OUTPUT__0", "OUTPUT__1", "OUTPUT__2", "OUTPUT__3")
    expected = TEXT.replace("onnxruntime_onnx", "pytorch_libtorch")
    for name, place in zip(names, places, strict=True):
        expected = expected.replace(f'name: "{name}"', f'name: "{place}"')
    assert text == expected


def test_nothing_is_replaced_and_nothing_half_written(served: Path, tmp_path: Path):
    write_model(served / "gradcam.onnx", tmp_path)
    before = files(tmp_path)
    with pytest.raises(CamkitError, match="has a model 'gradcam' already"):
        write_model(served / "gradcam.onnx", tmp_path)
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(CamkitError, match="cannot be read"):
        write_model(tmp_path / "broken.onnx", tmp_path)
    (tmp_path / "broken.onnx").unlink()
    with pytest.raises(CamkitError, match="cannot be written"):
        write_model(served / "gradcam.onnx", tmp_path / "gradcam" / "config.pbtxt")
    assert files(tmp_path) == before


def test_what_the_command_refuses(tmp_path: Path):
    def refused(*arguments: object) -> str:
        result = commandline.run("export", "--model", "demo:resnet", *arguments)
        assert (result.code, result.out) == (2, "")
        return result.err

    assert "give --output FILE, --triton DIR or both" in refused()
    assert "Triton runs .onnx and .pt files" in refused("--triton", tmp_path, "--output", tmp_path / "a.pt2")
    assert "cannot be the name of a model" in refused("--triton", tmp_path, "--output", tmp_path / "a b.onnx")
    (tmp_path / "demo_resnet-gradcam").mkdir()
    assert "has a model 'demo_resnet-gradcam' already" in refused("--triton", tmp_path)


@pytest.mark.slow
def test_the_command_writes_beside_the_output_and_instead_of_it(tmp_path: Path):
    model = ("export", "--model", "demo:resnet", "--triton", tmp_path / "models")
    shown = commandline.succeed(*model)
    assert f"Wrote {tmp_path / 'models' / 'demo_resnet-gradcam'} (" in shown
    file = tmp_path / "models" / "demo_resnet-gradcam" / "1" / "model.onnx"
    assert "gives what it should" in commandline.succeed("verify", file)
    commandline.succeed(*model, "--output", tmp_path / "mine.onnx")
    assert (tmp_path / "mine.onnx").is_file()
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["demo_resnet-gradcam", "mine"]


SCHEMA = """
import json, sys
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

for path in sys.argv[1:]:
    config = text_format.Parse(open(path, encoding="utf-8").read(), ModelConfig())
    print(json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True)))
"""


@pytest.mark.slow
def test_triton_reads_the_configuration(served: Path, tmp_path: Path):
    # in an environment of its own: the client wants an older protobuf than onnx
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True, timeout=120)
    install = [python, "-m", "pip", "install", "--quiet", "tritonclient[grpc]"]
    installed = subprocess.run(install, capture_output=True, text=True, timeout=600)
    if installed.returncode:
        pytest.skip(f"tritonclient cannot be installed here: {installed.stderr.splitlines()[-1]}")
    paths = [write_model(served / f"gradcam.{kind}", tmp_path / kind) / "config.pbtxt" for kind in ("onnx", "pt")]
    done = subprocess.run([python, "-c", SCHEMA, *paths], capture_output=True, text=True, check=True)
    onnx, torchscript = map(json.loads, done.stdout.splitlines())
    for config, platform in ((onnx, "onnxruntime_onnx"), (torchscript, "pytorch_libtorch")):
        assert (config["platform"], config["max_batch_size"]) == (platform, 8)
        image, class_index = config["input"]
        assert (image["data_type"], image["dims"]) == ("TYPE_FP32", ["3", "96", "96"])
        assert (class_index["data_type"], class_index["dims"], class_index["reshape"]) == ("TYPE_INT64", ["1"], {})
        assert [one["data_type"] for one in config["output"]] == ["TYPE_FP32"] * 3 + ["TYPE_INT64"]
        assert config["dynamic_batching"] == {"max_queue_delay_microseconds": "2000"}
        provenance = json.loads(config["parameters"]["camkit"]["string_value"])
        assert provenance == camkit.load(served / "gradcam.onnx").provenance
    assert [one["name"] for one in onnx["output"]] == ["logits", "heatmap", "map", "explained_class"]
    assert [one["name"] for one in torchscript["input"]] == ["INPUT__0", "INPUT__1"]
