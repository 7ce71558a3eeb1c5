"""Setting up: what check_env.py says of an environment, what install.sh says of a Python, and that it does nothing twice."""

import os
import shutil
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from scripts import load, locale_of, refused, run

from kdlib.processes import usable_cores

ROOT = Path(__file__).resolve().parent.parent
INSTALL = ROOT / "tools" / "install.sh"


@pytest.fixture(scope="module")
def check_env():
    return load(ROOT / "tools" / "check_env.py")


def versions(check_env, **changes):
    """A look-up of versions in an environment that has each package at its lowest, with these changes."""
    found = {package: lowest or "1.0" for package, lowest in check_env.requirements(tests=True)}
    found["torchaudio"] = "0.13.1"
    found.update({name.replace("_", "-"): version for name, version in changes.items()})
    return found.get


class TestCheckEnv:
    def test_the_lowest_versions_serve(self, check_env):
        assert check_env.package_problems(versions(check_env)) == []
        assert check_env.package_problems(versions(check_env), tests=True) == []

    def test_a_local_version_label_is_no_other_version(self, check_env):
        found = versions(check_env, torch="2.11.0+cu130", torchaudio="2.11.0", numpy="2.4.6")
        assert check_env.package_problems(found) == []

    @pytest.mark.parametrize("package, version, said", [
        ("lhotse", None, "lhotse is missing: pip install 'lhotse>=1.33'"),
        ("urllib3", None, "urllib3 is missing: pip install 'urllib3'"),
        ("lhotse", "1.9.0", "lhotse 1.9.0 is too old: pip install 'lhotse>=1.33'"),  # 9 < 33, though "9" > "3"
        ("torch", "1.12.1", "torch 1.12.1 is too old: pip install 'torch>=1.13.1'"),
    ])
    def test_each_problem_comes_with_its_remedy(self, check_env, package, version, said):
        assert said in check_env.package_problems(versions(check_env, **{package: version}))

    def test_all_problems_are_told_at_once(self, check_env):
        problems = check_env.package_problems(versions(check_env, tqdm=None, scipy="0.1", sentencepiece=None))
        assert [problem.split()[0] for problem in problems] == ["scipy", "sentencepiece", "tqdm"]

    @pytest.mark.parametrize("torch, torchaudio, fits", [
        ("1.13.1", "0.13.1", True), ("2.11.0", "2.11.0", True), ("2.15.0", "2.11.0", False), ("2.0.1", "0.13.1", False),
        ("2.13.0+cpu", "2.11.0", False), ("2.13.0+cpu", None, True)])
    def test_torch_and_torchaudio_are_a_pair(self, check_env, torch, torchaudio, fits):
        numpy = "2.4" if torch.startswith("2.1") else "1.26"
        problems = check_env.package_problems(versions(check_env, torch=torch, torchaudio=torchaudio, numpy=numpy))
        assert ([] if fits else ["torchaudio"]) == [problem.split()[0] for problem in problems]

    def test_old_torch_wants_old_numpy(self, check_env):
        problems = check_env.package_problems(versions(check_env, numpy="2.4.6"))
        assert problems == ["torch 1.13.1 cannot use numpy 2.4.6: pip install 'numpy<2'"]

    def test_old_python(self, check_env):
        assert "3.9.18 is too old" in check_env.python_problems((3, 9, 18))[0]
        assert check_env.python_problems((3, 12, 3)) == []

    def test_this_environment_serves(self):
        result = run(sys.executable, ROOT / "tools" / "check_env.py", "--tests")
        assert result.returncode == 0, result.stdout
        assert "serves" in result.stdout

    @pytest.mark.usefixtures("no_pythonpath")
    def test_kdlib_of_another_checkout_does_not_serve(self, tmp_path, monkeypatch):
        checkout = tmp_path / "a folder"
        checkout.mkdir()
        for name in ("setup.py", "tools", "kdlib"):
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
                ROOT / name, checkout / name, **({"ignore": lambda *_: ["venv", "venv-k2"]} if name == "tools" else {}))
        result = run(sys.executable, checkout / "tools" / "check_env.py")
        assert result.returncode == 1
        assert f"not from this checkout: python -m pip install --no-deps -e '{checkout}'" in result.stdout
        # What the user's PYTHONPATH hides no installation would mend.
        monkeypatch.setenv("PYTHONPATH", f"/no/such/folder:{ROOT}")
        result = run(sys.executable, checkout / "tools" / "check_env.py")
        assert result.returncode == 1 and not result.stderr
        assert result.stdout == (f"PYTHONPATH has {ROOT}, whose kdlib hides this checkout's: unset PYTHONPATH, or leave that "
                                 "folder out\n")

    def test_without_packages_each_is_named(self):
        # -S: no site-packages, so an environment in which nothing is installed.
        result = run(sys.executable, "-S", "-I", ROOT / "tools" / "check_env.py", cwd="/")
        assert result.returncode == 1
        for name in ("torch", "lhotse", "kdlib"):
            assert f"\n{name} is" in "\n" + result.stdout
        assert "tools/install.sh" in result.stdout and not result.stderr


