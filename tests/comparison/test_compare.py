"""Comparing runs: grouping, statistics and conclusions, against scikit-learn, SciPy and by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from typer.testing import CliRunner

from fer_lightning.cli import cli
from fer_lightning.comparison.collect import collect
from fer_lightning.comparison.conclusions import conclusions
from fer_lightning.comparison.figures import accuracy_f1
from fer_lightning.comparison.resampling import resampled, seed_noise, simultaneous
from fer_lightning.comparison.statistics import Comparison, compare, mcnemar_p, mean_shares
from fer_lightning.comparison.tables import latex, markdown, pairwise, summary
from fer_lightning.comparison.write import compare_runs
from fer_lightning.errors import UserError
from fer_lightning.report import tables
from fer_lightning.runs.folder import PIXELS
from tests.conftest import SMALL, Run

CLASSES = ("angry", "happy", "sad_&_lonely")
N = 400
LABELS = np.random.default_rng(2013).choice(3, N, p=[0.2, 0.7, 0.1])


def make_run(
    folder: Path,
    skill: float,
    seed: int = 0,
    labels: np.ndarray = LABELS,
    finished: bool = True,
    pixels: str = "",
    **keys: Any,
) -> Path:
    """A run folder as a job writes it, of a network that knows the answer with probability `skill`."""
    rng = np.random.default_rng([seed, round(1000 * skill)])
    guesses = np.where(rng.random(len(labels)) < skill, labels, rng.integers(0, 3, len(labels)))
    probabilities = np.full((len(labels), 3), 0.2)
    probabilities[np.arange(len(labels)), guesses] = 0.6
    clean = np.arange(len(labels)) % 10 > 0
    ids = [f"{i:03}" for i in range(len(labels))]
    frame = tables.predictions(ids, ["private"] * len(labels), labels, probabilities, clean, CLASSES)
    (folder / "report").mkdir(parents=True)
    frame.to_csv(folder / "report/predictions.csv", index=False)
    config: dict[str, Any] = {
        "seed": seed,
        "data": {"twins": "exact"},
        "imbalance": {"name": "none", "resample": {"seed": seed}},
        "logger": {"a": 1},
    }
    for key, value in keys.items():
        node = config
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if finished:
        (folder / "metrics.json").write_text(json.dumps({PIXELS: pixels}))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies of different skill and one similar to the first, three seeds each, and an unfinished job."""
    folder = tmp_path_factory.mktemp("sweep")
    jobs = [(0.5, {}), (0.8, {"imbalance__name": "weighted", "imbalance__loss__weights": "inverse"}),
            (0.51, {"imbalance__name": "focal", "imbalance__loss__gamma": 2.0})]  # fmt: skip
    for number, ((skill, keys), seed) in enumerate((job, seed) for job in jobs for seed in range(3)):
        make_run(folder / str(number), skill, seed, logger__run=number, **keys)
    make_run(folder / "9", 0.5, 7, finished=False)
    return folder


@pytest.fixture(scope="module")
def comparison(sweep: Path) -> Comparison:
    return compare(collect([sweep])[0])


def test_settings_are_named_by_differing_keys_and_group_seeds(sweep: Path) -> None:
    settings, unfinished = collect([sweep])
    assert [setting.name for setting in settings] == ["none", "weighted", "focal"]
    assert [[run.seed for run in setting.runs] for setting in settings] == [[0, 1, 2]] * 3
    assert unfinished == [sweep / "9"]


def test_names_have_as_many_keys_as_needed(tmp_path: Path) -> None:
    rates = {"a": {}, "b": {"optimizer__lr": 0.1}, "c": {"optimizer__lr": 0.1, "imbalance__name": "weighted"}}
    for name, keys in rates.items():
        make_run(tmp_path / name, 0.5, **{"optimizer__lr": 0.01, **keys})
    settings, _ = collect([tmp_path / name for name in rates])
    assert [s.name for s in settings] == [
        "none, optimizer.lr=0.01",
        "none, optimizer.lr=0.1",
        "weighted, optimizer.lr=0.1",
    ]


