"""One type name means one thing in the whole project, and files and functions stay short."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "stages").rglob("*.py"))
FILE_LINES = 250
FUNCTION_LINES = 60


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in FILES}


def type_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names of classes and type aliases of a module. Type variables are not types."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and is_type(node.value):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def is_type(value: ast.expr) -> bool:
    """Whether an expression is a type: `A[B]`, `A | B`, or a call such as NewType("A", B)."""
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.BitOr) and is_type(value.left)
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in ("NewType", "NamedTuple", "TypedDict")
    if isinstance(value, ast.Subscript):
        value = value.value
    return isinstance(value, ast.Name | ast.Attribute) and is_capitalised(ast.unparse(value))


def is_capitalised(name: str) -> bool:
    last = name.split(".")[-1]
    return last in ("dict", "list", "set", "tuple") or (last[0].isupper() and not last.isupper())


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_type_name_is_defined_in_two_modules(trees: dict[str, ast.Module]) -> None:
    modules = defaultdict(set)
    for path, tree in trees.items():
        for name in type_names(tree):
            modules[name].add(path)
    assert len(modules) > 200
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}


def test_files_have_at_most_250_lines() -> None:
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {path for path, length in lengths.items() if length > FILE_LINES} == set()


def test_functions_have_at_most_60_lines(trees: dict[str, ast.Module]) -> None:
    long = {
        f"{path}:{function.name}"
        for path, tree in trees.items()
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno >= FUNCTION_LINES
    }
    assert long == set()


def test_function_names_say_what_the_function_does(trees: dict[str, ast.Module]) -> None:
    unclear = [path for path, tree in trees.items() if "of" in {f.name for f in functions(tree)}]
    assert unclear == []