class TestPins:
    """The pinned environments lie within what setup.py allows, and its bounds are the lowest that are ever tested."""

    @staticmethod
    def pins(name):
        pins = {}
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            line = line.split("#")[0].split(";")[0].split("--hash")[0].strip()
            if line:
                package, version = line.split("==")
                pins.setdefault(package, []).append(version)
        return pins

    def test_bounds_are_honest(self, check_env):
        modern, k2 = self.pins("requirements.txt"), self.pins("requirements-k2.txt")
        for package, lowest in check_env.requirements():
            tried = modern[package] + k2[package]
            if lowest:
                bound = check_env.release(lowest)
                assert min(check_env.release(version)[:len(bound)] for version in tried) == bound, package

    def test_what_tests_need_is_pinned(self, check_env):
        for name in ("requirements.txt", "requirements-k2.txt"):
            assert {package for package, _ in check_env.requirements(tests=True)} <= set(self.pins(name))


@pytest.fixture
def no_pythonpath(monkeypatch):
    """One that names this checkout, by which the tests may be run, would hide those that they make."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.mark.usefixtures("no_pythonpath")
class TestInstall:
    @pytest.mark.parametrize("arguments, code, said", [
        (["--nope"], 2, "unknown option --nope"),
        (["--python"], 2, "--python needs the path"),
        (["--python", "/no/such/python"], 1, "--python /no/such/python: there is no such program"),
        (["--python", "/bin/false"], 1, "--python /bin/false does not run"),
    ])
    def test_bad_options(self, arguments, code, said):
        result = run(INSTALL, *arguments)
        assert result.returncode == code
        assert result.stderr.startswith(f"error: {said}") and result.stderr.count("\n") == 1

    @pytest.mark.parametrize("arguments, version, wanted", [([], "3.13", "3.10, 3.11 or 3.12"), (["--k2"], "3.11", "3.10")])
    def test_a_python_of_a_wrong_version(self, tmp_path, arguments, version, wanted):
        python = self.fake_python(tmp_path / "python3", version)
        result = run(INSTALL, *arguments, "--python", python)
        assert result.returncode == 1
        assert f"is Python {version}; this environment needs Python {wanted}" in result.stderr

    def test_no_python_says_how_to_get_one(self, tmp_path):
        checkout = self.checkout(tmp_path)
        self.fake_python(tmp_path / "bin" / "python3", "3.9")
        for tool in ("bash", "dirname", "cat", "basename", "rm", "mv"):
            (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
        result = run(checkout / "tools" / "install.sh", "--k2",
                     env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)})
        assert result.returncode == 1
        for way in ("no Python 3.10", "pyenv install 3.10", "conda create", "uv python install 3.10", "--python PATH"):
            assert way in result.stderr

    def test_a_broken_python3_is_passed_over(self, tmp_path):
        """A version manager's shim stands on PATH and fails; the next one that runs is taken."""
        checkout = self.checkout(tmp_path)
        self.fake_python(tmp_path / "bin" / "python3", "", code=127)
        self.fake_python(tmp_path / "bin" / "python3.12", "", code=127)
        self.fake_python(tmp_path / "bin" / "python3.11", "3.11")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        result = run(checkout / "tools" / "install.sh",
                     env={"PATH": path, "HOME": str(tmp_path), "PYENV_ROOT": str(tmp_path)})
        assert f"making tools/venv with {tmp_path / 'bin' / 'python3.11'} (Python 3.11)" in result.stdout

    def test_nothing_is_done_twice_and_a_change_is_noticed(self, tmp_path):
        checkout = self.checkout(tmp_path)
        calls = tmp_path / "calls"
        self.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11", calls=calls)
        install = checkout / "tools" / "install.sh"
        requirements = checkout / "requirements.txt"

        def installed(log=calls):
            lines = log.read_text().splitlines()
            log.write_text("")
            return [line for line in lines if " install " in line and "--requirement" in line]

        assert run(install).returncode == 0
        assert len(installed()) == 1  # the venv is there, but nothing says that it is whole
        second = run(install)
        assert second.returncode == 0 and "tools/venv is ready" in second.stdout
        assert installed() == []

        requirements.write_text(requirements.read_text() + "another-package==1.0\n")
        assert run(install).returncode == 0
        assert len(installed()) == 1

    def test_a_checkout_that_pythonpath_hides_is_told_and_left_as_it_is(self, tmp_path):
        """Whether its environment is ready, or was never made."""
        checkout, other = self.checkout(tmp_path), tmp_path / "other"
        for folder in (checkout, other):
            (folder / "kdlib").mkdir(parents=True)
            (folder / "kdlib" / "__init__.py").write_text("")
        for name in ("python3", "python"):  # which does not serve
            python = self.fake_python(tmp_path / "bin" / name, "3.11")
            python.write_text(python.read_text().replace("exit 0", "[[ $* != *check_env* ]]"))
        calls, installed = tmp_path / "calls", checkout / "tools" / "venv" / ".installed"
        shutil.copy(ROOT / "tools" / "activate.sh", checkout / "tools")
        commands = ([checkout / "tools" / "install.sh"],
                    ["bash", "-c", f"source {checkout}/tools/activate.sh; activate_environment && echo goes on"])

        def told(path):
            environment = {**os.environ, "PYTHONPATH": path, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
            return [run(*command, cwd=tmp_path, env=environment) for command in commands]

        for ready in (False, True):
            if ready:
                self.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11", calls=calls)
                assert run(checkout / "tools" / "install.sh").returncode == 0
                calls.write_text("")
            for path, named in ((str(other), other), (f"{tmp_path}:other:{checkout}", "other")):
                for result in told(path):
                    assert result.returncode == 1 and not result.stdout
                    assert result.stderr == (f"error: PYTHONPATH has {named}, whose kdlib hides this checkout's: unset "
                                             "PYTHONPATH, or leave that folder out\n")
            assert installed.exists() == ready
        assert not calls.read_text()
        install, activate = told(f"{checkout}:{other}")
        assert "is ready" in install.stdout and activate.stdout.endswith("goes on\n")

    def test_an_installation_that_failed_is_not_taken_for_whole(self, tmp_path):
        checkout = self.checkout(tmp_path)
        python = checkout / "tools" / "venv" / "bin" / "python"
        self.fake_python(python, "3.11", pip_code=1)
        failed = run(checkout / "tools" / "install.sh")
        assert failed.returncode == 1 and "pip failed" in failed.stderr
        self.fake_python(python, "3.11")
        again = run(checkout / "tools" / "install.sh")
        assert again.returncode == 0 and "installing" in again.stdout

    def test_an_installation_that_leaves_nothing_that_serves(self, tmp_path):
        """install.sh asks for less than the tests do, and takes the k2 that it has installed for one that can be imported."""
        (tmp_path / "a folder").mkdir()
        tools = self.checkout(tmp_path / "a folder") / "tools"
        shutil.copy(ROOT / "tools" / "activate.sh", tools)
        python = self.fake_python(tools / "venv" / "bin" / "python", "3.11", code=1)
        (tools / "install.sh").write_text("#!/bin/bash\necho is ready\n")
        call = f"source '{tools}/activate.sh'; activate_environment --tests --python '{python}' && echo goes on"
        done = run("bash", "-c", call)
        assert done.returncode == 1 and done.stdout == "is ready\n"
        assert done.stderr == (f"error: {python} does not serve either (see above): "
                               rf"rm -r {tmp_path}/a\ folder/checkout/tools/venv, and this command makes it anew" "\n")
        shutil.copy(INSTALL, tools)
        python.write_text(python.read_text().replace("exit 1", "[[ $* != *check_env* ]]"))
        failed = run(tools / "install.sh")
        assert failed.returncode == 1
        assert rf"(see above); rm -r {tmp_path}/a\ folder/checkout/tools/venv and run tools/install.sh again" in failed.stderr

    @pytest.mark.parametrize("codes, said", [("71", "is on a file system without locks"), ("1 0", "waiting for it")])
    def test_a_lock_that_cannot_be_had(self, tmp_path, codes, said):
        """By what flock(1) ends with: 1 where another has it, else that there is no such thing here."""
        checkout = self.checkout(tmp_path)
        self.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11")
        (tmp_path / "codes").write_text("\n".join(codes.split()) + "\n")
        flock = tmp_path / "bin" / "flock"
        flock.write_text(f"#!/bin/bash\ncode=$(head -n 1 {tmp_path}/codes); sed -i 1d {tmp_path}/codes; exit $code\n")
        flock.chmod(0o755)
        done = run(checkout / "tools" / "install.sh", env={**os.environ, "PATH": f"{flock.parent}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith((f"{checkout} ", "another")) and said in done.stdout.splitlines()[0]
        assert not (tmp_path / "codes").read_text()

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
    def test_what_is_locked_is_open_to_be_written_to(self, tmp_path):
        """As NFS asks for; it stays as it is."""
        checkout = self.checkout(tmp_path)
        self.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11")
        requirements = checkout / "requirements.txt"
        before = requirements.read_bytes()
        flock = tmp_path / "bin" / "flock"
        flock.write_text('#!/bin/bash\ngrep --quiet "^flags:.*[12]$" /proc/self/fdinfo/9 && echo "may write"\n')
        flock.chmod(0o755)
        done = run(checkout / "tools" / "install.sh", env={**os.environ, "PATH": f"{flock.parent}:{os.environ['PATH']}"})
        assert done.returncode == 0 and done.stdout.startswith("may write\n"), done.stderr
        assert requirements.read_bytes() == before

    @staticmethod
    def checkout(folder):
        """A copy of what install.sh needs, without any environment."""
        (folder / "checkout" / "tools").mkdir(parents=True)
        (folder / "bin").mkdir()
        for name in ("tools/install.sh", "tools/check_env.py", "requirements.txt", "requirements-k2.txt",
                     "requirements-k2-wheel.txt", "setup.py", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / "checkout" / name)
        return folder / "checkout"

    @staticmethod
    def fake_python(path, version, code=0, pip_code=0, calls=os.devnull):
        """A program that answers as a Python of that version would, and installs nothing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"""#!/bin/bash
echo "python $*" >>{calls}
case "$*" in
  *version_info*) echo "{version}" ;;
  *"pip install"*) exit {pip_code} ;;
esac
exit {code}
""")
        path.chmod(0o755)
        return path


@pytest.mark.usefixtures("no_pythonpath")
def test_an_environment_is_found_through_links(tmp_path):
    """To the recipe's folder, beside which there may be tools of another kind, or to the tools; it is one and the same."""
    checkout, project = TestInstall.checkout(tmp_path), tmp_path / "project"
    (checkout / "egs" / "mine").mkdir(parents=True)
    for folder in ("recipes", "tools", "links"):
        (project / folder).mkdir(parents=True)
    (project / "recipes" / "mine").symlink_to(checkout / "egs" / "mine")
    (project / "links" / "tools").symlink_to(checkout / "tools")
    shutil.copy(ROOT / "tools" / "activate.sh", checkout / "tools")
    TestInstall.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11")
    assert run(checkout / "tools" / "install.sh").returncode == 0
    for folder, script in ((project / "recipes" / "mine", "../../tools/activate.sh"), (project / "links", "tools/activate.sh")):
        call = f"cd {folder}; source {script}; activate_environment; echo $PYTHON"
        done = run("bash", "-c", call, env={**os.environ, "PATH": os.defpath})  # where no Python serves
        assert done.stdout == f"tools/venv is ready (Python 3.11)\n{checkout}/tools/venv/bin/python\n", done.stderr
    assert "is ready" in run("tools/install.sh", cwd=project / "links").stdout


@pytest.mark.usefixtures("no_pythonpath")
@pytest.mark.parametrize("script, said", [
    ("tools/install.sh", "making tools/venv with"), ("tools/activate.sh", "found it"),
    ("tools/test.sh", "testing with echo\n-m pytest one\n"), (".ci/run", "test.sh --k2: 1 passed")])
def test_the_scripts_find_their_folder_whatever_cdpath_is(tmp_path, script, said):
    """``cd`` prints the folder that it found by the user's CDPATH."""
    checkout = TestInstall.checkout(tmp_path)
    python = TestInstall.fake_python(tmp_path / "python", "3.11")
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / script, checkout / script)
    words = {"tools/install.sh": ["--python", python], "tools/test.sh": ["one"]}.get(script, [])
    if script == ".ci/run":
        (checkout / "tools" / "test.sh").write_text("#!/bin/bash\necho 1 passed\n")
        (checkout / "tools" / "test.sh").chmod(0o755)
    if script == "tools/test.sh":
        (checkout / "tools" / "activate.sh").write_text("activate_environment() { PYTHON=echo; }\n")
    call = ["bash", script, *words]
    if script == "tools/activate.sh":
        TestInstall.fake_python(checkout / "tools" / "venv" / "bin" / "python", "3.11")
        (checkout / "tools" / "install.sh").write_text("#!/bin/bash\necho found it\n")
        call = ["bash", "-c", f"source {script}; activate_environment --python /no/such/python"]
    done = run(*call, cwd=checkout, env={**os.environ, "CDPATH": str(checkout)})
    assert said in done.stdout, done.stderr


