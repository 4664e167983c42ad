"""predictions.csv is written while predicting, and a killed job resumes to the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fer_lightning.errors import UserError
from fer_lightning.inference.media.table import PROGRESS, TABLE, PredictionTable, Row
from tests.inference.media import predicting
from tests.inference.media.videos import write_video

CLASSES = ("angry", "happy, very", 'a "b"')
FACE = Row("a.jpg", face=1, box=(1.4, 2.6, 30, 40), label="angry", unsure=True, probabilities=[0.12345, 0.5, 0.37655])


INPUTS = ("a.jpg", "b.jpg")


def table(folder: Path, *, inputs: Sequence[str] = INPUTS, resume: bool = False, **options: Any) -> PredictionTable:
    return PredictionTable(folder, CLASSES, inputs=inputs, options=options, resume=resume)


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / TABLE, encoding_errors="surrogateescape")


def test_columns_and_digits(tmp_path: Path) -> None:
    with table(tmp_path) as out:
        out.add([FACE, Row("v.mp4", 7, 1 / 3, 2, (0, 0, 9, 9), "angry", False, [1, 0, 0], "small; cut")], next_input=1)
        out.add([Row("b.jpg", note="no face")], next_input=2)
        out.finish()
    lines = (tmp_path / TABLE).read_text().splitlines()
    assert lines == [
        'file,frame,time,face,x,y,width,height,label,confidence,unsure,p_angry,"p_happy, very","p_a ""b""",note',
        "a.jpg,,,1,1,3,30,40,angry,0.5000,True,0.1235,0.5000,0.3765,",
        "v.mp4,7,0.333,2,0,0,9,9,angry,1.0000,False,1.0000,0.0000,0.0000,small; cut",
        "b.jpg,,,,,,,,,,,,,,no face",
    ]
    assert read(tmp_path)["p_happy, very"].tolist()[:2] == [0.5, 0.0]


def test_odd_names_survive_pandas(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "a\r\nb.jpg", 'say "cheese", please.jpg', "ü☺.jpg", " a .jpg", "=1+1.jpg"]
    names.append(os.fsdecode(b"caf\xe9.jpg"))
    with table(tmp_path, inputs=names) as out:
        for i, name in enumerate(names):
            out.add([Row(name, note="no face")], next_input=i + 1)
    assert read(tmp_path)["file"].tolist() == names


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    out = table(tmp_path)
    assert len(read(tmp_path)) == 0
    for n in (1, 2, 3):
        out.add([FACE], next_input=n)
        assert len(read(tmp_path)) == n
    out.__exit__(None, None, None)


# ---------------------------------------------------------------- what is refused


