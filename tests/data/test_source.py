"""A data source is a config node whose target returns a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fer_lightning.config.dataset import load_faces
from fer_lightning.data.synthetic import synthetic
from fer_lightning.errors import UserError

KEYS = dict.fromkeys(("path", "votes", "merge", "classes", "cache_dir")) | {"name": "own", "twins": "exact"}


def settings(source: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"data": KEYS | {"source": source} | data}


def test_source_takes_values_of_data_keys() -> None:
    takes = ["synthetic.n_train", "synthetic.n_test"]
    source = {"_target_": "fer_lightning.data.synthetic.synthetic", "takes": takes, "n_val": 7}
    table = load_faces(settings(source, synthetic={"n_train": 21, "n_test": 14}))
    np.testing.assert_array_equal(table.images, synthetic(n_train=21, n_val=7, n_test=14).images)


def test_classes_and_merge_apply_to_any_source() -> None:
    source = {"_target_": "fer_lightning.data.synthetic.synthetic", "n_train": 21, "n_val": 7, "n_test": 7}
    table = load_faces(settings(source, merge={"disgust": "angry"}, classes=["happy", "angry"]))
    assert table.classes == ("happy", "angry")
    angry, disgust, _, happy, *_ = synthetic(n_train=21, n_val=7, n_test=7).counts().tolist()
    assert table.counts().tolist() == [happy, angry + disgust]


def test_unknown_key_of_a_source_is_an_error() -> None:
    source = {"_target_": "fer_lightning.data.readers.sources.load", "takes": ["pth"]}
    with pytest.raises(UserError, match=r"data\.source\.takes: there is no data\.pth"):
        load_faces(settings(source))


def test_empty_source_is_an_error() -> None:
    with pytest.raises(UserError, match=r"data\.source is empty"):
        load_faces(settings({}))
