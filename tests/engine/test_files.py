"""Writes and locks on file systems other than those of Linux, and on those that lack something: simulated."""

import errno
import os
import sys

import filelock  # imported here, while the system still shows its own locks
import pytest
import torch
from conftest import gan_flags, run

import gen_condense
from engine import files
from engine.environment import commit
from engine.files import locked, write_atomic, write_json
from utils import UsageError


@pytest.fixture
def windows(monkeypatch):
    """Windows: no fcntl, no handle of a folder, and no fsync of a handle that is open for reading."""
    from fcntl import F_GETFL, fcntl

    fsync, open_ = os.fsync, os.open

    def flush(handle):
        if fcntl(handle, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(handle)

    def open_file(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_(path, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setitem(sys.modules, "fcntl", None)


def test_files_are_written_on_windows(windows, tmp_path):
    write_json(tmp_path / "a.json", [1])
    write_json(tmp_path / "a.json", [2])
    assert (tmp_path / "a.json").read_text().split() == ["[", "2", "]"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_goes_on_on_windows(windows, tmp_path):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    run(gen_condense, gan_flags(tmp_path, "--epochs", "2"))
    assert torch.load(tmp_path / "gan" / "last.pth", weights_only=True)["position"] == {"epoch": 2, "step": 0}


def check_lock(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(UsageError, match="another process is writing there"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):  # free again
        pass
    other = filelock.FileLock(tmp_path / ".lock")
    with other, pytest.raises(UsageError, match="another process is writing there"), locked(tmp_path):
        pass


def test_a_folder_is_locked(tmp_path):
    check_lock(tmp_path)


def test_a_folder_is_locked_on_windows(windows, tmp_path):
    check_lock(tmp_path)


@pytest.mark.parametrize("refusals", [3, 1000])
def test_a_rename_that_is_refused_while_another_program_reads_is_tried_again(refusals, tmp_path, monkeypatch):
    replace, left, path = os.replace, [refusals], tmp_path / "a.json"
    write_json(path, 1)

    def busy(*args):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        replace(*args)

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    if refusals == 3:
        write_json(path, 2)
    else:
        with pytest.raises(PermissionError):
            write_json(path, 2)
    assert path.read_text() == ("2\n" if refusals == 3 else "1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_cannot_flush(number, tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.EIO:  # a broken disk is told
        with pytest.raises(OSError, match=os.strerror(number)):
            write_json(tmp_path / "a.json", 1)
    else:
        write_json(tmp_path / "a.json", 1)
    assert [path.name for path in tmp_path.iterdir()] == ([] if number == errno.EIO else ["a.json"])


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda handle: flushed.append(os.readlink(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    write_atomic(tmp_path / "a", lambda path: path.write_text("a"))
    assert [os.path.dirname(flushed[0]), *flushed[1:]] == [str(tmp_path), str(tmp_path)]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_about(number, tmp_path, monkeypatch, capsys):
    import fcntl

    def none(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path):
        pass
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path}: this file system has no locks")


def test_the_commit_is_found_whatever_bytes_a_changed_file_holds(monkeypatch):
    import subprocess

    call = subprocess.run

    def changed(command, **kwargs):
        return call((sys.executable, "-c", "import os; os.write(1, bytes([255, 10]))"), **kwargs)

    monkeypatch.setattr(subprocess, "run", changed)
    assert "-dirty-" in commit()


@pytest.mark.parametrize("tag", [".", "./", "", " ", "..", "a/../..", "/tmp"])
def test_a_tag_is_the_name_of_a_folder(tag):
    with pytest.raises(UsageError, match="--tag"):
        files.run_path("results", tag)
