"""stage_stamp.py: when a step counts as done."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STAMP = Path(__file__).resolve().parent.parent / "local" / "stage_stamp.py"


class TestStamp:
    """stage_stamp.py by itself."""

    @pytest.fixture
    def step(self, tmp_path):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "a").write_text("1")
        (tmp_path / "in" / "large").write_bytes(bytes(2_000_000))

        def call(*patterns, command=("python", "-c", "open('out', 'a').write('x')"), makes="out", start=(STAMP,), options=()):
            result = subprocess.run(
                [sys.executable, *start, *options, "--stamp", "stamps/s.json", "--title", "s", "--stage",
                 "1", "--conf", *(patterns or ["in"]), "--makes", makes, "--", *command],
                cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            result.times = len((tmp_path / "out").read_text()) if (tmp_path / "out").exists() else 0
            return result

        call.folder = tmp_path
        return call

    def test_the_command_knows_its_step_and_how_it_was_called(self, step):
        write = "import os; open('out', 'w').write(os.environ['RECIPE_STEP'] + os.environ['RECIPE_RERUN'])"
        assert step(command=("python", "-c", write)).returncode == 0
        assert (step.folder / "out").read_text() == "srun.sh"

    def test_small_files_are_known_by_content(self, step):
        assert step("in/a").times == 1
        os.utime(step.folder / "in" / "a", (1, 1))
        assert step("in/a").times == 1
        (step.folder / "in" / "a").write_text("2")
        assert step("in/a").times == 2

    def test_large_files_are_known_by_size_and_time(self, step):
        assert step("in/large").times == 1
        os.utime(step.folder / "in" / "large", (1, 1))
        assert step("in/large").times == 2

    def test_folders_and_patterns_notice_a_new_file(self, step):
        for pattern, times in (("in", 1), ("in/*", 3)):
            assert step(pattern).times == times
            assert step(pattern).times == times
            (step.folder / "in" / f"new{times}").write_text("")
            assert step(pattern).times == times + 1

    def test_hidden_files_are_nobodys_business_and_links_are_followed(self, step):
        (step.folder / "elsewhere").mkdir()
        (step.folder / "in" / "link").symlink_to(step.folder / "elsewhere")
        assert step("in").times == 1
        (step.folder / "in" / ".cache").mkdir()
        for hidden in (".cache/a", ".b"):
            (step.folder / "in" / hidden).write_text("")
        assert step("in").times == 1
        (step.folder / "elsewhere" / "new").write_text("")
        assert step("in").times == 2

    def test_a_link_to_nothing_is_told_from_one_to_a_file(self, step):
        (step.folder / "in" / "link").symlink_to("later")
        (step.folder / "in" / "self").symlink_to("self")
        for pattern, times in (("in", 1), ("in/*", 3)):
            assert step(pattern).times == step(pattern).times == times
            (step.folder / "in" / "later").write_text("")
            assert step(pattern).times == times + 1
            (step.folder / "in" / "later").unlink()

    def test_a_pattern_of_links_to_nothing_is_missing(self, step):
        assert step("in/a").times == 1
        (step.folder / "made").mkdir()
        (step.folder / "made" / "link").symlink_to("/no/disk/file")
        result = step("made/*")
        assert result.returncode == 1 and "needs made/*" in result.stderr and result.times == 1
        result = step("in/a", makes="made/*")
        assert result.returncode == 1 and "ended without making made/*" in result.stderr
        assert step("in/a", makes="made/*").times == 3  # so it is not done

    def test_links_to_a_folder_above_have_an_end(self, step):
        for name in ("back", "again"):
            (step.folder / "in" / name).symlink_to(step.folder / "in")
        assert step("in").times == step("in").times == 1
        (step.folder / "in" / "new").write_text("")
        assert step("in").times == 2

    def test_a_file_name_that_is_not_utf_8(self, step):
        name = os.fsencode(step.folder / "in") + b"/caf\xe9"
        try:
            open(name, "w").close()
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
        assert step("in").times == step("in").times == 1
        os.rename(name, name + b"s")
        assert step("in").times == 2

    def test_a_pattern_without_a_file_is_missing(self, step):
        result = step("in/*.pt")
        assert result.returncode == 1 and "needs in/*.pt" in result.stderr

    def test_a_damaged_stamp_means_not_done(self, step):
        step()
        (step.folder / "stamps" / "s.json").write_text("{")
        assert step().times == 2

    def test_a_stamp_without_outputs_serves_as_long_as_they_are_there(self, step):
        step()
        path = step.folder / "stamps" / "s.json"
        stamp = json.loads(path.read_text())
        del stamp["made"]
        path.write_text(json.dumps(stamp))
        assert step().times == 1

    def test_a_step_that_failed_midway_is_not_done_even_if_the_inputs_go_back(self, step):
        assert step().times == 1
        (step.folder / "in" / "a").write_text("2")
        assert step(command=("python", "-c", "open('out', 'a').write('half'); raise SystemExit(3)")).returncode == 3
        (step.folder / "in" / "a").write_text("1")
        assert step().times == 6

    @pytest.mark.parametrize("number, goes_on", [(errno.ENOLCK, True), (errno.ENOTSUP, True), (errno.EIO, False)])
    def test_a_file_system_without_locks(self, step, number, goes_on):
        script = f"""
