"""A bad file whose name the output's encoding lacks."""

from common import end, folder, has_traceback, picture, run

root = folder()
picture(root / "f" / "a.png")
(root / "f" / "bad\U0001f600.jpg").write_bytes(b"no picture")
done = run("import", root / "f", "s.lmdb", "--on-error", "skip", env={"PYTHONIOENCODING": "ascii"})
end(
    done.returncode == 1 and not has_traceback(done) and "bad" in done.stdout,
    "the name with the letter escaped, status 1",
)