def test_the_tests_run_on_all_cores(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "test.sh", tmp_path / "tools")
    activate = (ROOT / "tools" / "activate.sh").read_text()
    (tmp_path / "tools" / "activate.sh").write_text(f"{activate}\nactivate_environment() {{ PYTHON=echo; }}\n")
    for threads in ("1", "64"):
        done = run(tmp_path / "tools" / "test.sh", env={**os.environ, "OMP_NUM_THREADS": threads})
        assert f" --numprocesses {usable_cores()} " in done.stdout, done.stderr


def test_the_benchmark_of_the_losses_prints_its_table():
    done = run(sys.executable, ROOT / "tools" / "bench_rnnt.py", "--only", "growth", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in lines[0].split("|")[1:3]] == ["doubled", "N, T, U, V, R"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["-", "T", "U", "V", "R"]
    for line in lines[2:]:
        milliseconds = float(line.split("|")[3].replace(",", ""))
        assert milliseconds > 0


def test_the_benchmark_takes_what_torchaudio_can_index_on_a_gpu():
    import bench_rnnt

    for size in bench_rnnt.GPU_SIZES:
        n, t, u, v, r = bench_rnnt.indexable(*size)
        nodes = t * (u + 1) * v
        assert (t, u, v, r) == size[1:] and n * nodes < 2**31 and (n == size[0] or (n + 1) * nodes >= 2**31)


@pytest.fixture
def small_gpu_tables(monkeypatch):
    """The tables of a GPU, of two small sizes and on the CPU: prints one, given bench_rnnt's function."""
    import bench_rnnt

    sizes = ((2, 12, 4, 6, 3), (2, 12, 4, 30, 3))
    monkeypatch.setattr(bench_rnnt, "GPU_SIZES", sizes)
    monkeypatch.setattr(bench_rnnt, "synchronise", lambda _: None)
    monkeypatch.setattr(bench_rnnt, "peak_mib", lambda *_: 1.0)  # they may take none

    def show(table, capsys):
        table(Namespace(device="cpu", repeats=1, skip_torchaudio=False))
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]], [str(size) for size in sizes]

    return show


