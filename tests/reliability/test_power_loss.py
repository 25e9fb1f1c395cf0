"""A loss of power at any moment: what a run writes is recorded by strace, and replayed up to every point.

Three disks are imagined, after each of the operations:

- everything that was written is there
- names are there, but of the data only what was synced (a disk that writes data late)
- only what was synced is there: of the data, and of the names in each folder
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.runs import BEGIN, finish, require_sound

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("strace") is None, reason="needs strace"),
]

_CALLS = "openat,open,creat,write,writev,pwrite64,lseek,fsync,fdatasync,rename,renameat,renameat2"
_CALLS += ",unlink,unlinkat,mkdir,mkdirat,rmdir,ftruncate,close,dup,dup2,dup3"
_LINE = re.compile(r"^(?:\d+ +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclasses.dataclass
class File:
    """A file: its data now, and as last synced."""

    data: bytearray = dataclasses.field(default_factory=bytearray)
    synced: bytes = b""


@dataclasses.dataclass
class Folder:
    """A folder: its names now, and as last synced."""

    names: dict[str, File | Folder] = dataclasses.field(default_factory=dict)
    synced: dict[str, File | Folder] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Handle:
    """An open file or folder."""

    node: File | Folder
    position: int = 0
    appends: bool = False


class Disk:
    """A disk on which recorded calls are repeated. ``root`` is the only folder that is looked at."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()
        self.handles: dict[int, Handle] = {}

    def find(self, path: str) -> tuple[Folder, str] | None:
        """The folder that a path lies in, and its name there; None outside of the root."""
        if not path.startswith(f"{self.root}/"):
            return None
        *folders, name = Path(path).relative_to(self.root).parts
        node: File | Folder | None = self.top
        for each in folders:
            node = node.names.get(each) if isinstance(node, Folder) else None
        return (node, name) if isinstance(node, Folder) else None

    def open(self, path: str, flags: str, handle: int) -> bool:
        self.handles.pop(handle, None)
        if path == str(self.root):
            self.handles[handle] = Handle(self.top)
            return False
        if not (found := self.find(path)):
            return False
        folder, name = found
        changes = name not in folder.names or "O_TRUNC" in flags
        node = folder.names.setdefault(name, File())
        if "O_TRUNC" in flags and isinstance(node, File):
            node.data.clear()
        self.handles[handle] = Handle(node, 0, "O_APPEND" in flags)
        return changes

    def write(self, handle: int, data: bytes, at: int | None = None) -> bool:
        opened = self.handles.get(handle)
        if opened is None or not isinstance(opened.node, File):
            return False
        target = opened.node.data
        start = len(target) if opened.appends else opened.position if at is None else at
        target.extend(bytes(max(0, start - len(target))))
        target[start : start + len(data)] = data
        if at is None:
            opened.position = start + len(data)
        return True

    def sync(self, handle: int) -> bool:
        opened = self.handles.get(handle)
        if opened is None:
            return False
        if isinstance(opened.node, File):
            opened.node.synced = bytes(opened.node.data)
        else:
            opened.node.synced = dict(opened.node.names)
        return True

    def rename(self, old: str, new: str) -> bool:
        source, target = self.find(old), self.find(new)
        if source is None or target is None:
            return False
        target[0].names[target[1]] = source[0].names.pop(source[1])
        return True

    def remove(self, path: str) -> bool:
        found = self.find(path)
        return found is not None and found[0].names.pop(found[1], None) is not None

    def make_folder(self, path: str) -> bool:
        found = self.find(path)
        if found is not None:
            found[0].names[found[1]] = Folder()
        return found is not None

    def after_power_loss(self, names_synced: bool, data_synced: bool) -> dict[str, bytes | None]:
        """What is there: paths with data, None for folders."""

        def walk(folder: Folder, path: str) -> Iterator[tuple[str, bytes | None]]:
            for name, node in (folder.synced if names_synced else folder.names).items():
                if isinstance(node, File):
                    yield f"{path}{name}", node.synced if data_synced else bytes(node.data)
                else:
                    yield f"{path}{name}", None
                    yield from walk(node, f"{path}{name}/")

        return dict(walk(self.top, ""))


