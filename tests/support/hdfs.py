"""A program ``hdfs`` that works on a local directory and says what Hadoop's own says.

Its words and codes are those of Hadoop 3.4.1, seen with a real name node.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

PROGRAM = r"""#!{python} -SE
import os, sys, time
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
root = os.path.join(here, "root")
with open(os.path.join(here, "calls"), "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")

def out(code, *words):
    sys.stderr.write("WARN util.NativeCodeLoader: Unable to load native-hadoop library for your platform\n")
    for word in words:
        sys.stderr.write(sys.argv[2].lstrip("-") + ": " + word + "\n")
    sys.exit(code)

for name in (sys.argv[2], "every"):
    told = os.path.join(here, "told" + name)
    if os.path.exists(told):
        code, wait, words = open(told).read().split("\n", 2)
        if float(wait):
            with open(os.path.join(here, "pid"), "w") as file:
                file.write(str(os.getpid()))
            os.close(1), os.close(2) if float(wait) < 0 else None
            time.sleep(abs(float(wait)))
        sys.stderr.write(words)
        sys.exit(int(code))

def local(path):
    if path.startswith("hdfs://"):
        path = "/" + path[7:].partition("/")[2]
    return root + path

flags = [a for a in sys.argv[3:] if a.startswith("-") and a != "-"]
paths = [a for a in sys.argv[3:] if a not in flags]
command = sys.argv[2]
if command == "-mkdir":
    try:
        os.makedirs(local(paths[0]), exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        out(1, paths[0] + " (is not a directory)")
elif command == "-put":
    path = local(paths[1])
    if os.path.exists(path) and "-f" not in flags:
        out(1, "`" + paths[1] + "': File exists")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + "._COPYING_", "wb") as file:
        file.write(sys.stdin.buffer.read())
    os.replace(path + "._COPYING_", path)
elif command == "-test":
    sys.exit(0 if os.path.isfile(local(paths[0])) else 1)
elif command == "-cat":
    path = local(paths[0])
    if not os.path.isfile(path):
        out(1, "`" + paths[0] + "': No such file or directory")
    sys.stdout.buffer.write(open(path, "rb").read())
elif command == "-mv":
    if not os.path.exists(local(paths[0])):
        out(1, "`" + paths[0] + "': No such file or directory")
    if os.path.exists(local(paths[1])):
        out(1, "`" + paths[1] + "': File exists")
    try:
        os.link(local(paths[0]), local(paths[1]))
    except FileExistsError:
        out(1, "`" + paths[0] + "': Input/output error")
    os.unlink(local(paths[0]))
elif command == "-rm":
    if os.path.exists(local(paths[0])):
        os.unlink(local(paths[0]))
        print("Deleted " + paths[0])
    elif "-f" not in flags:
        out(1, "`" + paths[0] + "': No such file or directory")
elif command == "-ls":
    if not os.path.exists(local(paths[0])):
        out(1, "`" + paths[0] + "': No such file or directory")
    def rows(path, shown):
        for name in sorted(os.listdir(path)):
            entry = os.path.join(path, name)
            if os.path.isdir(entry):
                print("drwxr-xr-x   - root domain users          0 2026-11-23 21:50 " + shown + "/" + name)
                rows(entry, shown + "/" + name)
            else:
                size = os.path.getsize(entry)
                print("-rw-r--r--   1 root domain users %10d 2026-11-23 21:50 %s/%s" % (size, shown, name))
    rows(local(paths[0]), paths[0])
else:
    sys.stderr.write(command + ": Unknown command\nUsage: hadoop fs [generic options]\n")
    sys.exit(255)
out(0)
"""


@dataclass(frozen=True)
class Hadoop:
    """An installation.

    :param home: for ``HADOOP_HOME``.
    """

    home: Path

    @property
    def root(self) -> Path:
        """Where the files are."""
        return self.home / "root"

    @property
    def calls(self) -> list[str]:
        """The arguments of every call."""
        return (self.home / "calls").read_text().splitlines()

    @property
    def pid(self) -> int | None:
        """The program that waits, if one has begun to."""
        file = self.home / "pid"
        return int(file.read_text() or 0) or None if file.exists() else None

    def tell(self, words: str, *, command: str = "every", code: int = 1, wait_s: float = 0) -> None:
        """Let a command say this and end.

        :param wait_s: how long it waits before.
        """
        (self.home / f"told{command}").write_text(f"{code}\n{wait_s}\n{words}")


def install(directory: Path) -> Hadoop:
    """Make an installation."""
    program = directory / "bin" / "hdfs"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM.replace("{python}", shutil.which("python3") or sys.executable))
    program.chmod(0o755)
    (directory / "root").mkdir()
    return Hadoop(directory)