def test_settings_that_change_one_part_each_are_named_by_it(tmp_path: Path) -> None:
    parts = {"optimizer__lr": 0.2, "model__width": 32, "augment__erase": 0.5, "schedule__warmup": 0.1}
    usual: dict[str, Any] = {"optimizer__lr": 0.1, "model__width": 16, "augment__erase": 0.0, "schedule__warmup": 0.0}
    for number, change in enumerate([{}, *({key: value} for key, value in parts.items())]):
        for seed in (0, 1):
            make_run(tmp_path / f"{number}-{seed}", 0.5 + number / 50, seed, **(usual | change))
    settings, _ = collect([tmp_path])
    names = ["optimizer.lr=0.2", "model.width=32", "augment.erase=0.5", "schedule.warmup=0.1"]
    assert [setting.name for setting in settings] == ["common", *names]
    assert compare(settings, resamples=200).baseline == "common"


def test_one_batch_and_all_batches_are_different_settings(tmp_path: Path) -> None:
    for name, limit in {"a": 1, "b": 1.0}.items():
        make_run(tmp_path / name, 0.5, trainer__limit_train_batches=limit)
    settings, _ = collect([tmp_path])
    assert [s.name for s in settings] == ["trainer.limit_train_batches=1", "trainer.limit_train_batches=1.0"]


def test_lists_are_named_as_in_an_override(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, data__drop=[])
    make_run(tmp_path / "b", 0.6, data__drop=["blank", "leaks"])
    assert [setting.name for setting in collect([tmp_path])[0]] == ["data.drop=[]", "data.drop=[blank,leaks]"]


def test_value_equal_to_the_seed_is_still_a_setting(tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path / str(seed), 0.5, seed, imbalance__loss__gamma=float(seed))
    assert [s.name for s in collect([tmp_path])[0]] == ["imbalance.loss.gamma=1.0", "imbalance.loss.gamma=2.0"]


def test_data_paths_distinguish_settings_only_if_nothing_else_does(tmp_path: Path) -> None:
    for seed, path in ((0, "/a/fer2013.csv"), (1, "/b/fer2013.csv.gz")):
        make_run(tmp_path / str(seed), 0.5, seed, data__path=path)
    (setting,) = collect([tmp_path])[0]
    assert [run.seed for run in setting.runs] == [0, 1] and setting.beside == ("data.path",)
    assert "runs differ in data.path" in conclusions(compare([setting], resamples=200))[1]
    make_run(tmp_path / "2", 0.6, 0, data__path="/b/fer2013.csv.gz")
    settings, _ = collect([tmp_path])
    assert [s.name for s in settings] == ["data.path=/a/fer2013.csv", "data.path=/b/fer2013.csv.gz"]
    assert settings[0].beside == ()


def test_differences_not_in_the_names_are_reported(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"model__depth": 50, "optimizer__lr": 0.1}
    make_run(tmp_path / "a", 0.5, imbalance__loss__weights=None)
    make_run(tmp_path / "b", 0.6, imbalance__name="weighted", imbalance__loss__weights="inverse", **keys)
    settings, _ = collect([tmp_path])
    assert [s.name for s in settings] == ["none", "weighted"]
    assert settings[0].beside == ("model.depth", "optimizer.lr")
    text = " ".join(conclusions(compare(settings, resamples=200)))
    assert "Besides name and seed, the runs differ in model.depth and optimizer.lr" in text


def test_digests_name_settings_by_their_files(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, data__relabel=None, data__relabel_digest=None)
    make_run(tmp_path / "b", 0.6, data__relabel="new.csv", data__relabel_digest="9f3c77aa")
    make_run(tmp_path / "c", 0.6, 1, data__relabel="moved/new.csv", data__relabel_digest="9f3c77aa")
    settings, _ = collect([tmp_path / "a", tmp_path / "b"])
    assert [(s.name, s.beside) for s in settings] == [("data.relabel=None", ()), ("data.relabel=new.csv", ())]
    settings, _ = collect([tmp_path])
    assert [s.name for s in settings] == ["data.relabel_digest=None", "data.relabel_digest=9f3c77aa"]


def test_teachers_of_another_place_are_the_same_setting(tmp_path: Path) -> None:
    for seed, place in enumerate("ab"):
        teachers = {"distill__teachers": [f"/{place}/teacher"], "distill__digests": ["9f3c77aa"]}
        make_run(tmp_path / place, 0.5, seed, **teachers)
    (setting,) = collect([tmp_path])[0]
    assert [run.seed for run in setting.runs] == [0, 1]


