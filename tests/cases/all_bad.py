"""A folder of bad files only, with --on-error skip."""

from pathlib import Path

from common import end, folder, picture, run

root = folder()
for number in range(3):
    (root / "bad").mkdir(exist_ok=True)
    (root / "bad" / f"{number}.jpg").write_bytes(b"no picture")
picture(root / "good" / "a.png")
done = run("import", root / "bad", "s.lmdb", "--on-error", "skip")
left = [path.name for path in Path().glob("s.lmdb*")]
print("left:", left)
again = run("import", root / "good", "s.lmdb")
right = done.returncode == 1 and not left and "--on-error skip" not in done.stderr and again.returncode == 0
end(right, "status 1, that nothing is left to import, no .partial, and another import to that name works")