def test_on_a_gpu_torchaudio_stands_beside_the_loss_with_and_without_joiner_and_the_ranges_have_a_row(small_gpu_tables, capsys):
    import bench_rnnt

    rows, sizes = small_gpu_tables(bench_rnnt.gpu_losses, capsys)
    theirs = "torchaudio, all nodes"
    assert [row[:3] for row in rows] == [[what, size, by] for size in sizes for what, by in (
        ("smoothed, ranges", "ours"), ("pruned", "ours"), ("pruned", theirs), ("with joiner", "ours"),
        ("with joiner", "ours, all at once"), ("with joiner", theirs))]


@pytest.mark.parametrize("kernels", ["fail", "none", "seen"])
def test_the_bandwidth_of_both_vocabularies_with_and_without_a_profiler(small_gpu_tables, monkeypatch, capsys, kernels):
    import bench_rnnt

    def profile(activities):
        if kernels == "fail":
            raise AssertionError("no CUPTI")
        event = Namespace(device_type=torch.autograd.DeviceType.CUDA, time_range=Namespace(elapsed_us=lambda: 250.0))
        return nullcontext(Namespace(events=lambda: [event] if kernels == "seen" else []))

    monkeypatch.setattr(torch.profiler, "profile", profile)
    rows, sizes = small_gpu_tables(bench_rnnt.bandwidth, capsys)
    assert [row[:2] for row in rows] == [[what, size] for size in sizes for what in ("copy", "pruned")]
    for what, _, milliseconds, _, share, *of_kernels in rows:
        assert float(milliseconds) >= 0 and share.endswith("%")
        if kernels == "seen":
            assert of_kernels[0] == "0.25" and of_kernels[2] == {"copy": "100%", "pruned": "150%"}[what]
        else:
            assert of_kernels == ["-", "-", "-"]


