"""Imports flow one way, and heavy libraries are imported in one module each."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What each folder may import from; a folder may always import itself.
FLOORS = [
    ["errors"], ["names", "files"], ["config"], ["distributed"],
    ["data", "models"], ["training"], ["fewshot"], ["report", "runs"], ["stages"], ["classifier"], ["launch"],
]  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[Path]:
    return [*(ROOT / "dist_train").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "dist_train" and len(parts) > 1 else parts[0]


def test_imports_flow_one_way() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = []
    for path in sources():
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module in imports(path):
            there = room(module)
            if here in floor and there in floor and floor[there] > floor[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, wrong


def test_libraries_have_one_door_each_and_tools_has_none() -> None:
    doors: dict[str, set[str]] = {"nvidia.dali": set(), "deepspeed": set(), "submitit": set()}
    for path in sources():
        text = path.read_text()
        assert not any(name == "tools" or name.startswith("tools.") for name in imports(path)), path
        for library, users in doors.items():
            if any(n == library or n.startswith(library + ".") for n in imports(path)) or f'f"{library}' in text:
                users.add(path.name)
            if f'import_module("{library}' in text:
                users.add(path.name)
    assert doors["nvidia.dali"] == {"dali.py"} and doors["deepspeed"] == {"deepspeed.py"}
    assert all(len(users) <= 1 for users in doors.values())


def test_files_stay_short() -> None:
    long = {str(p.relative_to(ROOT)): n for p in [*sources(), *(ROOT / "tools").glob("*.py")]
            if (n := len(p.read_text().splitlines())) > 400}  # fmt: skip
    assert not long
