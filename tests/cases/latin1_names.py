"""File names that are UTF-8, under a Latin-1 locale. Needs localedef, to make one."""

import os
import shutil
import subprocess
from pathlib import Path

from common import PYTHON, end, folder, has_traceback, picture, run, skip

if not shutil.which("localedef"):
    skip("needs localedef")
root = folder()
subprocess.run(
    ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(root / "en_US.ISO-8859-1")], capture_output=True, check=False
)
latin1 = {"LOCPATH": str(root), "LC_ALL": "en_US.ISO-8859-1"}
seen = subprocess.run(
    [PYTHON, "-c", "import sys; print(sys.getfilesystemencoding())"],
    env={**os.environ, **latin1},
    capture_output=True,
    text=True,
    check=True,
).stdout
if "8859" not in seen:
    skip(f"no Latin-1 locale could be made, Python has {seen}")
names = {name.encode() for name in ("größe.jpg", "한국.jpg")}
place = os.fsencode(root / "f")
(root / "f").mkdir()
for number, name in enumerate(sorted(names)):
    shutil.copy(picture(root / f"{number}.jpg"), place + b"/" + name)


def names_in(name):
    return {os.fsencode(path.name) for path in Path(name).iterdir()}


def told(done):
    return done.returncode == 1 and not has_traceback(done) and "locale" in done.stderr


done = run("import", "f", "s.lmdb", env=latin1)
right = told(done)
if done.returncode == 0:
    run("export", "s.lmdb", "x")
    print(names_in("x"))
    right = names_in("x") == names
run("import", "f", "good.lmdb")
done = run("export", "good.lmdb", "y", env=latin1)
right = right and (told(done) or (done.returncode == 0 and names_in("y") == names))
end(right, "the names' bytes both ways, or an error that says what is wrong with the locale")