@pytest.mark.parametrize("key", ["init_from", "distill__digests"])
def test_a_start_or_teacher_of_each_seed_is_one_setting(key: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        for factor in (1.0, 0.03):
            start = f"/before-{seed}"
            keys = {key: start if key == "init_from" else [start], "finetune__backbone_lr_factor": factor}
            make_run(tmp_path / f"{seed}-{factor}", 0.5, seed, **keys)
    settings, _ = collect([tmp_path])
    assert [[run.seed for run in setting.runs] for setting in settings] == [[0, 1], [0, 1]]


def test_folds_are_runs_of_one_setting(tmp_path: Path) -> None:
    for fold in (1, 0, 2):
        for name, skill in (("none", 0.5), ("weighted", 0.6)):
            keys = {"imbalance__name": name, "protocol__name": "kfold", "protocol__fold": fold}
            make_run(tmp_path / f"{name}-{fold}", skill, **keys)
    settings, _ = collect([tmp_path])
    assert [s.name for s in settings] == ["none", "weighted"]
    assert [[run.fold for run in setting.runs] for setting in settings] == [[0, 1, 2], [0, 1, 2]]
    assert compare(settings, resamples=200).table["seeds"].tolist() == [3, 3]
    make_run(tmp_path / "again", 0.7, **keys)
    with pytest.raises(UserError, match="have the same setting and seed"):
        collect([tmp_path])


def test_paths_in_run_folders_are_the_same_setting(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_run(tmp_path / str(seed), 0.5, seed, callbacks__mine__path="<run folder>/mine.csv")
    (setting,) = collect([tmp_path])[0]
    assert [run.seed for run in setting.runs] == [0, 1]


def test_a_folder_of_any_name_is_read(tmp_path: Path) -> None:
    make_run(tmp_path / "²" / "0", 0.5)
    assert len(collect([tmp_path])[0]) == 1


def test_config_files_of_hydra_and_wandb_are_not_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "0", 0.5)
    for folder in (".hydra", "wandb/run-x/files"):
        (run / folder).mkdir(parents=True)
        (run / folder / "config.yaml").write_text("a: 1")
    settings, unfinished = collect([tmp_path])
    assert len(settings) == 1 and not unfinished


def test_run_given_twice_counts_once(sweep: Path) -> None:
    settings, _ = collect([sweep / "0", sweep, sweep / "../" / sweep.name / "0"])
    assert sum(len(setting.runs) for setting in settings) == 9


def test_scores_of_settings_equal_scikit_learn(comparison: Comparison) -> None:
    for setting, row in zip(comparison.settings, comparison.table.to_dict("records"), strict=True):
        accuracy = [np.mean(run.guesses == LABELS) for run in setting.runs]
        assert row["accuracy"] == pytest.approx(np.mean(accuracy))
        assert row["accuracy_sd"] == pytest.approx(np.std(accuracy, ddof=1))
        f1 = [f1_score(LABELS, run.guesses, average="macro") for run in setting.runs]
        assert (row["f1_macro"], row["f1_macro_sd"]) == pytest.approx((np.mean(f1), np.std(f1, ddof=1)))
        balanced = [balanced_accuracy_score(LABELS, run.guesses) for run in setting.runs]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(balanced))
        recall = np.mean([recall_score(LABELS, run.guesses, average=None) for run in setting.runs], axis=0)
        assert [row[f"recall/{name}"] for name in CLASSES] == pytest.approx(recall.tolist())
        assert mean_shares(setting).diagonal() == pytest.approx(recall)


def test_resampled_scores_equal_scores_of_the_drawn_images(sweep: Path) -> None:
    (setting,) = collect([sweep / "3"])[0]
    drawn = resampled([setting], 5, seed=1)
    weights = np.random.default_rng(1).multinomial(N, np.full(N, 1 / N), 5)
    guesses = setting.runs[0].guesses
    for i, weight in enumerate(weights):
        assert drawn["accuracy"][0, i] == pytest.approx(np.average(guesses == LABELS, weights=weight))
        expected = f1_score(LABELS, guesses, average="macro", sample_weight=weight)
        assert drawn["f1_macro"][0, i] == pytest.approx(expected)
        expected = balanced_accuracy_score(LABELS, guesses, sample_weight=weight)
        assert drawn["balanced_accuracy"][0, i] == pytest.approx(expected)


