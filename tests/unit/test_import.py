"""Which way imports run: the core without ray, vllm and deepspeed; actors without jobs; stages without driver and commands."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ka2l_ray

PACKAGE = Path(ka2l_ray.__file__).parent
UPPER = ("actors", "jobs", "__main__.py")
HEAVY = ("ray", "vllm", "deepspeed")


def core_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in UPPER)


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path) -> Iterator[str]:
    """Every module that a source names in an import, wherever in the file; a from-import also as module.name."""
    package = module_name(path).split(".") if path.name == "__init__.py" else module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


# A process in which ray, vllm and deepspeed cannot be found, as where they are not installed.
WITHOUT = f"""
import sys

class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {HEAVY} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
"""


def run_without(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + script], capture_output=True, text=True)


def test_the_package_imports_at_once() -> None:
    run = run_without("import ka2l_ray; print([m for m in sys.modules if m in ('torch', 'transformers', 'numpy')])")
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_the_face_of_the_core_comes_when_it_is_asked_for_without_ray_vllm_and_deepspeed() -> None:
    script = """
import ka2l_ray
assert set(ka2l_ray.__all__) <= set(dir(ka2l_ray))
from ka2l_ray import KnowledgeProbe, Learner, Uncertainty
print(Uncertainty(judge="exact").of([["a", "a", "b"]])["cluster_ids"][0], Learner.__name__, KnowledgeProbe.__name__)
ka2l_ray.Uncertain
"""
    run = run_without(script)
    assert run.stdout.strip() == "[0, 0, 1] Learner KnowledgeProbe"
    assert "AttributeError: module 'ka2l_ray' has no attribute 'Uncertain'" in run.stderr


def test_every_core_module_imports_without_ray_vllm_and_deepspeed() -> None:
    modules = [module_name(path) for path in core_files()]
    assert {
        "ka2l_ray.models.language_model",
        "ka2l_ray.finetuning",
        "ka2l_ray.semantics.judges",
        "ka2l_ray.store.artefacts",
    } <= set(modules)
    loop = f"import importlib\nfor name in {modules}: importlib.import_module(name)\n"
    left = f"print([m for m in sys.modules if m.split('.')[0] in {HEAVY} or m.startswith(('ka2l_ray.jobs', 'ka2l_ray.actors'))])"
    run = run_without(loop + left)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


def test_the_blocker_blocks() -> None:
    """Else the two tests above would say nothing."""
    run = run_without("import ray")
    assert run.returncode == 1
    assert "ModuleNotFoundError: No module named 'ray'" in run.stderr


@pytest.mark.parametrize("path", core_files(), ids=module_name)
def test_no_core_source_imports_what_lies_above_it(path: Path) -> None:
    above = [*HEAVY, "ka2l_ray.actors", "ka2l_ray.jobs", "actors", "jobs"]
    assert [m for m in imported_by(path) for upper in above if within(m, upper)] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "actors").glob("**/*.py")), ids=module_name)
def test_actors_do_not_import_jobs(path: Path) -> None:
    assert [m for m in imported_by(path) if within(m, "ka2l_ray.jobs") or within(m, "jobs")] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "jobs/stages").glob("*.py")), ids=module_name)
def test_stages_import_neither_the_driver_nor_commands(path: Path) -> None:
    jobs = [m for m in imported_by(path) if within(m, "ka2l_ray.jobs")]
    assert [m for m in jobs if not within(m, "ka2l_ray.jobs.stages")] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "jobs").glob("*.py")), ids=module_name)
def test_the_driver_does_not_import_commands(path: Path) -> None:
    assert [m for m in imported_by(path) if within(m, "ka2l_ray.jobs.commands")] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "jobs").glob("**/*.py")), ids=module_name)
def test_jobs_import_the_package_by_its_full_name(path: Path) -> None:
    assert [m for m in imported_by(path) if within(m, "actors") or within(m, "jobs")] == []