import fcntl, os, runpy, sys
def flock(*_): raise OSError({number}, os.strerror({number}))
fcntl.flock = flock
sys.argv[0] = {str(STAMP)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
        result = step(start=("-c", script))
        assert result.times == goes_on and result.returncode == (not goes_on) and "Traceback" not in result.stderr
        assert (". is on a file system without locks" in result.stdout) == goes_on
        if not goes_on:
            assert result.stderr == f"error: stamps/lock cannot be locked: {os.strerror(number)}\n"
        assert step().times == 1

    def test_asked_it_only_says_whether_the_step_is_done(self, step):
        def done(*patterns, options=()):
            before = sorted(path.name for path in step.folder.rglob("*"))
            asked = step(*patterns, options=("--ask", "done", *options))
            assert not asked.stdout and not asked.stderr
            assert sorted(path.name for path in step.folder.rglob("*")) == before
            return asked.returncode == 0

        assert not done("in/a") and not done("in/none")
        assert step("in/a").times == 1
        assert done("in/a") and not done("in/a", options=["--force"]) and not done("in/large")
        (step.folder / "in" / "a").write_text("2")
        assert not done("in/a")
        assert step("in/a").times == 2 and done("in/a")
        (step.folder / "out").write_text("")
        assert not done("in/a")

    def test_asked_for_its_command_it_names_a_step_whose_result_is_of_another(self, step):
        def told(*words, options=()):
            asked = step("in/a", command=("python", "-c", "open('out', 'a').write('x')", *words),
                         options=("--ask", "command", *options))
            assert asked.returncode == 0 and not asked.stderr
            return asked.stdout

        assert told() == told("a=1") == ""  # nothing is there
        assert step("in/a").times == 1
        assert told() == told(options=["--force"]) == told("--jobs", "2") == "" and told("a=1") == "s\n"
        (step.folder / "stamps" / "s.json").unlink()  # as while the step runs
        assert told() == "s\n"
        (step.folder / "out").unlink()
        assert told() == ""

    def test_asked_for_its_conf_it_minds_what_comes_with_the_recipe(self, step):
        """And not what other steps make, which is theirs to mind."""
        made = ("--from", "1", "in/large")
        assert step("in/a", options=made).times == 1
        (step.folder / "in" / "large").write_text("another")
        assert step("in/a", options=(*made, "--ask", "conf")).stdout == ""
        (step.folder / "in" / "a").write_text("2")
        assert step("in/a", options=(*made, "--ask", "conf")).stdout == "s\n"
        assert step("in/a", options=(*made, "--ask", "command")).stdout == ""

    def test_a_full_disk_is_named_with_the_remedy(self, step):
        (step.folder / "stamps").mkdir()
        (step.folder / "stamps" / "s.json.part").symlink_to("/dev/full")
        result = step("in/a")
        assert result.returncode == 1 and result.stderr == (
            "error: stamps/s.json cannot be written: No space left on device: make room, and run the same command again\n")

    def test_data_that_may_not_be_written_are_read_all_the_same(self, step):
        for name, mode in (("none", 0o555), ("data/.stamps", 0o555)):
            (step.folder / name).mkdir(parents=True)
            (step.folder / name).chmod(mode)
            assert step("in/a", options=("--reads", name.partition("/")[0], "--force")).returncode == 0

    def test_the_stamp_says_what_the_result_came_from(self, step):
        step("in/a", "in/large")
        stamp = json.loads((step.folder / "stamps" / "s.json").read_text())
        assert list(stamp) == ["command", "in/a", "in/large", "made"] and list(stamp["made"]) == ["out"]
