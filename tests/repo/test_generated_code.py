"""The repository tests itself: generated files are what their sources generate."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_proto_code_is_current(tmp_path: Path) -> None:
    """``make proto`` would change nothing."""
    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("proto/**/*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    tools = str(Path(sys.executable).parent)
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", *outputs, *protos],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
    )
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*pb2*")}
    committed = {path.relative_to(ROOT / "proto"): path.read_bytes() for path in ROOT.glob("proto/**/*pb2*.py*")}
    assert {name for name in made if made[name] != committed.get(name)} == set()
    assert set(committed) - set(made) == set()