def test_interval_of_one_difference_equals_scipy(sweep: Path) -> None:
    settings, _ = collect([sweep / "0", sweep / "3"])
    right = [setting.runs[0].guesses == LABELS for setting in settings]
    expected = stats.bootstrap(
        right, lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, n_resamples=20_000, method="basic"
    ).confidence_interval
    drawn = resampled(settings, 20_000)["accuracy"]
    low, high = simultaneous(right[0].mean() - right[1].mean(), [(drawn[0] - drawn[1])[None]])
    assert (low[0], high[0]) == pytest.approx(tuple(expected), abs=0.006)
    pair = compare(settings, resamples=20_000).pairs.iloc[0]  # wider: it holds for three scores at once
    assert low[0] - 0.02 < pair["accuracy_low"] < low[0] and high[0] < pair["accuracy_high"] < high[0] + 0.02


def test_many_settings_fit_into_the_figure(recwarn: pytest.WarningsRecorder) -> None:
    n = 60
    table = pd.DataFrame({"setting": [f"setting {i}" for i in range(n)], "accuracy": np.linspace(0.5, 0.7, n)})
    table["f1_macro"] = table["accuracy"] - 0.02
    intervals = pd.DataFrame({f"{k}_{side}": table[k] for k in ("accuracy", "f1_macro") for side in ("low", "high")})
    comparison = Comparison((), "setting 0", table[["accuracy", "f1_macro"]], table, intervals, pd.DataFrame())
    figure = accuracy_f1(comparison)
    figure.draw_without_rendering()
    assert not [w for w in recwarn if "constrained_layout" in str(w.message)]
    (axes,) = figure.axes
    bottom = min(text.get_window_extent().y0 for text in axes.texts if "setting 59" in text.get_text())
    assert bottom >= 0 and axes.get_window_extent().width > 0.3 * figure.bbox.width


def test_simultaneous_intervals_cover_all_differences_together() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        # Means of 5 groups of 50 numbers, all equal in truth; differences from the first, which are correlated.
        x = rng.normal(size=(5, 50))
        means = rng.normal(x.mean(1)[:, None], x.std(1)[:, None] / 50**0.5, (5, 500))
        low, high = simultaneous(x.mean(1)[1:] - x.mean(1)[0], [means[1:3] - means[:1], means[3:] - means[:1]])
        covered += bool(((low <= 0) & (high >= 0)).all())
    assert covered / 400 == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize(("n_settings", "n_seeds"), [(14, 3), (4, 3), (2, 5), (2, 3), (2, 2)])
@pytest.mark.parametrize("images", [0.0, 1.0])
def test_equal_settings_rarely_differ_significantly(n_settings: int, n_seeds: int, images: float) -> None:
    """Scores that vary with the seed, and with the images if asked for, only: no pair should differ significantly."""
    rng, wrong, repetitions = np.random.default_rng(0), 0, 300
    groups = np.repeat(np.arange(n_settings), n_seeds)
    first, second = np.triu_indices(n_settings, 1)
    for _ in range(repetitions):
        runs = rng.normal(size=len(groups)) + images * np.repeat(rng.normal(size=n_settings), n_seeds)
        means = runs.reshape(n_settings, n_seeds).mean(1)
        noise = seed_noise(rng, runs[:, None], groups, 500)[..., 0]
        drawn = means[:, None] + noise + images * rng.normal(size=(n_settings, 500))
        low, high = simultaneous(means[first] - means[second], [drawn[first] - drawn[second]])
        wrong += bool(((low > 0) | (high < 0)).any())
    assert wrong / repetitions < 0.10