@pytest.mark.parametrize("words, said", [
    (["--only", "bandwidth"], "it is a GPU's"), (["--device", "cuda"], "torch sees no GPU")])
def test_the_benchmark_refuses_what_cannot_be_measured_here(words, said):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run(sys.executable, ROOT / "tools" / "bench_rnnt.py", *words)
    assert refused(done).startswith(f"error: {' '.join(words)}: {said}")


@pytest.mark.parametrize("fault, said", [
    (None, ""),  # it is not there
    ("import no_such_library", "No module named"),
    ("raise OSError('libcudart.so: cannot open')", "libcudart.so: cannot open"),
    ("raise RuntimeError('compiled with different CUDA versions.\\nPlease')", "compiled with different CUDA versions. Please")])
def test_the_benchmark_says_that_torchaudio_cannot_be_imported(monkeypatch, capsys, tmp_path, fault, said):
    import bench_rnnt

    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    if fault is None:
        monkeypatch.setitem(sys.modules, "torchaudio", None)
    else:
        (tmp_path / "torchaudio").mkdir()
        (tmp_path / "torchaudio" / "__init__.py").write_text(fault)
        monkeypatch.syspath_prepend(tmp_path)
    assert bench_rnnt.torchaudio_call(bench_rnnt.Batch(2, 6, 3, 5, 2, "cpu"), "cpu") is None
    out = capsys.readouterr().out
    assert out.startswith("torchaudio cannot be imported, so there is no row of it: ") and said in out


