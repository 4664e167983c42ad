"""A run folder from a stranger runs no code and writes nothing outside of it: one line, exit code 1."""

from __future__ import annotations

import ast
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from fer_lightning.app import CONF
from fer_lightning.config.dataset import settings_of
from fer_lightning.config.instantiate import check_targets, own_targets, targets_in
from fer_lightning.data.readers.cache import FORMAT
from fer_lightning.errors import UserError
from fer_lightning.runs.resume import expand
from tests.conftest import TINY, Command, Run
from tests.processes import apart

PACKAGE = Path(__file__).parents[1] / "fer_lightning"
Train = Callable[..., Run]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of this project's own."""
    folder = tmp_path_factory.mktemp("finished")
    ended = apart(folder / "out", *TINY, "trainer.max_epochs=1", f"hydra.run.dir={folder}/run")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be made hostile."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A folder that exists once code from the run folder has run."""
    return tmp_path / "executed"


def call(marker: Path) -> dict[str, Any]:
    """A node that makes the marker."""
    return {"_target_": "os.mkdir", "path": str(marker)}


def assert_refused(code: int, err: str, marker: Path, *words: str) -> None:
    assert code == 1, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert not marker.exists()
    for word in words:
        assert word in err


def faces(path: Path) -> Path:
    """A small data set for `audit`."""
    pixels = [" ".join([str(i)] * 2304) for i in range(8)]
    path.write_text("emotion,pixels,Usage\n" + "".join(f"{i % 7},{p},Training\n" for i, p in enumerate(pixels)))
    return path


def change_checkpoint(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)


def change_yaml(path: Path, change: Callable[[Any], None]) -> None:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


class TestTargets:
    """Which targets a file may name."""

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "pathlib.Path.touch",
            "builtins.eval",
            "fer_lightning.app.os.system",
            "fer_lightning.report.files.write_atomically",
            "fer_lightning.runs.sweeps.NoteSweep",
            "fer_lightning.models.resnet.ResNet.__init__",
            "fer_lightning.models.resnet.ResNet ",
            "lightning.pytorch.callbacks.model_checkpoint.os.system",
            "lightning.pytorch.callbacks.lambda_function",
            "lightning.pytorch.Trainer",
            "torch.optim.Adam.step",
            "torch.optim._functional",
            "torch.optim.lr_scheduler.partial",
            "torch.load",
            "${oc.env:HOME}",
            "",
            None,
            ["os.system"],
        ],
    )
    @pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"a": [{"_args_": [n]}]}], ids=["node", "nested"])
    def test_target_from_file_is_refused(self, target: object, wrap: Callable[[Any], Any]) -> None:
        with pytest.raises(UserError, match=r"file\.yaml") as refused:
            check_targets(wrap({"_target_": target}), where="file.yaml")
        assert "--trust" in str(refused.value)
        check_targets(wrap({"_target_": target}), where="file.yaml", trust=True)

    @pytest.mark.parametrize(
        "target",
        [
            "lightning.pytorch.callbacks.ModelCheckpoint",
            "lightning.pytorch.loggers.CSVLogger",
            "torch.optim.AdamW",
            "torch.optim.lr_scheduler.ReduceLROnPlateau",
        ],
    )
    def test_library_class_is_allowed(self, target: str) -> None:
        check_targets({"_target_": target}, where="file.yaml")

    def test_own_targets_are_those_that_the_config_groups_name(self) -> None:
        configs = [yaml.safe_load(path.read_text()) for path in CONF.rglob("*.yaml")]
        used = {target for target in targets_in(configs) if target.startswith("fer_lightning.")}
        assert used - own_targets() == {"fer_lightning.runs.sweeps.NoteSweep"}  # Hydra's callback: no file needs it
        assert own_targets() < used

    def test_deep_nesting_is_walked_without_recursion(self) -> None:
        node: Any = {"_target_": "os.system"}
        for _ in range(100_000):
            node = [node]
        with pytest.raises(UserError, match=r"os\.system"):
            check_targets(node, where="file.yaml")


