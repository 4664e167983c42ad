"""Model files: what they hold, and what is refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fer_lightning import load_model
from fer_lightning.data.synthetic import synthetic
from fer_lightning.data.table import SPLITS
from fer_lightning.errors import UserError
from fer_lightning.inference import modelfile
from fer_lightning.inference.description import KEY, MemberConfig
from fer_lightning.inference.ensembles import default_folder
from fer_lightning.inference.export import export
from fer_lightning.inference.load import load
from tests.conftest import Command

Change = Callable[[dict[str, Any]], Any]


def description_of(file: Path) -> dict[str, Any]:
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()[KEY])  # type: ignore[no-any-return]


def rewritten(file: Path, out: Path, change: Change = lambda _: None, **tensors: torch.Tensor | None) -> Path:
    """A copy of a model file with another description or other tensors, and the checksum that goes with them."""
    weights = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    description = description_of(file)
    change(description)
    text = json.dumps(description)
    save_file(weights, out, {KEY: text, modelfile.DIGEST: modelfile._digest(text, weights)})
    return out


def test_file_predicts_like_its_run(run: Path, model_file: Path, test_images: NDArray[np.uint8]) -> None:
    expected = load_model(run, accelerator="cpu").probabilities(test_images)
    np.testing.assert_allclose(
        load_model(model_file, accelerator="cpu").probabilities(test_images), expected, atol=2e-3
    )


def test_weights_are_of_half_precision_unless_asked_otherwise(run: Path, model_file: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    half = load_file(model_file)
    export([run], tmp_path / "full.safetensors", precision="fp32")
    full = load_file(tmp_path / "full.safetensors")
    for name, tensor in checkpoint.items():
        if not name.startswith("network.") or not tensor.is_floating_point():
            continue
        stored = "0." + name.removeprefix("network.")
        assert half[stored].dtype == (torch.float16 if tensor.ndim > 1 else torch.float32)
        torch.testing.assert_close(full[stored], tensor, rtol=0, atol=0)
    assert (tmp_path / "full.safetensors").stat().st_size > 1.7 * model_file.stat().st_size


def test_weights_of_8_bits_are_those_of_torch(run: Path, tmp_path: Path, test_images: NDArray[np.uint8]) -> None:
    file, halves = tmp_path / "small.safetensors", tmp_path / "halves.safetensors"
    checks = dict(export([run], file, precision="int8"))
    export([run], halves, precision="fp16")
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    stored = load_file(file)
    convolutions = [name for name, tensor in stored.items() if tensor.dtype == torch.int8]
    assert len(convolutions) > 10
    for name in convolutions:
        weights = checkpoint["network." + name.removeprefix("0.")]
        scales = weights.flatten(1).abs().amax(1) / 127
        torch.testing.assert_close(stored[name + modelfile.SCALE], scales, rtol=1e-6, atol=0)
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weights, scales, zeros, 0, -127, 127)
        steps = rounded / scales.reshape(-1, *[1] * (weights.ndim - 1)) - stored[name]
        assert steps.abs().max() < 1.01 and (steps.abs() > 0.01).float().mean() < 1e-3  # ties may go either way
    assert file.stat().st_size < 0.7 * halves.stat().st_size
    assert description_of(file)["precision"] == "int8"
    assert any("before" in value for value in checks.values())
    expected = load_model(run, accelerator="cpu").probabilities(test_images)
    found = load_model(file, accelerator="cpu")
    np.testing.assert_allclose(found.probabilities(test_images), expected, atol=0.05)
    again = tmp_path / "again.safetensors"
    export([file], again)  # keeps the precision of the file
    assert description_of(again)["precision"] == "int8"
    assert " --precision int8 --to again.safetensors" in again.with_suffix(".md").read_text()
    np.testing.assert_allclose(
        load_model(again, accelerator="cpu").probabilities(test_images), found.probabilities(test_images), atol=1e-5
    )
    lacking = rewritten(file, tmp_path / "lacking.safetensors", **{convolutions[0] + modelfile.SCALE: None})
    with pytest.raises(UserError, match="does not fit its network"):
        load_model(lacking)


def test_8_bits_of_a_file_need_images(run: Path, model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name the data with --data"):
        export([model_file], tmp_path / "small.safetensors", precision="int8")
    assert not (tmp_path / "small.safetensors").exists()


def test_names_of_files_may_hold_dots(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "fer-0.5.safetensors"
    export([run], file)
    assert description_of(file)["name"] == "fer-0.5"


def test_damaged_scores_of_a_run_are_named(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    metrics = json.loads((copied / "metrics.json").read_text()) | {"test/accuracy": "bad"}
    (copied / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"metrics\.json: its scores are damaged"):
        load(copied, accelerator="cpu")


def test_8_bits_that_cost_accuracy_are_not_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fer_lightning.inference.export as module

    monkeypatch.setattr(module, "INT8_LOSS", -1.0)
    with pytest.raises(UserError, match=r"falls from 0\.\d+ to 0\.\d+: not written; export with more bits"):
        export([run], tmp_path / "small.safetensors", precision="int8")
    assert not list(tmp_path.iterdir())


def test_a_channel_of_zeros_stays_zero() -> None:
    from fer_lightning.models.build import build

    network = build({"_target_": "fer_lightning.models.vgg.VGG", "width": 4, "convs": [1, 1]}, 7, None)
    first = network.backbone.stages[0].conv1.weight
    with torch.no_grad():
        first[0] = 0
    modelfile.unpack(modelfile.pack([network], "int8"), [network])
    assert (first[0] == 0).all() and torch.isfinite(first).all() and (first[1:] != 0).any()


def test_description_is_that_of_the_run(run: Path, model_file: Path) -> None:
    description, metrics = description_of(model_file), json.loads((run / "metrics.json").read_text())
    assert description["classes"] == ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]
    assert description["members"][0]["posthoc_tau"] == 0.5
    assert description["members"][0]["model"]["depth"] == 18
    assert description["protocol"]["name"] == "kaggle"
    assert description["commit"] == metrics["commit"]
    assert description["data"]["test"] == json.loads((run / "partition.json").read_text())["test"]
    for key in ("test/accuracy", "test/accuracy_low", "test/f1_macro", "test/clean/accuracy"):
        assert description["scores"][key] == pytest.approx(metrics[key], abs=0.02)
    assert description["calibration"]["temperature"] == pytest.approx(metrics["calibration/temperature"], rel=0.02)


def test_card_has_the_scores_of_each_class_and_metadata(model_file: Path) -> None:
    card = model_file.with_name("model.md").read_text()
    _, header, text = re.split(r"^---$", card, maxsplit=2, flags=re.M)
    metadata = yaml.safe_load(header)
    assert metadata["pipeline_tag"] == "image-classification"
    results = metadata["model-index"][0]["results"][0]["metrics"]
    scores = description_of(model_file)["scores"]
    assert results[0]["value"] == pytest.approx(scores["test/accuracy"], abs=1e-4)
    for name in ("angry", "neutral"):
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert f"{scores[f'test/recall/{name}']:.3f}" in row
    for word in ("prohibited", "Clean test images", "confusion", "temperature", "MIT"):
        assert word.lower() in text.lower()


def test_commands_of_a_card_quote_the_name_of_its_file(model_file: Path, tmp_path: Path) -> None:
    export(model_file, tmp_path / "my model.safetensors")
    card = (tmp_path / "my model.md").read_text()
    assert "predict photo.jpg --model 'my model.safetensors'" in card
    assert 'load_model("my model.safetensors")' in card


def test_card_claims_only_what_is_known_of_the_data(run: Path, model_file: Path, tmp_path: Path) -> None:
    card = model_file.with_name("model.md").read_text()
    assert "FER-2013" not in card and "fer2013" not in card and "license: other" in card
    export([run], tmp_path / "own.safetensors", licence="cc-by-nc-4.0")
    assert "license: cc-by-nc-4.0" in (tmp_path / "own.md").read_text()
    assert description_of(tmp_path / "own.safetensors")["licence"] == "cc-by-nc-4.0"


def test_checks_are_stored_in_the_file(model_file: Path) -> None:
    checks = description_of(model_file)["checks"]
    assert checks["accuracy on 40 validation images"].endswith("after")
    card = model_file.with_name("model.md").read_text()
    assert all(f"- {what}: {value}" in card for what, value in checks.items())


def test_calibration_of_models_that_were_calibrated_apart_claims_no_coverage(
    model_file: Path, other_run: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    export([other_run], other)
    for models, tta in (([model_file, other], None), ([model_file], "flip")):
        calibration = load_model(models, accelerator="cpu", tta=tta).calibration
        assert calibration is not None and calibration.coverage is calibration.accuracy is None
        export(models, tmp_path / "both.safetensors", tta=tta)
        assert "calibrated separately" in (tmp_path / "both.md").read_text()
        assert description_of(tmp_path / "both.safetensors")["scores"] == {}


def test_network_of_the_users_own_is_no_model_file() -> None:
    own = MemberConfig(model={"_target_": "tests.inference.explain.networks.TwoLayers"}, class_counts=[1] * 7)
    with pytest.raises(UserError, match=r"^own\.safetensors: '[\w.]+TwoLayers' is not a network of this project;"):
        modelfile.check_buildable([own], 7, Path("own.safetensors"))


def write_csv(path: Path) -> None:
    """Drawn faces as the challenge's CSV: 70 for training, 28 for validation, 35 for the test."""
    faces = synthetic(n_train=70, n_val=28, n_test=35)
    names = {"train": "Training", "public": "PublicTest", "private": "PrivateTest"}
    usage = [names[SPLITS[split]] for split in faces.split]
    pixels = [" ".join(map(str, image.ravel().tolist())) for image in faces.images]
    pd.DataFrame({"emotion": faces.labels, "pixels": pixels, "Usage": usage}).to_csv(path, index=False)


