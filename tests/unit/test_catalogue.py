"""The models file: what it may say, and that a refusal names the file, the model, the key, the cause and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.errors import ConfigurationError
from services.messages import Recipe, TensorSpec
from services.models.catalogue import DEFAULT, load_catalogue

RECIPE = "recipe = { size = 224, crop = 256, mean = [127, 127, 127], std = [128, 128, 128] }"
OUTPUTS = "outputs = { logits = { dtype = 'float32', shape = [-1, 10] } }"
GOOD = {"task": "task = 'classification'", "source": "law = [1, 0.5]", "recipe": RECIPE, "outputs": OUTPUTS}


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


def model(folder: Path, **changes: str) -> Path:
    """A file with one right model, but for `changes`; an empty one removes the line."""
    return write(folder, "\n".join(["[net]", *{**GOOD, **changes}.values()]))


# --- what it may say -------------------------------------------------------------------------------------------------


def test_a_model_with_an_accelerator(tmp_path: Path) -> None:
    source = "onnx = 'net.onnx'\nacceleration = 8\nrecord = 'taken'"
    spec = load_catalogue(model(tmp_path, source=source))["net"]
    assert (spec.acceleration, spec.record) == (8.0, (tmp_path / "taken").resolve())
    assert spec.emulated
    assert not spec.timing_only  # its answers are the real ones


def test_a_model_with_a_law(tmp_path: Path) -> None:
    spec = load_catalogue(model(tmp_path))["net"]
    assert (spec.name, spec.task, spec.law) == ("net", "classification", (1.0, 0.5))
    assert spec.recipe == Recipe(224, 256, (127, 127, 127), (128, 128, 128), "CHW", "float32", "area")
    assert spec.outputs == (TensorSpec("logits", "float32", (-1, 10)),)
    assert spec.inputs == (TensorSpec("images", "float32", (-1, 3, 224, 224)),)
    assert spec.timing_only
    assert spec.label_names() == ()


def test_paths_are_relative_to_the_models_file_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("net.pt2", "net.pth", "names.txt"):
        (tmp_path / name).write_text("x\n" * 10)
    monkeypatch.chdir(tmp_path / "deep")
    file = write(
        tmp_path / "deep",
        "\n".join(
            [
                "[one]\nexported = '../net.pt2'\nlabels = '../names.txt'\ntask = 'classification'",
                RECIPE,
                OUTPUTS,
                "[two]\narchitecture = 'resnet50'\nweights = '../net.pth'\nseed = 7\ntask = 'classification'",
                RECIPE,
                OUTPUTS,
                "[three]\nonnx = 'later.onnx'\ntask = 'classification'",
                RECIPE,
                OUTPUTS,
            ]
        ),
    )
    monkeypatch.chdir(tmp_path)
    one, two, three = load_catalogue(file).values()
    assert one.exported == tmp_path / "net.pt2"
    assert one.label_names() == ("x",) * 10
    assert (two.architecture, two.weights, two.seed) == ("resnet50", tmp_path / "net.pth", 7)
    assert not one.timing_only
    assert not two.timing_only
    # An ONNX file may still have to be built
    assert three.onnx == tmp_path / "deep" / "later.onnx"


def test_a_random_network_is_for_timing_only(tmp_path: Path) -> None:
    assert load_catalogue(model(tmp_path, source="architecture = 'resnet50'"))["net"].timing_only
    assert not load_catalogue(model(tmp_path, source="onnx = 'net.onnx'"))["net"].timing_only
    assert load_catalogue(model(tmp_path, source="onnx = 'net.onnx'\nrandom = true"))["net"].timing_only


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_what_sees_the_whole_image_has_no_crop(tmp_path: Path, fit: str) -> None:
    recipe = f"recipe = {{ size = 32, fit = '{fit}', mean = [0, 0, 0], std = [1, 1, 1] }}"
    assert load_catalogue(model(tmp_path, recipe=recipe))["net"].recipe == Recipe(32, 32, (0, 0, 0), (1, 1, 1), fit=fit)


def test_a_threshold(tmp_path: Path) -> None:
    assert load_catalogue(model(tmp_path))["net"].threshold is None
    assert load_catalogue(model(tmp_path, source="law = [0, 0]\nthreshold = 0.25"))["net"].threshold == 0.25


def test_the_whole_recipe(tmp_path: Path) -> None:
    text = """recipe = { size = 32, crop = 32, mean = [0, -1.5, 2], std = [1, 0.5, 255],
      layout = 'HWC', dtype = 'uint8', interpolation = 'cubic' }""".replace("\n", "")
    recipe = load_catalogue(model(tmp_path, recipe=text))["net"].recipe
    assert recipe == Recipe(32, 32, (0, -1.5, 2), (1, 0.5, 255), "HWC", "uint8", "cubic")
    assert (recipe.shape, recipe.nbytes) == ((32, 32, 3), 3072)


# --- what comes with the project -------------------------------------------------------------------------------------


def test_the_models_that_come_with_the_project() -> None:
    catalogue = load_catalogue()
    default = catalogue["efficientnet-lite0"]
    assert default.onnx is not None
    assert not default.timing_only
    assert default.onnx == DEFAULT.parents[2] / "models" / "efficientnet-lite0.onnx"
    assert [name for name, spec in catalogue.items() if not spec.timing_only] == ["efficientnet-lite0", "mtcnn"]


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "tench"),
        (1, "goldfish"),
        (133, "bittern"),  # ImageNet's order, in which neighbours are alike: an offset of one would show here
        (134, "crane bird"),
        (151, "Chihuahua"),
        (281, "tabby"),
        (282, "tiger cat"),
        (285, "Egyptian cat"),
        (516, "cradle"),
        (517, "crane"),
        (698, "palace"),
        (967, "espresso"),
        (985, "daisy"),
        (999, "toilet tissue"),
    ],
)
def test_labels_name_their_classes(index: int, name: str) -> None:
    assert load_catalogue()["efficientnet-lite0"].label_names()[index] == name


def test_there_are_a_thousand_labels_and_none_is_empty() -> None:
    names = load_catalogue()["efficientnet-lite0"].label_names()
    assert len(names) == 1000
    assert all(name.strip() == name != "" for name in names)
    assert len(set(names)) == 1000  # a word is one class


# --- what it may not say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": ""}, "'task' is missing; write task = 'classification'"),
        ({"task": "task = 5"}, "'task' is 5; write task = 'classification'"),
        ({"source": ""}, "give exactly one of onnx, exported, architecture, law; it has none"),
        (
            {"source": "law = [1, 2]\nonnx = 'x'"},
            "exactly one of onnx, exported, architecture, law; it has onnx and law",
        ),
        ({"source": "law = [1, 2]\nweights = 'x'"}, "weights go with architecture; law brings its own: remove weights"),
        ({"source": "architecture = true"}, "'architecture' is True; write architecture = 'resnet50'"),
        ({"source": "architecture = 'a'\nseed = 1.5"}, "'seed' is 1.5; write seed = 1"),
        ({"source": "exported = 'absent.pt2'"}, "exported = {folder}/absent.pt2 is no file .* relative to {file}"),
        ({"source": "exported = '.'"}, "exported = {folder} is no file that is there"),
        ({"source": "architecture = 'a'\nweights = 'absent.pth'"}, "weights = {folder}/absent.pth is no file"),
        ({"source": "law = [1, 2]\nlabels = 'absent.txt'"}, "labels = {folder}/absent.txt is no file"),
        ({"source": "onnx = 3"}, "'onnx' is 3; write onnx = 'FILE.onnx'"),
        ({"source": "law = [1]"}, r"law is \[1\]; give \[a, b\], milliseconds"),
        ({"source": "law = [-1, 2]"}, "law is .* from 0 on"),
        ({"source": "law = [nan, 2]"}, "law is .* from 0 on"),
        ({"source": "law = [inf, 2]"}, "law is .* from 0 on"),
        ({"source": "law = [true, 2]"}, "law is .* from 0 on"),
        ({"source": "onnx = 'x'\nacceleration = 8"}, "acceleration needs a folder .* record = 'FOLDER'"),
        ({"source": "onnx = 'x'\nrecord = 'r'"}, "record goes with acceleration"),
        ({"source": "onnx = 'x'\nrecord = 'r'\nacceleration = 0.5"}, "acceleration is 0.5; give the number, from 1 on"),
        ({"source": "onnx = 'x'\nrecord = 'r'\nacceleration = '8'"}, "acceleration is '8'; give the number"),
        ({"source": "law = [1, 2]\nrecord = 'r'\nacceleration = 8"}, "and a law has none: remove one"),
        ({"source": "law = 3"}, r"law is 3; give \[a, b\]"),
        ({"extra": "colour = 'red'"}, "unknown key 'colour'; known: acceleration, architecture, .*weights"),
        ({"recipe": ""}, r"'recipe' is missing; write recipe = \{{ size = 224"),
        ({"recipe": "recipe = 224"}, r"'recipe' is 224; write recipe = \{{ size = 224"),
        ({"recipe": RECIPE.replace("224", "300")}, "recipe: size is 300, crop 256; .* 1 <= size <= crop <= 4096"),
        ({"recipe": RECIPE.replace("224", "0")}, "recipe: size is 0, crop 256"),
        ({"recipe": RECIPE.replace("256", "5000")}, "recipe: size is 224, crop 5000"),
        ({"recipe": RECIPE.replace("256", "25.6")}, "recipe: 'crop' is 25.6; write crop = 256"),
        ({"recipe": RECIPE.replace("crop = 256, ", "")}, "recipe: 'crop' is missing; write crop = 256"),
        ({"recipe": RECIPE.replace("std", "fit = 'cover', std")}, "recipe: fit is 'cover'; use one of centre, stretch"),
        ({"recipe": RECIPE.replace("std", "fit = 'stretch', std")}, "recipe: crop is 256, but .* leave crop out"),
        ({"source": "law = [0, 0]\nthreshold = 1.5"}, "threshold is 1.5; give the least score that counts"),
        ({"source": "law = [0, 0]\nthreshold = true"}, "threshold is True"),
        ({"source": "law = [0, 0]\nrandom = 1"}, "'random' is 1; write random = true"),
        ({"recipe": RECIPE.replace("mean", "means")}, "recipe: unknown key 'means'; known: crop, dtype, .*mean"),
        ({"recipe": RECIPE.replace("[127, 127, 127]", "127")}, r"recipe: 'mean' is 127; write mean = \[127"),
        (
            {"recipe": RECIPE.replace("127, 127]", "127]")},
            r"recipe: mean is \[127, 127\]; give three numbers for R, G, B",
        ),
        ({"recipe": RECIPE.replace("128]", "0]")}, r"recipe: std is .*, above 0"),
        ({"recipe": RECIPE.replace("128]", "'x']")}, r"recipe: std is .*; give three numbers"),
        ({"recipe": RECIPE.replace(" }", ", layout = 'NCHW' }")}, "recipe: layout is 'NCHW'; use one of CHW, HWC"),
        ({"recipe": RECIPE.replace(" }", ", dtype = 'int8' }")}, "recipe: dtype is 'int8'; use one of float32, uint8"),
        ({"recipe": RECIPE.replace(" }", ", interpolation = ['area'] }")}, "interpolation is .*area, linear, cubic"),
        ({"outputs": ""}, "'outputs' is missing; write outputs = "),
        ({"outputs": "outputs = {}"}, "outputs is empty; write outputs = "),
        ({"outputs": "outputs = { logits = 3 }"}, "outputs: logits is 3, not a table with dtype, shape"),
        ({"outputs": OUTPUTS.replace("dtype", "type")}, "outputs: logits: unknown key 'type'; known: dtype, shape"),
        ({"outputs": OUTPUTS.replace("float32", "float33")}, "outputs: logits: dtype is 'float33'; use one of bool, "),
        ({"outputs": OUTPUTS.replace("-1, 10", "10")}, r"outputs: logits: shape is \[10\]; write \[-1, 1000\]"),
        ({"outputs": OUTPUTS.replace("-1, 10", "-1, 0")}, r"outputs: logits: shape is \[-1, 0\]"),
        ({"outputs": OUTPUTS.replace("-1, 10", "-1, true")}, r"outputs: logits: shape is \[-1, True\]"),
        ({"outputs": OUTPUTS.replace("[-1, 10]", "10")}, "outputs: logits: shape is 10"),
        ({"outputs": OUTPUTS.replace(", shape = [-1, 10]", "")}, "outputs: logits: shape is None; write"),
    ],
)
def test_a_wrong_model_is_refused(tmp_path: Path, changes: dict[str, str], says: str) -> None:
    file = model(tmp_path, **changes)
    with pytest.raises(ConfigurationError, match=says.format(folder=tmp_path, file=file)) as raised:
        load_catalogue(file)
    assert raised.value.message.startswith(f"{file}: model 'net'")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"{tmp_path}/absent.toml cannot be read: .*; correct --models-file"):
        load_catalogue(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_catalogue(tmp_path)


@pytest.mark.parametrize("content", [b"[net", b"\xff\xfe\x00", b"[net]\nlaw = [1, 2]\nlaw = [1, 2]"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"models file {file} is not TOML: .*models\.toml shows the form"):
        load_catalogue(file)


def test_an_empty_file_and_one_without_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no model; .*shows the form"):
        load_catalogue(write(tmp_path, "# nothing\n"))
    with pytest.raises(ConfigurationError, match=r"model 'task' is 'x', not a table with acceleration, "):
        load_catalogue(write(tmp_path, "task = 'x'"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (b"a\n" * 11, "has 11 lines, output 'logits' 10 classes; line i .* must name class i"),
        (b"a\n" * 9, "has 9 lines"),
        (b"", "has 0 lines"),
        (b"\xff\xfe\n" * 10, "cannot be read: .*utf-8.*; give a UTF-8 text"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, labels: bytes, says: str) -> None:
    (tmp_path / "names.txt").write_bytes(labels)
    spec = load_catalogue(model(tmp_path, extra="labels = 'names.txt'"))["net"]
    with pytest.raises(ConfigurationError, match=rf"model 'net': labels {tmp_path}/names\.txt {says}"):
        spec.label_names()


def test_labels_that_vanish_are_refused(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n" * 10)
    spec = load_catalogue(model(tmp_path, extra="labels = 'names.txt'"))["net"]
    (tmp_path / "names.txt").unlink()
    with pytest.raises(ConfigurationError, match=r"cannot be read: .*No such file"):
        spec.label_names()