class TestScoring:
    """`evaluate` and `audit --run`."""

    @pytest.fixture(params=["evaluate", "audit"])
    def score(self, request: pytest.FixtureRequest, command: Command, tmp_path: Path) -> Command:
        def score(folder: Path, *options: str) -> tuple[int, str]:
            if request.param == "evaluate":
                return command("evaluate", folder, "--accelerator", "cpu", *options)
            source = faces(tmp_path / "faces.csv")
            out = tmp_path / "audit"
            return command("audit", source, "--no-near", "--run", folder, "--out", out, *options)

        return score

    def test_target_in_hyperparameters(self, score: Command, folder: Path, marker: Path) -> None:
        change_checkpoint(
            folder / "checkpoints/best.ckpt",
            lambda c: c["hyper_parameters"]["model"].update(zero_init_last=call(marker)),
        )
        assert_refused(*score(folder), marker, "os.mkdir", "best.ckpt", "--trust")
        score(folder, "--trust")
        assert marker.is_dir()  # the attack works where it is allowed

    @pytest.mark.parametrize("key", ["model", "data", "callbacks"])
    def test_target_in_config(self, score: Command, folder: Path, marker: Path, key: str) -> None:
        change_yaml(folder / "config.yaml", lambda c: c[key].update(evil=[call(marker)]))
        assert_refused(*score(folder), marker, "os.mkdir", "config.yaml", "--trust")

    @pytest.mark.parametrize("keys", [["trainer"], ["data", "path"], ["model"]], ids=".".join)
    def test_key_missing_in_config(self, score: Command, folder: Path, marker: Path, keys: list[str]) -> None:
        def remove(config: dict[str, Any]) -> None:
            for key in keys[:-1]:
                config = config[key]
            del config[keys[-1]]

        change_yaml(folder / "config.yaml", remove)
        assert_refused(*score(folder), marker, "config.yaml", f"{'.'.join(keys)} is missing")

    def test_data_at_a_url(self, score: Command, folder: Path, marker: Path) -> None:
        change_yaml(folder / "config.yaml", lambda config: config["data"].update(path="https://example.invalid/f.csv"))
        assert_refused(*score(folder), marker, "https://example.invalid/f.csv", "add --trust to download")

    def test_wrong_type_in_config(self, score: Command, folder: Path, marker: Path) -> None:
        change_yaml(folder / "config.yaml", lambda c: c.update(trainer=[1]))
        assert_refused(*score(folder), marker, "config.yaml", "Trainer")

    def test_interpolation_in_config(self, score: Command, folder: Path, marker: Path) -> None:
        text = "${oc.decode:'{_target_: os.mkdir}'}"
        change_yaml(folder / "config.yaml", lambda c: c["model"].update(depth=text))
        assert_refused(*score(folder), marker, "oc.decode", "config.yaml")

    @pytest.mark.parametrize(
        "forge", ["pickle", "legacy", "truncated", "compressed", "10 GB", "tensor of 10 GB", "zip"]
    )
    def test_hostile_checkpoint(self, score: Command, folder: Path, marker: Path, forge: str) -> None:
        path = folder / "checkpoints/best.ckpt"
        path.write_bytes(forged(path, forge, marker))
        assert_refused(*score(folder), marker, "best.ckpt: damaged or not a checkpoint of this project")

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            ({"_target_": "fer_lightning.models.vgg.VGG", "width": 4096}, "does not fit its network"),
            ({"_target_": "fer_lightning.models.vit.ViT", "depth": 10**5}, "more layers than weights"),
        ],
    )
    def test_checkpoint_of_a_huge_network(
        self, score: Command, folder: Path, marker: Path, model: dict[str, Any], reason: str
    ) -> None:
        path = folder / "checkpoints/best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["hyper_parameters"]["model"] = model
        torch.save(checkpoint, path)
        assert_refused(*score(folder), marker, "best.ckpt: damaged, or not a checkpoint of this project", reason)


