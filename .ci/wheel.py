"""Fail unless a wheel holds exactly the three packages, with their types and scripts."""

import sys
from pathlib import Path
from zipfile import ZipFile

PACKAGES = {"engine", "actors", "integrations"}

names = ZipFile(sys.argv[1]).namelist()
folders = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
if folders != PACKAGES:
    sys.exit(f"the wheel holds {sorted(folders)}, not {sorted(PACKAGES)}")

root = Path(__file__).parent.parent
kinds = ("*.py", "*.lua", "py.typed")
wanted = {
    str(path.relative_to(root)) for package in PACKAGES for kind in kinds for path in root.glob(f"{package}/**/{kind}")
}
if missing := wanted - set(names):
    sys.exit(f"the wheel lacks {sorted(missing)}")
sys.stdout.write(f"{len(wanted)} files in {', '.join(sorted(PACKAGES))}\n")
