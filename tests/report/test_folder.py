import json
import os

import pytest

from ntkit.errors import NtkitError
from ntkit.report.output_folder import fresh_folder


def fill(folder, text="{}"):
    (folder / "result.json").write_text(json.dumps({"kind": "test", "text": text}))


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with fresh_folder(tmp_path / "a" / "b", "test") as folder:
        fill(folder)
        assert not (tmp_path / "a" / "b").exists()
    assert os.listdir(tmp_path / "a") == ["b"]
    assert os.listdir(tmp_path / "a" / "b") == ["result.json"]


def test_an_earlier_output_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with fresh_folder(tmp_path / "out", "test") as folder:
            fill(folder, text)
            (folder / text).touch()
    assert sorted(os.listdir(tmp_path / "out")) == ["new", "result.json"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_interrupted_output_leaves_what_was_there(tmp_path):
    with fresh_folder(tmp_path / "out", "test") as folder:
        fill(folder)
    with pytest.raises(KeyboardInterrupt), fresh_folder(tmp_path / "out", "test") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["result.json"]


def test_an_interrupted_first_output_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), fresh_folder(tmp_path / "a" / "b", "test"):
        raise ValueError
    assert os.listdir(tmp_path) == []


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with fresh_folder(tmp_path / "out", "test") as folder:
        fill(folder)
    assert os.listdir(tmp_path / "out") == ["result.json"]


@pytest.mark.parametrize("content", ["not json", "[]", '{"kind": "other"}'])
def test_somebody_elses_folder_is_never_replaced(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    (tmp_path / "precious").touch()
    with pytest.raises(NtkitError, match="not replaced"), fresh_folder(tmp_path, "test"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["precious", "result.json"]


def test_a_file_is_never_replaced(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(NtkitError, match="not replaced"), fresh_folder(tmp_path / "out", "test"):
        pass
    assert (tmp_path / "out").read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(NtkitError, match="cannot be written"),
        fresh_folder(tmp_path / "file" / "out", "test"),
    ):
        pass
    assert os.listdir(tmp_path) == ["file"]