def forged(path: Path, kind: str, marker: Path) -> bytes:
    """A hostile checkpoint made of a good one."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    out = io.BytesIO()
    if kind == "pickle":
        return pickle.dumps(Evil())
    if kind == "legacy":
        torch.save({"state_dict": Evil()}, out, _use_new_zipfile_serialization=False)
        return out.getvalue()
    if kind == "truncated":
        return path.read_bytes()[:5000]
    if kind == "tensor of 10 GB":  # unpickling would allocate it

        class Huge:
            def __reduce__(self) -> Any:
                return torch.Tensor, (2_500_000_000,)

        torch.save({"state_dict": {"w": Huge()}}, out)
        return out.getvalue()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("hello.txt", "not a checkpoint")
        return out.getvalue()
    method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(out, "w", method) as archive:
        for name in good.namelist():
            content = good.read(name)
            if kind == "10 GB" and name.endswith("data.pkl"):
                content = claiming_10_gb(content)
            archive.writestr(name, content)
    return out.getvalue()


def claiming_10_gb(header: bytes) -> bytes:
    """The number of elements of the first storage, replaced by one whose tensor would take 10 GB."""
    import pickletools

    operations = list(pickletools.genops(header))
    at = next(i for i, (opcode, *_) in enumerate(operations) if opcode.name == "BINPERSID")
    at = max(i for i in range(at) if operations[i][0].name in ("BININT1", "BININT2", "BININT"))
    begin, end = operations[at][2], operations[at + 1][2]
    return header[:begin] + b"\x8a\x05" + (2_500_000_000).to_bytes(5, "little") + header[end:]


class TestCompare:
    """`compare` reads configs and tables, and instantiates nothing."""

    def test_targets_are_not_called(self, command: Command, folder: Path, marker: Path, tmp_path: Path) -> None:
        change_yaml(folder / "config.yaml", lambda c: c["model"].update(call(marker)))
        code, err = command("compare", folder, "--out", tmp_path / "comparison", "--resamples", 100)
        assert code == 0, err
        assert not marker.exists()

    @pytest.mark.parametrize(
        "text",
        [
            "model: !!python/object/apply:os.mkdir [{marker}]",
            "a: &a [x, x]\nb: &b [*a, *a]\nmodel: [*b, *b]",
            "model: [",
            "just text",
            "- a list",
            "\x00",
        ],
    )
    def test_hostile_config(self, command: Command, folder: Path, marker: Path, tmp_path: Path, text: str) -> None:
        (folder / "config.yaml").write_text(text.format(marker=marker))
        assert_refused(*command("compare", folder, "--out", tmp_path / "comparison"), marker, "config.yaml")

    def test_size_of_the_config_is_limited(self, command: Command, folder: Path, marker: Path, tmp_path: Path) -> None:
        path = folder / "config.yaml"
        path.write_text(path.read_text() + "#\n" * 600_000)
        out = tmp_path / "comparison"
        assert_refused(*command("compare", folder, "--out", out), marker, "config.yaml", "bytes, more than 1,048,576")

    @pytest.mark.parametrize(
        ("before", "after", "problem"),
        [
            ("clean", "spotless", "no column clean"),
            (",happy,happy,", ",happy,merry,", "prediction 'merry' is not one of its classes"),
            (",happy,happy,", ",merry,happy,", "label 'merry' is not one of its classes"),
            ("0.4,True,", "0.4,2,", "clean is not True or False"),
        ],
    )
    def test_foreign_predictions(
        self, command: Command, folder: Path, marker: Path, tmp_path: Path, before: str, after: str, problem: str
    ) -> None:
        path = folder / "report/predictions.csv"
        text = path.read_text() + "x,private,happy,happy,True,0.4,True" + ",0.1" * 7 + "\n"
        assert before in text
        path.write_text(text.replace(before, after))
        out = tmp_path / "comparison"
        assert_refused(*command("compare", folder, "--out", out), marker, "predictions.csv", problem)

    @pytest.mark.parametrize("content", ["[1]", "[" * 100_000, "{"])
    def test_hostile_metrics(self, command: Command, folder: Path, marker: Path, tmp_path: Path, content: str) -> None:
        (folder / "metrics.json").write_text(content)
        assert_refused(*command("compare", folder, "--out", tmp_path / "comparison"), marker, "metrics.json")


def test_cache_folder_of_a_run_is_used_only_if_it_is_a_cache(folder: Path, marker: Path) -> None:
    change_yaml(folder / "config.yaml", lambda config: config["data"].update(cache_dir=str(marker)))
    assert settings_of(folder, trust=False)["data"]["cache_dir"] is None
    assert settings_of(folder, trust=True)["data"]["cache_dir"] == str(marker)
    (marker / f"v{FORMAT}").mkdir(parents=True)
    assert settings_of(folder, trust=False)["data"]["cache_dir"] == str(marker)


class TestResume:
    """`resume=<folder>`."""

    EVIL = "{{_target_: os.mkdir, path: {marker}}}"

    @pytest.mark.parametrize(
        "override",
        [
            "+callbacks.evil=" + EVIL,
            "++callbacks.evil=[" + EVIL + "]",
            "+callbacks.early_stopping.a={{b: [1, " + EVIL + "]}}",
            "+callbacks.evil._target_=os.mkdir",
            "'model._target_=os.mkdir'",
            "model._target_=fer_lightning.app.os.mkdir",
            "model._target_=fer_lightning.models.resnet.ResNet,os.mkdir",
            "model.depth=${{oc.decode:'[1]'}}",
            "model.depth=${{oc.env:HOME}}",
            "model=../../evil",
            "model={marker}",
            "callbacks=[default,../../evil]",
            "model=" + EVIL,
            "imbalance@hydra.callbacks=none",
            "+hydra.callbacks.evil=" + EVIL,
            "hydra.launcher._target_=os.mkdir",
            "hydra.launcher.setup=[touch {marker}]",
            "hydra.sweeper.params={{+callbacks.evil._target_: os.mkdir}}",
            "hydra.sweeper.params.model._target_='os.mkdir, os.rmdir'",
            "hydra.searchpath=[file://{marker}]",
            "hydra.job.env_set={{LD_PRELOAD: evil.so}}",
            "+hydra.job_logging.handlers.evil=" + EVIL,
            "hydra.job_logging.handlers.file.filename={marker}",
            "hydra.output_subdir={marker}",
            "hydra.sweep.subdir=../../x",
            "--config-dir={marker}",
            "not an override",
            "callbacks.checkpoint.dirpath={marker}",
            "callbacks.checkpoint.dirpath=relative",
            "callbacks.checkpoint.filename=../../{marker.name}",
            "+callbacks.mine={{_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: {marker}}}",
            "+logger.mine={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: ~/x}}",
            "+logger.mine.tracking_uri=https://example.org",
        ],
    )
    @pytest.mark.parametrize("file", ["overrides.yaml", "multirun.yaml"])
    def test_recorded_override(self, train: Train, folder: Path, marker: Path, override: str, file: str) -> None:
        recorded = [*TINY, override.format(marker=marker).strip("'" if override[0] == "'" else "")]
        if file == "multirun.yaml":
            (folder / file).write_text(yaml.safe_dump({"hydra": {"overrides": {"task": recorded, "hydra": []}}}))
        else:
            (folder / ".hydra" / file).write_text(yaml.safe_dump(recorded))
        run = train(f"resume={folder}")
        assert_refused(run.code, run.err, marker, file)

    def test_trust_accepts_recorded_targets(self, train: Train, folder: Path, marker: Path) -> None:
        recorded = [*TINY, "trainer.max_epochs=1", f"+callbacks.evil={{_target_: os.mkdir, path: {marker}}}"]
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(recorded))
        assert "trust=true" in train(f"resume={folder}").err
        (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump([*recorded, "trust=true"]))
        assert "trust=true" in train(f"resume={folder}").err  # the folder cannot vouch for itself
        assert not marker.exists()
        shutil.rmtree(folder / "checkpoints")
        (folder / "metrics.json").unlink()
        (folder / "metrics.csv").unlink()
        with pytest.raises(AttributeError):  # `os.mkdir` returns no callback
            train(f"resume={folder}", "trust=true", folder=folder)
        assert marker.is_dir()

    def test_typed_target_is_the_user_s(self, train: Train, folder: Path) -> None:
        run = train(f"resume={folder}", "model._target_=tests.interruptions.SmallNetwork")
        assert "the config is not the one" in run.err  # past the check of targets

    def test_targets_of_a_typed_config_folder_are_the_user_s(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "mine/model").mkdir(parents=True)
        (tmp_path / "mine/model/own.yaml").write_text("_target_: mine.Network\n")
        (folder / ".hydra/overrides.yaml").write_text("- model._target_=mine.Network\n")
        with pytest.raises(UserError, match=r"mine\.Network"):
            expand([f"resume={folder}"])
        arguments = expand([f"resume={folder}", "--config-dir", str(tmp_path / "mine"), "seed=1"])
        assert arguments[:3] == ["--config-dir", str(tmp_path / "mine"), "model._target_=mine.Network"]
        assert arguments[3] == "seed=1"

    @pytest.mark.parametrize(
        ("keys", "value"),
        [
            (["runtime", "config_sources"], [{"provider": "command-line", "path": "evil", "schema": "file"}]),
            (["job", "config_name"], "../../evil"),
        ],
    )
    def test_recorded_config_folder(
        self, train: Train, folder: Path, marker: Path, keys: list[str], value: object
    ) -> None:
        change_yaml(folder / ".hydra/hydra.yaml", lambda c: c["hydra"][keys[0]].update({keys[1]: value}))
        run = train(f"resume={folder}")
        assert_refused(run.code, run.err, marker, "trust=true")

    def test_working_directory_within_the_folder(self, train: Train, folder: Path, marker: Path) -> None:
        change_yaml(folder / ".hydra/hydra.yaml", lambda c: c["hydra"]["runtime"].update(cwd=str(folder)))
        run = train(f"resume={folder}")
        assert_refused(run.code, run.err, marker, "working directory")

    @pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir [{marker}]", "&a [x, *a]", "a: 1", "[", "\x00"])
    @pytest.mark.parametrize("file", [".hydra/overrides.yaml", ".hydra/hydra.yaml", "multirun.yaml"])
    def test_hostile_yaml(self, train: Train, folder: Path, marker: Path, text: str, file: str) -> None:
        (folder / file).write_text(text.format(marker=marker))
        run = train(f"resume={folder}")
        assert_refused(run.code, run.err, marker, Path(file).name)

    def test_link_out_of_the_folder(self, train: Train, folder: Path, marker: Path, tmp_path: Path) -> None:
        (tmp_path / "profile").write_text("")
        (folder / "train.log").unlink(missing_ok=True)
        (folder / "train.log").symlink_to(tmp_path / "profile")
        run = train(f"resume={folder}")
        assert_refused(run.code, run.err, marker, "train.log", "link")
        assert (tmp_path / "profile").read_text() == ""

    @pytest.mark.parametrize("forge", ["10 GB", "tensor of 10 GB"])
    def test_hostile_checkpoint(self, train: Train, folder: Path, marker: Path, forge: str) -> None:
        path = folder / "checkpoints/last.ckpt"
        path.write_bytes(forged(path, forge, marker))
        (folder / "metrics.json").unlink()
        run = train(f"resume={folder}", folder=folder)
        assert run.code == 0, run.err  # resumed from the checkpoint before it
        assert f"{path} is damaged" in (folder / "train.log").read_text()

    def test_pickle_named_last_is_not_loaded(self, train: Train, folder: Path, marker: Path) -> None:
        path = folder / "checkpoints/last.ckpt"
        path.write_bytes(forged(path, "pickle", marker))
        (folder / "metrics.json").unlink()
        run = train(f"resume={folder}", folder=folder)
        assert run.code == 0 and "is damaged" in (folder / "train.log").read_text(), run.err
        assert not marker.exists()

    @pytest.mark.parametrize(
        "overrides",
        [
            ["sweep=optuna", "hydra.sweeper.n_trials=2", "imbalance=focal", "knobs=focal"],
            ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=0,1", "trainer.devices=1,2"],
            ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=600"],
            ["sweep=imbalance", "hydra.sweeper.params.seed='0,1'", "protocol.fold=range(5)"],
            ["data.path=/data/fer2013.csv", "data.cache_dir=/scratch", "logger=[csv,tensorboard]"],
            ["+callbacks.rate={_target_: lightning.pytorch.callbacks.LearningRateMonitor}", "~callbacks.last"],
            ["optimizer=adamw", "optimizer.lr=1e-3,1e-4", "imbalance=glob(*)", "data.classes=[happy,sad]"],
        ],
    )
    def test_documented_overrides_need_no_trust(self, tmp_path: Path, overrides: list[str]) -> None:
        hydra = {"hydra": {"overrides": {"task": [], "hydra": []}, "runtime": {"cwd": str(tmp_path)}}}
        sweep = tmp_path / "sweep"
        sweep.mkdir()
        for override in overrides:
            hydra["hydra"]["overrides"]["hydra" if "hydra" in override else "task"].append(override)
        (sweep / "multirun.yaml").write_text(yaml.safe_dump(hydra))
        home = Path.cwd()
        try:
            arguments = expand([f"resume={sweep}"])
        finally:
            os.chdir(home)
        assert set(overrides) <= set(arguments)


def test_checkpoint_paths_stay_in_their_folder(finished: Path, tmp_path: Path) -> None:
    """ModelCheckpoint removes the files that its state names."""
    from fer_lightning.runs.checkpoints import WholeCheckpointIO

    path = tmp_path / "checkpoints/last.ckpt"
    path.parent.mkdir()
    shutil.copy(finished / "checkpoints/last.ckpt", path)
    victim = f"{path.parent}/../victim"

    def attack(checkpoint: dict[str, Any]) -> None:
        (state,) = (s for name, s in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
        state |= {"kth_best_model_path": victim, "last_model_path": victim, "best_k_models": {victim: torch.tensor(1)}}

    change_checkpoint(path, attack)
    checkpoint = WholeCheckpointIO().load_checkpoint(path)
    (state,) = (s for name, s in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
    paths = [state["kth_best_model_path"], state["last_model_path"], *state["best_k_models"], state["best_model_path"]]
    assert {str(Path(p).parent) for p in paths} == {str(path.parent)}
    assert all(".." not in p for p in paths)


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


class TestSources:
    """What the package's own code never does."""

    FORBIDDEN: ClassVar = {
        "torch.load": "runs/checkpoints.py",
        "torch.jit.load": None,
        "pickle.load": None,
        "pickle.loads": None,
        "pickle.Unpickler": None,
        "pd.read_pickle": None,
        "joblib.load": None,
        "yaml.load": None,
        "yaml.unsafe_load": None,
        "eval": None,
        "exec": None,
        "instantiate": "config/instantiate.py",
        "hydra.utils.instantiate": None,
        "hydra.utils.call": None,
    }
    """Functions, and the only module that may call them."""

    @pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
    def test_module_unpickles_nothing(self, path: Path) -> None:
        tree = ast.parse(path.read_text())
        module = path.relative_to(PACKAGE).as_posix()
        for node in calls(tree):
            name = ast.unparse(node.func)
            assert self.FORBIDDEN.get(name, module) == module, f"line {node.lineno}: {name}"
            assert not name.endswith("load_from_checkpoint"), f"line {node.lineno}: {name}"
            if name.endswith(("save_checkpoint", "dump_checkpoint")):  # there it says what is saved
                continue
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert (keyword.arg, value) not in (("weights_only", False), ("allow_pickle", True)), node.lineno
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and module != "config/instantiate.py":
                names = {alias.name for alias in node.names}
                assert not (node.module == "hydra.utils" and names & {"instantiate", "call"}), node.lineno
                assert node.module != "pickle", node.lineno