@pytest.mark.parametrize("device, error, ends", [
    ("cuda", torch.cuda.OutOfMemoryError("CUDA out of memory"), False),
    ("cuda", RuntimeError("CUDA error: an illegal memory access was encountered"), True),
    ("cuda", NotImplementedError("Could not run 'torchaudio::rnnt_loss_forward' with arguments from the 'CUDA' device"), False),
    ("cpu", RuntimeError("can't allocate memory"), False),
])
def test_the_benchmark_ends_with_an_error_that_leaves_the_gpu_dead(monkeypatch, capsys, device, error, ends):
    import bench_rnnt
    from torchaudio import functional

    def fails(*_, **__):
        raise error

    batch = bench_rnnt.Batch(2, 6, 3, 5, 2, "cpu")
    monkeypatch.setattr(functional, "rnnt_loss", fails)
    monkeypatch.setattr(bench_rnnt, "leaf", lambda *shape, device: torch.zeros(shape, requires_grad=True))
    if ends:
        with pytest.raises(RuntimeError, match="illegal memory access"):
            bench_rnnt.torchaudio_call(batch, device)
    else:
        assert bench_rnnt.torchaudio_call(batch, device) is None
        assert f"torchaudio cannot take (2, 6, 3, 5, 2): {error}" in capsys.readouterr().out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_process_is_not_charged_with_what_its_heap_has_kept():
    import peak_memory

    pieces = [bytearray(1000) for _ in range(200_000)]
    pieces = pieces[::1000]  # so that the heap keeps what lies between them
    kept = peak_memory.now()
    peak_memory.start_anew()
    assert peak_memory.now() <= peak_memory.most() < kept - 100 * 2 ** 20
    del pieces


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_is_utf8_for_whatever_sources_the_environment(tmp_path, encoding):
    code = "import locale; print(locale.getpreferredencoding(False))"
    done = run("bash", "-c", 'source "$0"; "$1" -c "$2"', ROOT / "tools" / "activate.sh", sys.executable, code,
               env=locale_of(encoding, tmp_path))
    assert done.stdout.strip().lower() == "utf-8", done.stderr


