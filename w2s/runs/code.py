"""The code that computes a run, as a part of what makes the run valid."""

from __future__ import annotations

import ast
import hashlib
import warnings

from w2s.params import PACKAGE, ParameterError

# Whatever a margin depends on, given the pairs, the models and the RunSpec.
COMPUTES = ("losses.py", "batches.py", "models.py", "predict.py", "train.py", "data.py", "sources/adapters.py")
COMPUTES += ("fast/packed.py", "fast/lower.py", "fast/cpu.py")
COMPUTES += ("runs/states.py", "runs/labels.py", "runs/execute.py", "runs/sharded.py")


def read() -> dict[str, str]:
    """A hash of each module of COMPUTES as it stands on disk, by what it does: comments and docstrings do not count."""
    return {name: _hash((PACKAGE / name).read_text(encoding="utf-8")) for name in COMPUTES}


def _hash(source: str) -> str:
    with warnings.catch_warnings():  # about an escape that a student mistyped, which its import shows
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = _WithoutTexts().visit(ast.parse(source))
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


class _WithoutTexts(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


IMPORTED = read()  # what this process computes with, whatever is edited after it started


def changed(recorded: dict[str, str]) -> list[str]:
    """The modules that differ from those of a record, such as a finished run's."""
    return [name for name, digest in IMPORTED.items() if recorded.get(name) != digest]


def check() -> None:
    """Raises ParameterError where a module was edited after this process imported it, and so would not be used."""
    try:
        now = read()
    except (SyntaxError, OSError) as error:
        raise ParameterError(f"the kit's code cannot be read ({error}); correct it") from None
    if edited := changed(now):
        raise ParameterError(
            f"{', '.join(edited)}: changed since this process imported it; restart the kernel (or run w2s again)"
        )
