"""The stage graph: what a key depends on, what is done once, and what is noticed."""

import multiprocessing
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ehr_core import stages
from ehr_core.errors import EhrError, FormatError, NotApplicable
from ehr_core.formats.folder import write_json
from ehr_core.stages import Given, Graph, content_digest

CALLS: list[str] = []


@dataclass
class Settings:
    """A number, and a file."""

    number: int = 1
    file: Path | None = None
    rest: dict[str, int] = field(default_factory=dict)


def write(output, settings):
    CALLS.append("write")
    (output / "number.txt").write_text(str(settings.number))


def double(output, settings, *, before):
    CALLS.append("double")
    (output / "number.txt").write_text(str(2 * int((before / "number.txt").read_text())))


def never(output, settings, **inputs):
    raise NotApplicable("there is nothing of the kind")


def labels(output, settings):
    from ehr_eval.labelling import label_tasks  # what it imports is its code

    label_tasks(settings, output, output)


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def graph(folder, number=1, **more):
    made = Graph(folder)
    first = made.add("first", write, Settings(number, **more))
    made.add("second", double, None, {"before": first})
    return made


def test_what_is_done_is_done_once_and_a_change_reruns_what_depends_on_it(tmp_path):
    graph(tmp_path).run()
    graph(tmp_path).run()
    assert CALLS == ["write", "double"]
    changed = graph(tmp_path, number=4)
    changed.run()
    assert (changed.get("second").path / "number.txt").read_text() == "8"
    assert len(CALLS) == 4


def test_the_content_of_a_file_counts_and_its_place_does_not(tmp_path):
    keys = []
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
        keys.append(graph(tmp_path, file=tmp_path / name).get("first").key)
    assert keys[0] == keys[1] != keys[2]


def test_a_folder_with_a_manifest_is_known_by_its_files_all_the_same(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    write_json(folder / "manifest.json", {"files": {}})
    (folder / "train.csv").write_text("1")
    before = content_digest(folder)
    (folder / "train.csv").write_text("0")
    assert content_digest(folder) != before
    assert Given.of(folder).key == content_digest(folder)


def test_the_code_that_a_function_imports_is_part_of_the_key(tmp_path, monkeypatch):
    assert "ehr_eval" in stages.imported_packages(labels)
    key = Graph(tmp_path).add("labels", labels, None).key
    digest = stages.code_digest
    monkeypatch.setattr(stages, "code_digest", lambda package: "new" if package == "ehr_eval" else digest(package))
    assert Graph(tmp_path).add("labels", labels, None).key != key
    assert Graph(tmp_path).add("write", write, None).key == Graph(tmp_path).add("write", write, None).key


@pytest.mark.parametrize("damage", [
    lambda file: file.unlink(),
    lambda file: file.write_text(""),
    lambda file: shutil.move(file, file.with_name("other.txt")),
])  # fmt: skip
def test_a_stage_that_lost_files_is_refused_and_says_what_to_do(tmp_path, damage):
    graph(tmp_path).run()
    again = graph(tmp_path)
    damage(again.get("first").path / "number.txt")
    with pytest.raises(FormatError, match=r"lost or changed 1 of its 1 files, number\.txt among them"):
        again.run()
    shutil.rmtree(again.get("first").path)
    again.run()
    assert CALLS.count("write") == 2


def test_the_reason_why_there_is_no_result_goes_on_to_what_depends_on_it(tmp_path):
    made = Graph(tmp_path)
    first = made.add("first", never, None)
    made.add("second", double, None, {"before": first})
    made.add("third", never, None, {"before": first}, always=True)
    made.run()
    assert made.get("second").reason == "there is nothing of the kind"
    assert CALLS == []


def test_two_processes_at_once_make_the_same_and_both_go_on(tmp_path):
    fork = multiprocessing.get_context("fork")
    for number in range(8):
        processes = [fork.Process(target=lambda number=number: graph(tmp_path, number).run()) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(tmp_path.glob("first-*"))) == 8


def test_a_failure_leaves_nothing_and_what_was_done_before_it(tmp_path):
    def fail(output, settings, *, before):
        (output / "half.txt").write_text("half")
        raise EhrError("no")

    made = Graph(tmp_path)
    made.add("second", fail, None, {"before": made.add("first", write, Settings())})
    with pytest.raises(EhrError, match="no"):
        made.run()
    assert [path.name for path in tmp_path.glob("[!.]*")] == [made.get("first").path.name]


def test_stopped_work_is_gone_on_with_or_said_to_be_of_other_settings(tmp_path, capsys):
    mine = graph(tmp_path)
    mine.get("first").path.with_name(mine.get("first").path.name + ".running").mkdir(parents=True)
    mine.plan()
    assert "would go on" in capsys.readouterr().err
    graph(tmp_path, number=3).run()
    assert "was stopped, but has other settings, inputs or code" in capsys.readouterr().err