def test_own_data_are_split_as_in_training(
    train: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a model file nor a run is scored on the images that it was selected on, wherever the data are."""
    from fer_lightning.inference.evaluate import evaluate

    csv = tmp_path / "faces.csv"
    write_csv(csv)
    settings = ("model=resnet18", "model.width=8", "trainer.max_epochs=1", "logger=none")
    own = train(f"data.path={csv}", *settings)
    assert own.code == 0, own.err
    export([own.folder], tmp_path / "model.safetensors")
    of_run = evaluate([own.folder], out=tmp_path / "run")
    of_file = evaluate([tmp_path / "model.safetensors"], data=csv, out=tmp_path / "file")
    images = {key: value for key, value in of_run.items() if re.match(r"test/(clean/)?support/", key)}
    assert sum(float(value) for key, value in images.items() if key.startswith("test/support/")) == 35
    assert any(key.startswith("test/clean/") for key in images)
    assert {key: of_file[key] for key in images} == images
    assert of_file["test/clean/accuracy"] == pytest.approx(
        of_run["test/clean/accuracy"], abs=0.06
    )  # weights of 16 bits
    description, networks = modelfile.read(tmp_path / "model.safetensors")
    near = description.model_copy(update={"data": description.data | {"twins": "near"}})
    modelfile.write(tmp_path / "near.safetensors", near, modelfile.pack(networks, "fp16"))
    for given, used in ((None, "near"), ("exact", "exact")):
        scores = evaluate([tmp_path / "near.safetensors"], data=csv, twins=given, out=tmp_path / "near")
        assert scores["data/twins"] == used
    of_all = evaluate([tmp_path / "model.safetensors"], data=csv, split="all", out=tmp_path / "all")
    assert sum(float(of_all[key]) for key in of_all if key.startswith("test/support")) == 133

    moved = csv.rename(tmp_path / "moved.csv")
    with pytest.raises(UserError, match=r"its data, .*faces\.csv, are not there; restore them, or .* with --data"):
        evaluate([own.folder], out=tmp_path / "gone")
    assert evaluate([own.folder], data=moved, out=tmp_path / "moved")["test/accuracy"] == of_run["test/accuracy"]
    both = evaluate([own.folder, tmp_path / "model.safetensors"], data=moved, out=tmp_path / "both")
    assert {key: both[key] for key in images} == images
    export([own.folder], tmp_path / "again.safetensors", data=str(moved))
    config = (own.folder / "config.yaml").read_text()
    unread = train(f"data.path={tmp_path / 'no.csv'}", *settings, "resume=auto", folder=own.folder)
    assert (unread.code, "is finished" in unread.out) == (0, True), unread.err
    assert (own.folder / "config.yaml").read_text() == config
    (own.folder / "metrics.json").unlink()
    again = train(f"data.path={moved}", *settings, "resume=auto", folder=own.folder)
    assert again.code == 0, again.err
    rows = moved.read_text().splitlines()
    rows[-1] = rows[-1].replace(" 1", " 2", 1)
    (tmp_path / "other.csv").write_text("\n".join(rows))
    capsys.readouterr()
    for model in (own.folder, tmp_path / "model.safetensors"):
        of_other = evaluate([model], data=tmp_path / "other.csv", out=tmp_path / "other")
        assert sum(float(of_other[key]) for key in of_other if key.startswith("test/support/")) == 28 + 35
        assert "of which the first 28 may have been used in training; --split private" in capsys.readouterr().out
    (own.folder / "metrics.json").unlink()
    refused = train(f"data.path={tmp_path / 'other.csv'}", *settings, "resume=auto", folder=own.folder)
    assert refused.code == 1
    assert "are not those that this run was started with" in refused.err
    assert f"path: {moved}" in (own.folder / "config.yaml").read_text()


@pytest.mark.parametrize("classes", ["data.classes=[sad,happy]", "data.merge={disgust: angry}"])
def test_models_of_some_classes_are_scored_on_their_own_data(
    classes: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    from fer_lightning.inference.evaluate import evaluate

    csv = tmp_path / "faces.csv"
    write_csv(csv)
    settings = ("model=resnet18", "model.width=8", "trainer.max_epochs=1", "logger=none")
    own = train(f"data.path={csv}", *settings, classes)
    assert own.code == 0, own.err
    export([own.folder], tmp_path / "model.safetensors")
    export([tmp_path / "model.safetensors"], tmp_path / "again.safetensors", data=str(csv))
    expected = evaluate([own.folder], out=tmp_path / "run")
    for model in (own.folder, tmp_path / "model.safetensors", tmp_path / "again.safetensors"):
        scores = evaluate([model], data=csv, out=tmp_path / "scored")
        assert scores["test/accuracy"] == pytest.approx(expected["test/accuracy"], abs=0.06)  # weights of 16 bits
        images = {key: value for key, value in scores.items() if "/support/" in key}
        assert images == {key: value for key, value in expected.items() if "/support/" in key}
    rows = csv.read_text().splitlines()
    rows.remove([row for row in rows if row.startswith("3,")][-1])  # a happy face of the test images
    (tmp_path / "other.csv").write_text("\n".join(rows))
    if "merge" in classes:
        scores = evaluate([tmp_path / "model.safetensors"], data=tmp_path / "other.csv", out=tmp_path / "other")
        assert "test/support/disgust" not in scores and scores["test/support/angry"] > 8
    else:
        with pytest.raises(UserError, match=r"has images of .*, but the model knows"):
            evaluate([tmp_path / "model.safetensors"], data=tmp_path / "other.csv", out=tmp_path / "other")


def near_twins_csv(path: Path) -> Path:
    """Faces of which some are near-duplicates: the same, a little brighter."""
    faces = synthetic(n_train=140, n_val=14, n_test=35)
    names = {"train": "Training", "public": "PublicTest", "private": "PrivateTest"}
    images = np.concatenate([faces.images, np.clip(faces.images[:70].astype(int) + 9, 0, 255)])
    labels = np.concatenate([faces.labels, faces.labels[:70]])
    usage = [names[SPLITS[split]] for split in faces.split] + ["Training"] * 70
    pixels = [" ".join(map(str, image.ravel().tolist())) for image in images]
    pd.DataFrame({"emotion": labels, "pixels": pixels, "Usage": usage}).to_csv(path, index=False)
    return path


def test_files_of_other_partitions_are_not_scored_together(train: Callable[..., Any], tmp_path: Path) -> None:
    """One may have been trained on what another is scored on. Near-duplicates are part of a partition."""
    from fer_lightning.inference.evaluate import evaluate

    csv = near_twins_csv(tmp_path / "faces.csv")
    files = []
    for name, protocol in {"near": ["protocol=report", "data.twins=near"], "kaggle": ["protocol=kaggle"]}.items():
        fast = ("model=resnet18", "model.width=8", "trainer.max_epochs=1", "logger=none")
        own = train(f"data.path={csv}", "data=fer2013", *fast, *protocol)
        assert own.code == 0, own.err
        files.append(tmp_path / f"{name}.safetensors")
        export([own.folder], files[-1])
    again = export([files[0]], tmp_path / "again.safetensors", data=str(csv))  # "not those that it was made with"
    assert again
    metrics = evaluate([files[0]], data=csv, split="val", out=tmp_path / "val")
    n = sum(float(metrics[key]) for key in metrics if key.startswith("test/support/"))
    assert 14 < n < 60  # the hold-out, not PublicTest
    with pytest.raises(UserError, match=r"kaggle\.safetensors: .* than .*near\.safetensors; score them apart"):
        evaluate(files, data=csv, out=tmp_path / "both")


def test_a_strangers_name_leads_to_no_other_folder(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fer_lightning.inference.evaluate import evaluate

    folder = tmp_path / "here/below"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    hostile = rewritten(model_file, tmp_path / "hostile.safetensors", lambda d: d.update(name="../../../out"))
    csv = near_twins_csv(tmp_path / "faces.csv")
    evaluate([hostile], data=csv)
    (name,) = [path.name for path in (folder / "evaluation").iterdir()]
    assert re.fullmatch(r"out-[0-9a-f]{6}-faces\.csv-[0-9a-f]{6}-test", name)
    assert {path.name for path in tmp_path.iterdir()} >= {"here", "hostile.safetensors"}
    assert not [path for path in (*tmp_path.iterdir(), *folder.parent.iterdir()) if path.name.startswith("out")]


def test_card_names_the_command_that_trains_again(run: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(run, tmp_path / "run"))
    recorded = own / ".hydra/overrides.yaml"
    overrides = [*yaml.safe_load(recorded.read_text()), "sweep=cleaning", "data.votes=/home/someone/my votes.csv"]
    recorded.write_text(yaml.safe_dump(overrides))
    export([own], tmp_path / "model.safetensors", tta="flip")
    train, exported = (
        shlex.split(line)
        for line in (tmp_path / "model.md").read_text().splitlines()
        if line.startswith(("python train.py", "fer-lightning export"))
    )
    assert train == [
        "python",
        "train.py",
        *overrides[:-1],
        "data.votes=my votes.csv",
        "hydra.mode=RUN",
        "hydra.run.dir=outputs/member1",
    ]
    assert exported[2:] == ["outputs/member1", "--tta", "flip", "--to", "model.safetensors"]
    recorded.unlink()
    export([own], tmp_path / "model.safetensors")
    assert "train.py" not in (tmp_path / "model.md").read_text()


def test_file_loads_without_data_hydra_or_lightning(model_file: Path) -> None:
    code = f"""
import sys
from fer_lightning import load_model
load_model({str(model_file)!r}).probabilities(__import__("numpy").zeros((1, 48, 48), "uint8"))
print(sorted({{"hydra", "omegaconf", "lightning", "pandas", "torchmetrics", "pickle5"}} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("cut", [0, 7, 100, 3000, -1])
def test_truncated_file_is_refused(cut: int, model_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes(model_file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"^[^\n]*cut.safetensors: damaged[^\n]*get it again$"):
        load_model(file)


def test_flipped_bit_is_noticed_wherever_it_is(model_file: Path, tmp_path: Path) -> None:
    content, file = model_file.read_bytes(), tmp_path / "flipped.safetensors"
    rng = np.random.default_rng(0)
    for position in [*rng.integers(0, len(content), 40).tolist(), *rng.integers(8, 4000, 40).tolist()]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(UserError):
            load_model(file)


DEEP = {"_target_": "fer_lightning.models.vit.ViT", "depth": 10**5}
"""A network that takes minutes to build."""


def newer(description: dict[str, Any]) -> None:
    description["format"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (newer, "written by a newer version of fer-lightning .format 2.; upgrade this one"),
        (lambda d: d.pop("calibration"), "its description is damaged .calibration: Field required"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["calibration"].update(temperature=-1.0), "temperature"),
        (lambda d: d.update(classes=["a", "b"]), "class_counts"),
        (lambda d: d["members"][0]["model"].update(width=10**9), "cannot be built"),
        (lambda d: d["members"][0]["model"].update(**DEEP), "more layers than weights"),
        (lambda d: d["members"][0]["model"].update(width=16), "does not fit its network"),
        (lambda d: d["members"][0]["model"].update(_target_="os.system"), "'os.system' is not a network of this"),
        (lambda d: d["members"][0]["model"].update(_target_="fer_lightning.models.resnet.torch.hub.load"), "not a net"),
        (lambda d: d["members"][0]["model"].update(_target_="fer_lightning.models.build.build"), "not a network"),
        (lambda d: d["members"][0]["model"].update(preprocessing={"size": 10**6}), "preprocessing.size"),
        (lambda d: d["members"][0]["model"].update(depth={"_target_": "pathlib.Path.touch"}), "cannot be built"),
        (lambda d: d["crop"]["haar"].update(side=0), "a frame of 0.0 times the box"),
        (lambda d: d["crop"]["haar"].update(side=1e5), "a frame of 100000.0 times the box"),
    ],
)
def test_hostile_description_is_refused(change: Change, message: str, model_file: Path, tmp_path: Path) -> None:
    file = rewritten(model_file, tmp_path / "hostile.safetensors", change)
    with pytest.raises(UserError, match=message) as error:
        load_model(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"0.head.bias": None}, "does not fit its network"),
        ({"0.extra": torch.zeros(3)}, "'0.extra' does not fit"),
        ({"0.head.bias": torch.tensor(1.0)}, "does not fit its network"),
        ({"0.head.bias": torch.full((7,), torch.nan)}, "not finite"),
    ],
)
def test_wrong_tensors_are_refused(
    tensors: dict[str, torch.Tensor | None], message: str, model_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_model(rewritten(model_file, tmp_path / "wrong.safetensors", **tensors))


def test_file_of_another_project_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not one that `fer-lightning export` wrote"):
        load_model(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="damaged, or not a model file"):
        load_model(tmp_path / "text.safetensors")
    torch.save({"a": 1}, tmp_path / "pickle.pt")
    with pytest.raises(UserError, match="neither a run folder nor a"):
        load_model(tmp_path / "pickle.pt")
    with pytest.raises(UserError, match="neither a run folder or model file, nor a model of this package"):
        load_model("unknown-model")


def test_crop_rules_survive_another_export(model_file: Path, tmp_path: Path) -> None:
    def change(description: dict[str, Any]) -> None:
        description["crop"]["haar"]["side"] = 1.5

    export(rewritten(model_file, tmp_path / "own.safetensors", change), tmp_path / "again.safetensors")
    assert description_of(tmp_path / "again.safetensors")["crop"]["haar"]["side"] == 1.5


def test_ensemble_file_is_the_mean_of_its_members(
    run: Path, other_run: Path, test_images: NDArray[np.uint8], tmp_path: Path, command: Command
) -> None:
    file = tmp_path / "both.safetensors"
    code, error = command("export", run, other_run, "--to", file, "--precision", "fp32", "--tta", "flip")
    assert code == 0, error
    predictor = load_model(file, accelerator="cpu")
    assert predictor.tta == "flip"
    parts = [
        torch.from_numpy(np.asarray(load_model(path, accelerator="cpu").logits(images))).double().softmax(1)
        for path in (run, other_run)
        for images in (test_images, test_images[:, :, ::-1])
    ]
    mean = torch.stack(parts).mean(0)
    expected = (mean.log() / predictor.calibration.temperature).softmax(1)  # type: ignore[union-attr]
    np.testing.assert_allclose(predictor.probabilities(test_images), expected, atol=1e-5)


def test_evaluate_of_an_ensemble_reports_gain_and_members(run: Path, other_run: Path, tmp_path: Path) -> None:
    from fer_lightning.inference.evaluate import evaluate

    metrics = evaluate([run, other_run], out=tmp_path, accelerator="cpu")
    members = pd.read_csv(tmp_path / "members.csv")
    alone = [evaluate([path], out=tmp_path / path.parent.name, accelerator="cpu") for path in (run, other_run)]
    np.testing.assert_allclose(members["accuracy"], [one["test/accuracy"] for one in alone], atol=1e-5)
    assert metrics["members/number"] == 2
    evaluate([run], out=tmp_path, accelerator="cpu")  # into the same folder
    assert not (tmp_path / "members.csv").exists()
    assert metrics["members/gain"] == pytest.approx(
        float(metrics["test/accuracy"]) - members["accuracy"].mean(), abs=1e-5
    )
    guesses = [
        pd.read_csv(tmp_path / path.parent.name / "report/predictions.csv")["prediction"] for path in (run, other_run)
    ]
    assert metrics["members/disagreement"] == pytest.approx((guesses[0] != guesses[1]).mean())


def test_results_of_other_ensembles_have_other_folders(run: Path, other_run: Path, model_file: Path) -> None:
    a, b, c = (load(path, accelerator="cpu") for path in (run, other_run, model_file))
    folders = [default_folder(models, "evaluation", "test") for models in ([a, b], [b, c], [a, b], [a], [c])]
    assert folders[0] == folders[2] and len(set(folders)) == 4
    assert folders[3] == run / "evaluation/test"
    assert re.fullmatch(f"{model_file.stem}-[0-9a-f]{{6}}-test", folders[4].name)
    of_data = [default_folder([a], "evaluation", "test", f"{day}/faces") for day in ("one", "two", "one")]
    assert of_data[0] == of_data[2] != of_data[1]
    assert re.fullmatch("faces-[0-9a-f]{6}-test", of_data[0].name)


def test_models_of_other_classes_are_not_averaged(run: Path, model_file: Path, tmp_path: Path) -> None:
    def swap(description: dict[str, Any]) -> None:
        description["classes"].reverse()

    swapped = rewritten(model_file, tmp_path / "swapped.safetensors", swap)
    with pytest.raises(UserError, match="only models of the same classes, in the same order, can be averaged"):
        load_model([run, swapped], accelerator="cpu")


def test_runs_of_other_data_are_not_averaged(run: Path, tmp_path: Path) -> None:
    from tests.inference.conftest import train

    other = train(tmp_path, "data.synthetic.seed=5")
    with pytest.raises(UserError, match="or name only runs of the same data and protocol as"):
        export([run, other], tmp_path / "mixed.safetensors")
    assert not (tmp_path / "mixed.safetensors").exists()


@pytest.mark.parametrize(
    ("to", "precision", "message"),
    [
        ("model.safetensors", "int4", "--precision int4: use fp16, fp32, int8"),
        ("model.onnx", "int8", "an ONNX graph computes in float32, or in 8 bits where its name ends in .int8.onnx"),
    ],
)
def test_bad_precision_is_one_line(
    to: str, precision: str, message: str, run: Path, tmp_path: Path, command: Command
) -> None:
    code, error = command("export", run, "--to", tmp_path / to, "--precision", precision)
    assert code == 1 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("model.pt", "name a file that ends in .safetensors, .onnx or .int8.onnx"),
        ("folder.onnx", "a folder; name a file in it"),
        ("file/model.safetensors", "choose another file"),
    ],
)
def test_bad_target_is_one_line(to: str, message: str, run: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").touch()
    code, error = command("export", run, "--to", tmp_path / to)
    assert code == 1
    assert message in error
    assert error.count("\n") == 1