def test_noise_of_seeds_has_the_deviation_of_a_mean() -> None:
    """σ / √n, widened by the degrees of freedom as in Student's t."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(14), [3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 2, 2, 1, 1])
    runs = rng.normal(size=len(groups)) + groups
    sizes = np.bincount(groups)
    free = len(groups) - 14
    residuals = [runs[groups == group] - runs[groups == group].mean() for group in range(14)]
    sigma = np.sqrt(sum((part**2).sum() for part in residuals) / free)
    noise = seed_noise(rng, runs[:, None], groups, 20_000)[..., 0]
    np.testing.assert_allclose(noise.std(1), sigma / np.sqrt(sizes) * np.sqrt(free / (free - 2)), rtol=0.05)
    np.testing.assert_allclose(noise.mean(1), 0, atol=0.05)


def test_mcnemar_of_several_seeds_is_twice_the_median(sweep: Path) -> None:
    a, b = (collect([sweep / job for job in jobs])[0][0] for jobs in ("012", "678"))
    p_values = []
    for one, other in zip(a.runs, b.runs, strict=True):
        right = [run.guesses == LABELS for run in (one, other)]
        only = [int((right[i] & ~right[1 - i]).sum()) for i in (0, 1)]
        p_values.append(stats.binomtest(only[0], sum(only)).pvalue)
    assert mcnemar_p(a, b) == pytest.approx(min(1, 2 * np.median(p_values)))


def test_mcnemar_equals_binomial_test_of_discordant_images(sweep: Path) -> None:
    a, b = (collect([sweep / job])[0][0] for job in ("0", "6"))
    right = [setting.runs[0].guesses == LABELS for setting in (a, b)]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    assert mcnemar_p(a, b) == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)


def test_conclusions_state_significant_differences_and_no_others(comparison: Comparison) -> None:
    first, second, *_ = conclusions(comparison)
    assert first.startswith("weighted has the highest macro-F1, 0.826 ± 0.033, ")
    assert first.endswith(", significantly higher than that of none and focal.")
    assert second == (
        "Compared with none, macro-F1 is significantly higher for weighted; not significantly different for focal."
    )
    by_weighted = conclusions(compare(comparison.settings, baseline="weighted", resamples=500))
    assert not [sentence for sentence in by_weighted if sentence.startswith("Compared")]  # the first says it all
    by_focal = conclusions(compare(comparison.settings, baseline="focal", resamples=500))
    assert (
        "Compared with focal, accuracy is significantly higher for weighted; not significantly different for none."
    ) in by_focal
    two = conclusions(compare(comparison.settings[::2], resamples=500))
    assert two[0].endswith(", not significantly different from that of none.")
    pairs = comparison.pairs.set_index(["a", "b"])
    assert pairs.at[("none", "weighted"), "f1_macro_differs"] and not pairs.at[("none", "focal"), "f1_macro_differs"]
    assert (
        pairs.at[("none", "weighted"), "mcnemar_p_holm"] < 1e-6 < 0.05 < pairs.at[("none", "focal"), "mcnemar_p_holm"]
    )


def test_conclusions_warn_of_one_seed_and_one_setting(sweep: Path) -> None:
    assert "only one seed" in " ".join(conclusions(compare(collect([sweep / "0", sweep / "3"])[0], resamples=200)))
    assert "nothing to compare" in conclusions(compare(collect([sweep / "0"])[0], resamples=200))[0]


def test_compare_writes_tables_figures_and_page(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = compare_runs([sweep], out=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *["table.csv", "runs.csv", "pairs.csv", "table.md", "table.tex", "index.html"],
        *["recall_by_class.png", "f1_by_class.png", "accuracy_f1.png", "confusion_differences.png"],
    }
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["setting"].tolist() == ["none", "weighted", "focal"]
    assert table["f1_macro"].to_numpy() == pytest.approx(comparison.table["f1_macro"].to_numpy(), rel=1e-5)
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 9 and len(pd.read_csv(tmp_path / "pairs.csv")) == 3
    html, out = (tmp_path / "index.html").read_text(), capsys.readouterr().out
    for text in (html, out):
        assert "weighted has the highest" in text and "nfinished runs, left out" in text and str(sweep / "9") in text
    for score in ("accuracy", "balanced_accuracy", "f1_macro"):
        row = comparison.pairs.set_index(["a", "b"]).loc[("none", "weighted")]
        values = [-row[f"{score}_{name}"] for name in ("difference", "high", "low")]
        text = "{:+.3f} ({:+.3f} to {:+.3f})".format(*values)
        for written in (html, out, (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()):
            assert text in written
    assert "http" not in html.replace("http-equiv", "")


def test_markdown_and_latex_tables(comparison: Comparison) -> None:
    text = markdown(summary(comparison)).splitlines()
    assert text[0].startswith("| setting | seeds | accuracy |") and text[1].startswith("|---|---:|")
    assert len(text) == 5 and "±" in text[2]
    tex = latex(pd.DataFrame({"setting": ["a_b & c"], "x": ["0.1 ± 0.2"]}), "A caption with 95 %.")
    assert r"a\_b \& c" in tex and r"$\pm$" in tex and r"\toprule" in tex and r"caption{A caption with 95 \%.}" in tex
    pairs = pairwise(comparison)
    assert pairs["setting"].tolist()[:2] == ["weighted", "weighted"] and "*" in pairs["macro-F1"][0]


def test_clean_compares_clean_images_only(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for clean in (False, True):  # one does not overwrite the other
        compare_runs([sweep / "0", sweep / "3"], clean=clean, resamples=100)
    pages = {folder: (tmp_path / folder / "index.html").read_text() for folder in ("comparison", "comparison-clean")}
    assert ["360 clean test images" in page for page in pages.values()] == [False, True]
    settings, _ = collect([sweep], clean=True)
    assert {len(run.predictions) for setting in settings for run in setting.runs} == {N * 9 // 10}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": LABELS[::-1].copy()}, "different images or labels"),
        ({"labels": LABELS[:-1]}, "400 and 399 images"),
        ({"pixels": "other"}, "different pixels"),
        ({"optimizer": None}, "same setting and seed"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(other: Mapping[str, Any], message: str, tmp_path: Path) -> None:
    keys = {key: value for key, value in other.items() if key != "optimizer"}
    folders = [make_run(tmp_path / "a", 0.5), make_run(tmp_path / "b", 0.6, **keys)]
    with pytest.raises(UserError, match=message) as error:
        collect(folders)
    assert all(str(folder) in str(error.value) for folder in folders)


def test_clean_requires_the_same_definition_in_all_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5, data__twins="near")
    make_run(tmp_path / "b", 0.6)
    assert len(collect([tmp_path])[0]) == 2
    with pytest.raises(UserError, match=r"data.twins=near, .*b data.twins=exact: compare them without --clean"):
        collect([tmp_path], clean=True)


def test_folders_without_runs_are_named_in_the_error(tmp_path: Path) -> None:
    for folder, message in ((tmp_path, "contains no run"), (tmp_path / "none", "no such folder")):
        with pytest.raises(UserError, match=message):
            collect([folder])
    make_run(tmp_path / "x", 0.5, finished=False)
    with pytest.raises(UserError, match="no finished run"):
        collect([tmp_path])


def test_class_names_that_look_like_numbers_or_missing_values(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 0.5)
    path = tmp_path / "a/report/predictions.csv"
    path.write_text(path.read_text().replace("angry", "nan").replace("happy", "007"))
    (setting,) = collect([tmp_path / "a"])[0]
    assert setting.runs[0].classes[:2] == ("nan", "007") and (setting.runs[0].labels >= 0).all()


def test_a_folder_that_cannot_be_written_is_reported_before_comparing(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("fer_lightning.comparison.write.compare", None)  # is not reached
    with pytest.raises(UserError, match=r"cannot be written .* --out"):
        compare_runs([sweep], out=tmp_path / "file" / "x")


def test_compare_command(sweep: Path, tmp_path: Path) -> None:
    ended = CliRunner().invoke(cli, ["compare", str(sweep), "--out", str(tmp_path), "--resamples", "200"])
    assert ended.exit_code == 0, ended.output
    ended = CliRunner().invoke(cli, ["compare", str(sweep), "--baseline", "nothing"])
    assert isinstance(ended.exception, UserError) and "none; weighted; focal" in str(ended.exception)


@pytest.mark.slow
def test_scores_equal_metrics_json_of_trained_runs(train: Callable[..., Run], tmp_path: Path) -> None:
    for strategy, seed in product(("none", "balanced"), (0, 1)):
        run = train(*SMALL, f"imbalance={strategy}", f"seed={seed}", folder=tmp_path / f"{strategy}{seed}")
        assert run.code == 0, run.err
    comparison = compare_runs([tmp_path], resamples=200)
    assert [(setting.name, len(setting.runs)) for setting in comparison.settings] == [("balanced", 2), ("none", 2)]
    for row in comparison.runs.to_dict("records"):
        metrics = json.loads((Path(row["folder"]) / "metrics.json").read_text())
        for score in ("accuracy", "balanced_accuracy", "f1_macro", "ece", "recall/happy", "f1/disgust"):
            assert row[score] == pytest.approx(metrics[f"test/{score}"], abs=1e-5)