def test_existing_table_is_not_lost(tmp_path: Path) -> None:
    with table(tmp_path) as out:
        out.add([FACE], next_input=1)
    before = (tmp_path / TABLE).read_bytes()
    with pytest.raises(UserError, match=r"predictions\.csv exists: continue it with --resume, or .* --out"):
        table(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file: choose another folder with --out"):
        table(tmp_path / "file")
    with pytest.raises(UserError, match=r"file/below.*--out"):
        table(tmp_path / "file" / "below")
    assert (tmp_path / TABLE).read_bytes() == before


def test_other_inputs_or_options_are_not_resumed(tmp_path: Path) -> None:
    with table(tmp_path, every=0.2, model="laptop") as out:
        out.add([FACE], next_input=1)
    before = (tmp_path / TABLE).read_bytes()
    for changed, message in (
        ({"every": 0.5, "model": "laptop"}, "other values of every:"),
        ({"model": "laptop"}, "other values of every:"),
        ({"every": 0.2, "model": "laptop", "tta": "flip"}, "other values of tta:"),
        ({"every": 0.1, "model": "x"}, "other values of every, model:"),
        ({"inputs": ("a.jpg", "c.jpg", "d.jpg"), "every": 0.2, "model": "laptop"}, r"other inputs \(2 then, 3 now\)"),
    ):
        with pytest.raises(UserError, match=message):
            table(tmp_path, resume=True, **changed)
    with pytest.raises(UserError, match="other values of classes"):
        PredictionTable(tmp_path, ["x"], inputs=INPUTS, options={"every": 0.2, "model": "laptop"}, resume=True)
    assert (tmp_path / TABLE).read_bytes() == before


def test_damaged_progress_is_one_line(tmp_path: Path) -> None:
    with table(tmp_path) as out:
        out.add([FACE], next_input=1)
    good = (tmp_path / PROGRESS).read_text()
    newer = json.dumps(json.loads(good) | {"format": 99})
    for text in ("", "[]", "{}", good[:50], newer):
        message = "another version" if text == newer else "damaged"
        (tmp_path / PROGRESS).write_text(text)
        with pytest.raises(UserError, match=rf"progress\.json is .*{message}.*without --resume"):
            table(tmp_path, resume=True)
    (tmp_path / PROGRESS).unlink()
    with pytest.raises(UserError, match=r"progress\.json is missing"):
        table(tmp_path, resume=True)
    (tmp_path / PROGRESS).write_text(good)
    (tmp_path / TABLE).write_text("file\n")
    with pytest.raises(UserError, match=r"predictions\.csv is missing or shorter than progress\.json states"):
        table(tmp_path, resume=True)
    (tmp_path / TABLE).unlink()
    with pytest.raises(UserError, match=r"predictions\.csv is missing or"):
        table(tmp_path, resume=True)


def test_resume_without_a_table_starts_one(tmp_path: Path) -> None:
    """So that a job script may always ask for it."""
    with table(tmp_path / "new", resume=True) as out:
        assert (out.next_input, out.finished) == (0, False)


def test_finished_table_says_so(tmp_path: Path) -> None:
    with table(tmp_path) as out:
        out.add([FACE], next_input=2, failures=["b.jpg is damaged"])
        out.finish()
    before = (tmp_path / TABLE).read_bytes()
    with table(tmp_path, resume=True) as out:
        assert out.finished and out.next_input == 2 and out.failures == ["b.jpg is damaged"]
    assert (tmp_path / TABLE).read_bytes() == before


def test_full_disk_is_one_line_and_can_be_resumed(tmp_path: Path) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            self.file.write(content[:5])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    out = table(tmp_path)
    out.add([FACE], next_input=1)
    out._file = Full(out._file)
    with pytest.raises(UserError, match=r"predictions\.csv cannot be written \(No space left on device\)"), out:
        out.add([FACE], next_input=2)
    with table(tmp_path, resume=True) as again:
        assert again.next_input == 1
        again.add([FACE], next_input=2)
    assert len(read(tmp_path)) == 2


# ---------------------------------------------------------------- killed jobs


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"a{i}.png")
    (folder / "a3.png").write_bytes(b"broken")
    write_video(folder / "b.mp4")
    write_video(folder / "c.avi", codec="MJPG")
    data = (folder / "c.avi").read_bytes()
    (folder / "c.avi").write_bytes(data[: len(data) * 7 // 10])
    Image.new("RGB", (30, 20), "red").save(folder / "d.png")
    return folder


def killed_until_finished(inputs: Path, out: Path, delays: random.Random, longest: float) -> int:
    kills = 0
    for attempt in range(200):
        # A process whose imports are done when the clock starts: the kill falls into the work.
        arguments = [str(out), "1" if attempt else "0", "0.02", str(inputs)]
        command = [sys.executable, "-m", "tests.inference.media.predicting", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stamp = (out / PROGRESS).stat().st_mtime_ns if (out / PROGRESS).exists() else 0
        while process.poll() is None and not (
            (out / PROGRESS).exists() and (out / PROGRESS).stat().st_mtime_ns != stamp
        ):
            time.sleep(0.005)
        try:
            # The first one at once, so that one kill is certain.
            _, err = process.communicate(timeout=delays.uniform(0, longest) if kills else 0.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, err
        return kills
    raise AssertionError("no attempt finished")


def compare_with_uninterrupted(inputs: Path, tmp_path: Path, seed: int, longest: float) -> int:
    predicting.predict(tmp_path / "whole", [str(inputs)])
    kills = killed_until_finished(inputs, tmp_path / "killed", random.Random(seed), longest)
    assert (tmp_path / "killed" / TABLE).read_bytes() == (tmp_path / "whole" / TABLE).read_bytes()
    progress = [json.loads((tmp_path / name / PROGRESS).read_text()) for name in ("killed", "whole")]
    assert progress[0] == progress[1] and len(progress[0]["failures"]) == 2
    return kills


def test_killed_job_resumes_to_the_same_bytes(inputs: Path, tmp_path: Path) -> None:
    assert compare_with_uninterrupted(inputs, tmp_path, seed=0, longest=0.7) > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_job_killed_many_times_resumes_to_the_same_bytes(inputs: Path, tmp_path: Path, seed: int) -> None:
    assert compare_with_uninterrupted(inputs, tmp_path, seed, longest=0.25) > 2


def test_interrupted_job_resumes_without_repeating(tmp_path: Path) -> None:
    """Ctrl-C or a defect: the progress is saved on the way out."""

    def interrupted(out: PredictionTable) -> None:
        out.add([FACE], next_input=1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), table(tmp_path / "out") as out:
        interrupted(out)
    with table(tmp_path / "out", resume=True) as out:
        assert out.next_input == 1
