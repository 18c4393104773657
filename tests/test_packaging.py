"""The doors of the house: wheel, import, the two lists of dependencies, make commands, CI, and the README's links."""

import os
import re
import stat
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from tests.doors import lab_server, make

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA_NAMES = {
    "matplotlib": "matplotlib-base",  # conda's plain matplotlib brings a whole window system
    "playwright": "playwright-python",  # conda's plain playwright is the one for Node
}
ON_DEMAND = {"site", "browser"}  # extras that `make lab` does without


def run(*command, check=True, **options):
    return subprocess.run(command, capture_output=True, text=True, check=check, stdin=subprocess.DEVNULL, **options)


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked, as pip does it for pure Python."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def sources(folder, *suffixes):
    paths = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file()}
    return {path for path in paths if "__pycache__" not in path and (not suffixes or path.endswith(suffixes))}


def test_the_wheel_installs_one_package_and_nothing_beside_it(installed):
    assert {path.name for path in installed.iterdir()} == {"paged_core", "paged_core-0.1.0.dist-info"}
    kept_at_home = {"kernels", "solutions", "tests", "benchmarks", "notebooks", "tools"}
    assert not kept_at_home & {part for path in installed.rglob("*") for part in path.relative_to(installed).parts}


def test_the_wheel_has_every_source_file(installed):
    missing = {path for path in sources("paged_core", ".py", ".js") if not (installed / path).is_file()}
    assert not missing


@pytest.mark.parametrize("folder", ["kernels", "checkpoint"])
def test_the_wheel_carries_the_folder_byte_for_byte(installed, folder):
    paths = sources(folder)
    assert paths
    for path in paths:
        copy = installed / "paged_core" / f"_{folder}" / Path(path).relative_to(folder)
        assert copy.read_bytes() == (ROOT / path).read_bytes()


def test_the_wheel_says_what_it_needs(installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    assert "Requires-Python: >=3.11\n" in text
    assert "License-Expression: MIT\n" in text
    needed = {Requirement(line) for line in re.findall(r"^Requires-Dist: (.*)$", text, re.M) if "extra ==" not in line}
    assert needed == {Requirement(line) for line in PYPROJECT["project"]["dependencies"]}


def test_an_installed_package_runs_without_the_checkout(installed, tmp_path):
    """Every executor of this machine, reading the kernels that came with the wheel."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = run(sys.executable, "-c", "import paged_core; print(paged_core.__file__)", cwd=tmp_path, env=environment)
    assert Path(where.stdout.strip()).is_relative_to(installed)
    done = run(sys.executable, "-m", "paged_core", "demo", "--fast", cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "Equal:" in done.stdout
    command = [sys.executable, "-m", "paged_core", "generate", "In the beginning", "--max-new-tokens", "5"]
    assert "5 tokens for 1 prompt" in run(*command, cwd=tmp_path, env=environment).stdout


# ---- the import

IMPORT = """
import sys, time
started = time.perf_counter()
import paged_core
print(time.perf_counter() - started)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_import_is_quick_and_draws_in_nothing_it_does_not_need():
    seconds = []
    for _ in range(5):
        elapsed, modules = run(sys.executable, "-c", IMPORT, cwd=ROOT).stdout.splitlines()
        seconds.append(float(elapsed))
        heavy = {
            "matplotlib",
            "ipywidgets",
            "anywidget",
            "IPython",
            "scipy",
            "pandas",
            "tqdm",
            "pytest",
            "hypothesis",
            "mlx_lm",
            "transformers",
            "tokenizers",
            "huggingface_hub",
        }
        assert "mlx" in modules.split()
        assert not heavy & set(modules.split())
    assert min(seconds) < 0.5  # the machine may be busy in any one of them


# ---- dependencies


def bounds(requirements):
    """{name: its bounds}, whatever the order in which they are written; extras such as mlx[cpu] are pip's affair."""
    parsed = [Requirement(line) for line in requirements]
    assert len({requirement.name for requirement in parsed}) == len(parsed)
    return {requirement.name: requirement.specifier for requirement in parsed}


def test_conda_and_pip_are_told_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    project = PYPROJECT["project"]
    pip = [f"python{project['requires-python']}", "pip", *project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        pip += extra
    expected = {CONDA_NAMES.get(name, name): specifier for name, specifier in bounds(pip).items()}
    assert bounds(environment["dependencies"]) == expected


def test_the_versions_here_are_within_the_bounds():
    from importlib.metadata import PackageNotFoundError, version

    for extra, requirements in PYPROJECT["project"]["optional-dependencies"].items():
        for name, specifier in bounds(requirements + PYPROJECT["project"]["dependencies"]).items():
            try:
                found = version(name)
            except PackageNotFoundError:
                assert extra in ON_DEMAND, f"{name} of {extra}"
            else:
                assert found in specifier, f"{name} of {extra}"


# ---- the make commands

FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
    *version_info\\ *)  exit {too_old} ;;
    *platform*)  echo {version} ;;
    *ensurepip*) exit {no_venv} ;;
    *version_info*)  echo {minor} ;;
    "-m venv")   echo "$0 $*" ;;
    *)           exit 9 ;;
