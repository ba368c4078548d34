"""A link to itself in a folder of pictures."""

from common import end, folder, picture, run

root = folder()
picture(root / "f" / "a.png")
(root / "f" / "data").symlink_to("data")
done = run("import", root / "f", "s.lmdb")
end(
    done.returncode == 0 and "data" in done.stdout,
    "a.png is imported, and the link listed as left out, as with --layout pictures",
)