# A Python that has nothing of ours.
BARE = [Path(sys.base_prefix) / "bin" / "python3", "-E", "-s"]


@pytest.mark.parametrize("tool", ["bench_rnnt.py", "bench_streaming.py", "bench_training.py", "new_recipe.py",
                                  "transcribe.py"])
def test_the_tools_find_their_environment(tool, tmp_path):
    """With a Python that has nothing of ours: in the environment beside the tool, or one line that says how to make it."""
    if run(*BARE, "-c", "import kdlib", cwd=tmp_path).returncode == 0:
        pytest.skip("kdlib is installed for every Python here")
    if (ROOT / "tools" / "venv" / "bin" / "python").exists():
        assert "usage: " + tool in run(*BARE, ROOT / "tools" / tool, "--help").stdout
    for name in (tool, "environment.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path)
    alone = run(*BARE, tmp_path / tool, "--help")
    assert alone.returncode == 1 and alone.stderr.startswith("error: kdlib is not installed: tools/install.sh")
    assert "Traceback" not in alone.stderr


@pytest.mark.parametrize("mode, said", [(0o755, "finds no kdlib"), (0o644, "does not start (Permission denied)")])
def test_an_environment_that_does_not_serve_is_tried_once(tmp_path, mode, said):
    if run(*BARE, "-c", "import kdlib", cwd=tmp_path).returncode == 0:
        pytest.skip("kdlib is installed for every Python here")
    for name in ("new_recipe.py", "environment.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path)
    python, starts = tmp_path / "venv" / "bin" / "python", tmp_path / "starts"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\necho >>{starts}; (($(wc -l <{starts}) < 5)) && exec {BARE[0]} -E -s "$@"\n')
    python.chmod(mode)
    done = run(*BARE, tmp_path / "new_recipe.py", "--help", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr == f"error: {python} {said}: tools/install.sh mends it\n"
    assert len(starts.read_text()) == 1 if mode == 0o755 else not starts.exists()
