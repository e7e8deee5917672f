"""Who may import whom, read from the source: a package imports only from its left, and some never import some."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sepcli"
ORDER = ["errors", "audio", "dsp", "nn", "models", "weights", "inference", "batch", "metrics", "training", "cli"]
FILES = sorted(PACKAGE.rglob("*.py"))
LIGHT = {"typer", "sepcli"}  # beside the standard library, at the top of what `--help` loads


def layer(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports(path: Path, *, top: bool = False) -> list[str]:
    """Modules that a file imports: anywhere, or only those that importing the file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    nodes = list(tree.body) if top else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports say the whole name"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def ours(name: str) -> str | None:
    """The layer of one of our modules."""
    parts = name.split(".")
    return parts[1] if parts[0] == "sepcli" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_package_imports_only_from_its_left(path: Path) -> None:
    own = layer(path)
    if own not in ORDER:
        assert own in ("__init__", "__main__")
        return
    for name in imports(path):
        other = ours(name)
        if other is not None:
            assert ORDER.index(other) <= ORDER.index(own), f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_some_never_import_some(path: Path) -> None:
    own, names = layer(path), imports(path)
    roots = {name.split(".")[0] for name in names}
    if own == "audio":
        assert not roots & {"torch", "torchaudio"}
    if own in ("dsp", "nn", "models"):
        assert not any(ours(name) == "audio" for name in names)
        assert not roots & {"logging", "soundfile", "soxr", "av", "rich", "typer"}
        assert "print(" not in path.read_text(encoding="utf-8")
    if own == "models" and path.stem not in ("__init__", "separator"):
        others = {name for name in names if name.startswith("sepcli.models.")}
        family = path.stem.removesuffix("_fast")  # a fast form stands beside its model
        own_names = ("sepcli.models.separator.", f"sepcli.models.{family}.", f"sepcli.models.{family}_fast.")
        assert all(name.startswith(own_names) for name in others), "a model never imports another"


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if layer(p) in ("__init__", "__main__", "errors", "cli")]
    + [PACKAGE / "weights" / "catalog.py", PACKAGE / "weights" / "fetch.py", PACKAGE / "weights" / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_help_loads_is_light(path: Path) -> None:
    import sys

    for name in imports(path, top=True):
        root = name.split(".")[0]
        assert root in sys.stdlib_module_names or root in LIGHT, f"{path} imports {name} at its top"


def test_the_rule_would_notice_a_wrong_import() -> None:
    assert ours("sepcli.cli.console") == "cli"
    assert ORDER.index("cli") > ORDER.index("models")
    assert "torch.nn" in imports(PACKAGE / "models" / "separator.py")
