"""docs/sample_report.html: the report of one run of the whole loop on a real model.

    make models
    python benchmarks/sample_report.py      # the run first, or goes on with it: a quarter of an hour

The run is examples/smollm2.yaml on the questions that ship in examples/, for the page shows some of them. It must not name this
machine.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from ka2l_ray.report import write_report

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "runs/sample"
MOST_BYTES = 1_500_000


def main() -> None:
    files = RUN.with_name("sample_questions")
    subprocess.run([sys.executable, "examples/questions.py", "--data", "none", "--out", str(files)], cwd=ROOT, check=True)
    values = {"output": RUN, "pool.questions": files / "pool.jsonl", "pool.test": files / "test.jsonl"}
    overrides = [word for key, value in values.items() for word in ("-o", f"{key}={value.relative_to(ROOT)}")]
    subprocess.run([sys.executable, "-m", "ka2l_ray", "run", "examples/smollm2.yaml", *overrides], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        write_report(folder, [str(RUN)])
        page = (Path(folder) / "report.html").read_text()
    text = re.sub(r'src="data:[^"]*"', "", page)
    named = [path for path in (str(ROOT), f"{Path.home()}/") if path in text]
    named += re.findall(rf"\b{re.escape(socket.gethostname())}\b", text)
    if named or len(page.encode()) > MOST_BYTES:
        raise SystemExit(f"the page names this machine ({named}) or is too large ({len(page.encode())} bytes)")
    (ROOT / "docs/sample_report.html").write_text(page)
    print(f"wrote {ROOT / 'docs/sample_report.html'}, {len(page.encode()):,} bytes")


if __name__ == "__main__":
    main()
