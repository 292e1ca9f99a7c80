"""docs/sample_report.html: the report of one run of the whole loop on a real model.

    make models
    python benchmarks/sample_report.py      # runs examples/smollm2.yaml first, or goes on with it: a quarter of an hour

The page is that of runs/smollm2/report.html; it must not name this machine.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from ka2l_ray.report import write_report

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 1_500_000


def main() -> None:
    subprocess.run([sys.executable, "-m", "ka2l_ray", "run", "examples/smollm2.yaml"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        write_report(folder, [str(ROOT / "runs/smollm2")])
        page = (Path(folder) / "report.html").read_text()
    named = [name for name in (str(ROOT), str(Path.home()) + "/", socket.gethostname()) if name in page]
    if named or len(page.encode()) > MOST_BYTES:
        raise SystemExit(f"the page names this machine ({named}) or is too large ({len(page.encode())} bytes)")
    (ROOT / "docs/sample_report.html").write_text(page)
    print(f"wrote {ROOT / 'docs/sample_report.html'}, {len(page.encode()):,} bytes")


if __name__ == "__main__":
    main()