def repeat(record: Path, disk: Disk) -> Iterator[None]:
    """Repeat the calls of a record on a disk; yields after each one that has changed it."""
    for line in whole_lines(record):
        found = _LINE.match(line)
        if found is None or int(found["result"]) < 0:
            continue
        call, arguments, result = found["call"], found["arguments"], int(found["result"])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(arguments)]
        paths = [text.decode(errors="replace") for text in texts]
        number = re.match(r"(\d+)", arguments)
        handle = int(number[1]) if number else -1
        # Folders that a call names by a number have their path beside it (strace -y).
        beside = [
            bytes.fromhex(text.replace("\\x", "")).decode()
            for text in re.findall(r"<((?:\\x..)*)>", arguments)
        ]
        if call in ("unlinkat", "openat", "mkdirat", "renameat", "renameat2") and len(beside) >= len(paths):
            paths = [str(Path(folder) / path) for folder, path in zip(beside, paths, strict=False)]
        changed = False
        if call in ("openat", "open", "creat"):
            changed = disk.open(paths[0], arguments + ("O_TRUNC" if call == "creat" else ""), result)
        elif call in ("write", "writev"):
            changed = disk.write(handle, b"".join(texts)[:result])
        elif call == "pwrite64":
            changed = disk.write(handle, texts[0][:result], int(arguments.rsplit(",", 1)[1]))
        elif call == "lseek" and handle in disk.handles:
            disk.handles[handle].position = result
        elif call in ("fsync", "fdatasync"):
            changed = disk.sync(handle)
        elif call.startswith("rename"):
            changed = disk.rename(paths[0], paths[1])
        elif call in ("unlink", "unlinkat", "rmdir"):
            changed = disk.remove(paths[0])
        elif call in ("mkdir", "mkdirat"):
            changed = disk.make_folder(paths[0])
        elif call == "close":
            disk.handles.pop(handle, None)
        if changed:
            yield


def whole_lines(record: Path) -> Iterator[str]:
    """The lines of a record. Calls that strace has shown in two parts are joined."""
    begun: dict[str, str] = {}
    with record.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            process = line.split(" ", 1)[0]
            if line.rstrip().endswith("<unfinished ...>"):
                begun[process] = line.rstrip().removesuffix("<unfinished ...>")
            elif "resumed>" in line:
                yield begun.pop(process, "") + line.split("resumed>", 1)[1]
            else:
                yield line


def test_a_run_can_go_on_after_a_loss_of_power_at_any_point(tmp_path: Path) -> None:
    record, root = tmp_path / "record", tmp_path / "disk"
    root.mkdir()
    strace = ["strace", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={_CALLS}", "-o", str(record)]
    status, said = finish([*strace, *BEGIN, "-o", str(root / "run"), "--steps", "6"])
    if "strace: " in said and status:
        pytest.skip(f"strace: {said.splitlines()[0]}")
    assert status == 0, said
    disk, seen, points, promised = Disk(root), set[str](), 0, -1
    for _ in repeat(record, disk):
        points += 1
        synced = disk.after_power_loss(True, True)
        complete = [path for path in synced if re.fullmatch(r"run/checkpoints/\d+", path)]
        promised = max([promised, *(int(path.rsplit("/", 1)[1]) for path in complete)])
        for there in (disk.after_power_loss(False, False), disk.after_power_loss(False, True), synced):
            key = hashlib.sha256(repr(sorted(there.items())).encode()).hexdigest()
            if key in seen:
                continue
            seen.add(key)
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            for path, data in there.items():
                if data is None:
                    (copy / path).mkdir()
                else:
                    (copy / path).write_bytes(data)
            assert require_sound(copy / "run") >= promised, f"point {points}: {sorted(there)}"
    print(f"{points} points, {len(seen)} different disks")
    final = {path: data for path, data in disk.after_power_loss(False, False).items() if data is not None}
    assert final == {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }
    assert promised == 6 and points > 100
