"""The same run started twice: what the persistent compilation cache saves.

python benchmarks/second_start.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

ROOT = Path(__file__).parent.parent
RUN = [
    "--config=configs/shapes.py",
    "--config.steps=2",
    "--config.eval.every_epochs=2.0",
    "--config.data.eval_count=16",
]


def start(workdir: Path, cache: Path) -> tuple[float, int]:
    """Seconds that a run of two steps and an evaluation takes, and the number of programs in the cache."""
    kept = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, str(ROOT / "main.py"), *RUN, f"--workdir={workdir}"]
    begin = time.perf_counter()
    subprocess.run(
        command, cwd=ROOT, env={**kept, "XDG_CACHE_HOME": str(cache)}, check=True, capture_output=True
    )
    return time.perf_counter() - begin, len(list(cache.rglob("*-cache")))


def main() -> None:
    """Prints the table and writes it."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        print("| start | seconds | programs in the cache |\n| --- | --- | --- |")
        for number in range(1, 7):
            seconds, programs = start(path / f"run{number}", path / "cache")
            rows.append({"start": number, "seconds": seconds, "programs": programs})
            print(f"| {number} | {seconds:.1f} | {programs} |", flush=True)
    measure.write(__file__, rows)


if __name__ == "__main__":
    main()
