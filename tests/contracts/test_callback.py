"""The callback is no place where others keep things: nobody takes it as an argument, and it holds little itself."""

import ast
from pathlib import Path

import pytest

from colearn_hpc import CoLearning
from colearn_hpc.trainer.lightning_gaps import _BATCH_HOOKS

PACKAGE = Path(__file__).parents[2] / "colearn_hpc"
ITS_OWN = "trainer/callback.py"


def takers(source: str) -> list[str]:
    """Functions with a parameter that is annotated as a CoLearning. ``type[CoLearning]``, the class itself, may be
    made by whoever likes."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
            if any(one.annotation is not None and names_it(one.annotation) for one in every):
                found.append(node.name)
    return found


def names_it(annotation: ast.expr) -> bool:
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return names_it(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("type", "Type", "typing.Type"):
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).split(".")[-1] == "CoLearning"
    return any(names_it(child) for child in ast.iter_child_nodes(annotation) if isinstance(child, ast.expr))


def held(callback: CoLearning) -> set[str]:
    """What an object holds, without the hooks that Lightning is to pass over."""
    return {name for name, value in vars(callback).items() if not (value is None and name in _BATCH_HOOKS)}


def test_nobody_takes_the_callback():
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / ITS_OWN and (names := takers(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("parameters", "takes"),
    [
        ("c: CoLearning", True),
        ("c: 'CoLearning'", True),
        ("c: CoLearning | None = None", True),
        ("*, c: Optional['CoLearning']", True),
        ("*c: callback.CoLearning", True),
        ("c: dict[str, CoLearning]", True),
        ("c: type[CoLearning]", False),
        ("c: 'type[CoLearning]'", False),
        ("c: str = 'CoLearning'", False),
    ],
)
def test_the_walk_sees_who_takes_it(parameters, takes):
    """A contract that cannot fail is none."""
    assert takers(f"class A:\n    def f(self, {parameters}) -> CoLearning: ...") == (["f"] if takes else [])


def test_it_holds_little():
    assert len(held(CoLearning(rounds=1))) < 10


def test_what_it_holds_is_counted():
    callback = CoLearning(rounds=1)
    before = held(callback)
    assert "settings" in before and not before & set(_BATCH_HOOKS)
    callback.on_after_backward, callback.more = print, None
    assert held(callback) == before | {"on_after_backward", "more"}