esac
"""


@pytest.fixture
def path_with(tmp_path):
    """A PATH with nothing on it but stand-ins: Pythons by name and version, some without venv."""

    def make(without_venv=(), **pythons):
        for name, version in pythons.items():
            major, minor = map(int, version.split(".")[:2])
            text = FAKE_PYTHON.format(
                version=version,
                minor=f"{major}.{minor}",
                too_old=int((major, minor) < (3, 11)),
                no_venv=int(version in without_venv),
            )
            script = tmp_path / name.replace("_", ".")
            script.write_text(text)
            script.chmod(0o755)
        return str(tmp_path)

    return make


def make_venv(path, python="", venv="venv"):
    environment = {"PATH": path, "PYTHON": python}
    return run("/bin/sh", str(ROOT / "tools" / "make_venv.sh"), venv, check=False, env=environment, cwd=path)


def test_the_newest_python_that_will_do_makes_the_environment(path_with):
    done = make_venv(path_with(python3="3.9.6", python3_11="3.11.2", python3_13="3.13.0"))
    assert done.returncode == 0
    assert "python3.13 (3.13.0)" in done.stdout
    assert done.stdout.rstrip().endswith("python3.13 -m venv --clear venv")


def test_a_python_that_is_named_is_taken(path_with):
    done = make_venv(path_with(python3_11="3.11.2", python3_13="3.13.0"), python="python3.11")
    assert done.stdout.rstrip().endswith("python3.11 -m venv --clear venv")


@pytest.mark.parametrize(
    "pythons, without_venv, named, sentence",
    [
        ({"python3": "3.9.6"}, (), "", "paged_core needs Python 3.11 or newer, and python3 is 3.9.6: "),
        ({"python3_9": "3.9.6"}, (), "python3.9", "paged_core needs Python 3.11 or newer, and python3.9 is 3.9.6: "),
        ({}, (), "", "paged_core needs Python 3.11 or newer, and none is on PATH: "),
        ({}, (), "snake", "paged_core needs Python 3.11 or newer, and PYTHON=snake is not a Python that runs."),
        (
            {"python3": "3.11.2"},
            ("3.11.2",),
            "",
            "python3 cannot make a virtual environment: on Debian and Ubuntu, apt-get install python3.11-venv.",
        ),
    ],
)
def test_a_python_that_will_not_do_gets_one_sentence(path_with, pythons, without_venv, named, sentence):
    done = make_venv(path_with(without_venv, **pythons), python=named)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_a_good_environment_is_left_alone(tmp_path):
    done = make_venv(str(tmp_path), venv=sys.prefix)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_make_knows_what_the_readme_and_ci_ask_of_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    for name in ("README.md", ".ci/run", ".github/workflows/ci.yml"):
        asked = set(re.findall(r"\bmake ([a-z]+)", (ROOT / name).read_text(encoding="utf-8")))
        assert asked
        assert asked <= targets, name


def test_make_lab_answers(tmp_path):
    """The very command of `make lab`: the tour's first page is there, and so are the kernels."""
    log = tmp_path / "log"
    environment = {"JUPYTER_TOKEN": "secret", "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    with lab_server(ROOT, log, **environment) as address:
        for page in ("lab/tree/notebooks/00_start_here.ipynb", "api/contents/kernels/attention.metal"):
            with urllib.request.urlopen(f"{address}/{page}?token=secret") as answer:
                assert answer.status == 200
    assert f"{address.rpartition(':')[2]}/lab/tree/notebooks/00_start_here.ipynb" in log.read_text()


def test_make_lab_promises_no_port_that_it_may_not_get():
    assert "on port 4321, or the next one that is free" in make("-n", "lab", "PORT=4321")


def test_ci_runs_every_command_and_fails_when_one_does(tmp_path):
    """.ci/run itself, with stand-ins for apt-get and make that write down what they were asked for."""
    assert (ROOT / ".ci" / "run").stat().st_mode & stat.S_IXUSR
    for fails in ("nothing", "lint", "site", "test"):
        log = tmp_path / f"{fails}.log"
        for name in ("apt-get", "make"):
            script = tmp_path / name
            script.write_text(f'#!/bin/sh\necho "{name} $1" >> {log}\ntest "$1" != {fails}\n')
            script.chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = run(str(ROOT / ".ci" / "run"), check=False, env={**os.environ, "PATH": path})
        asked = ["apt-get update", "apt-get install", "make lint", "make site", "make test"]
        assert log.read_text().splitlines() == asked
        assert (done.returncode == 0) == (fails == "nothing")


# ---- the README


def test_every_link_of_the_readme_leads_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href|srcset)="([^"#]+)"', text)
    local = [link for link in links if "://" not in link]
    assert local
    assert not [link for link in local if not (ROOT / link).exists()]


def test_make_says_what_it_can_do():
    said = make("help")
    for target in ("lab", "test", "demo", "notebooks", "site", "lint", "soak", "clean"):
        assert f"make {target} " in said


def test_the_tour_in_the_readme_is_the_tour_in_the_folder():
    linked = re.findall(r"\(notebooks/(\w+\.ipynb)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    written = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert linked == written, "each notebook has its row in the table of README.md"


def test_every_path_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:paged_core|kernels|tests|tools|notebooks|benchmarks|\.github)/[\w./]+)`", text)
    assert len(paths) > 8
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_what_the_readme_shows_in_python_runs(capsys):
    ten_lines, model = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(ten_lines, names)
    assert names["out"].shape == (1, 8, 64)
    assert names["seq"].blocks == [0, 1, 2]
    pytest.importorskip("tokenizers", reason="the tokenizer's library is not installed: pip install '.[models]'")
    exec(model, names := {})
    assert [len(answer) for answer in names["answers"]] == [40, 40]
    assert len(capsys.readouterr().out.split("\n---\n")) == 2


def test_the_picture_of_the_readme_is_what_the_pool_says():
    from tools.picture import PATH, picture

    assert PATH.read_text(encoding="utf-8") == f"{picture()}\n", "run `make notebooks`"
