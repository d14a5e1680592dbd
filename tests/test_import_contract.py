"""What .importlinter cannot say about the house."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("dist_alexnet", "shards", "launch") for path in (ROOT / package).rglob("*.py"))


def test_package_files_are_empty() -> None:
    packages = [path for path in SOURCES if path.name == "__init__.py"]
    assert packages
    assert [str(path) for path in packages if path.read_text().strip()] == []


def test_only_environment_reads_environment_variables() -> None:
    readers = {str(path.relative_to(ROOT)) for path in SOURCES if _touches_environment(path)}
    assert readers == {"dist_alexnet/environment.py"}


def test_no_attic() -> None:
    assert [str(path) for path in SOURCES if path.name in ("utils.py", "types.py", "helpers.py")] == []


def _touches_environment(path: Path) -> bool:
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "os" and node.attr in names:
                return True
        elif isinstance(node, ast.ImportFrom) and node.module == "os" and names & {item.name for item in node.names}:
            return True
    return False
