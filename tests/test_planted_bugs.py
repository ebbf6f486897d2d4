"""The exercises of planted_bugs.py: each bug is seen by the test that it names; the command line does what it says."""

import shutil
import sys
from pathlib import Path

import planted_bugs
import pytest
from planted_bugs import BUGS, ROOT


class Crashes(list):
    """A plugin of pytest: what each failed test says."""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.append(report.longrepr.reprcrash.message)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.file)
def test_the_test_that_a_bug_names_fails_with_it(bug, tmp_path, monkeypatch):
    """By an assertion of its own, in a copy of everything. (Without the bug it passes, or this suite would not.)"""
    planted_bugs.plant(bug, tmp_path / "copy")
    shutil.copytree(ROOT / "tests", tmp_path / "copy/tests")
    for file in (tmp_path / "copy").rglob("*.py"):  # the copy's are to be imported, and only these
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    crashes = Crashes()
    code = pytest.main(["-qx", "-p", "no:cacheprovider", f"copy/tests/{bug.test}"], plugins=[crashes])
    assert code == 1 and crashes[0].startswith(("assert ", "AssertionError")), crashes


def test_the_exercise_on_the_command_line(monkeypatch, capsys):
    """A copy that differs in one script and is never overwritten; symptoms without the place; the place on demand."""

    def output(*arguments):
        monkeypatch.setattr(sys, "argv", ["planted_bugs.py", *arguments])
        planted_bugs.main()
        return capsys.readouterr().out

    symptoms = output()
    for number, bug in enumerate(BUGS, 1):
        asked, revealed = output(str(number)), output("--reveal", str(number))
        scripts = {script.name: script.read_text() for script in ROOT.glob("*.py")}
        copies = {script.name: script.read_text() for script in Path(f"bugs/{number}").glob("*.py")}
        assert {name for name, text in scripts.items() if copies[name] != text} == {bug.file}
        assert planted_bugs.wrapped(bug.symptom) in asked and planted_bugs.wrapped(bug.symptom) in symptoms
        assert bug.new not in scripts[bug.file] or bug.new in bug.old
        for line in bug.old.splitlines() + bug.new.splitlines():
            assert line.strip() in revealed and line.strip() not in asked + symptoms
    monkeypatch.setattr(planted_bugs, "BUGS", [*BUGS, BUGS[0]._replace(old="no such line")])
    for wrong in ("0", "99", "x", "1", "13"):  # the first is there already, the last is none of this script
        with pytest.raises(SystemExit) as stop:
            output(wrong)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1, error
    assert not Path("bugs/13").exists()
