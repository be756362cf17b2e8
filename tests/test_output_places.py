"""Places where nothing can be written: every command refuses them in one line with exit code 2, before it computes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxpto import evaluate, export, phonons, pto_test, relax, report, sweep, train
from jaxpto.devices import compiled
from jaxpto.errors import InputError
from jaxpto.free_energy import command as free_energy
from jaxpto.storage.output import check_output_file, check_output_folder
from jaxpto.storage.trajectory import Quantity, create_trajectory, write_frames
from jaxpto.structures import builtin_structure
from jaxpto.system import from_ase


@pytest.fixture
def places(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Places, and what is said of them."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    return {
        "below a file": (tmp_path / "file" / "x", f"{tmp_path / 'file'} is a file; choose another place"),
        "far below a file": (tmp_path / "file" / "x" / "y", f"{tmp_path / 'file'} is a file; choose another place"),
        "dangling link": (tmp_path / "link", f"is a link to {tmp_path / 'gone'}, which does not exist; mend the link"),
        "below a dangling link": (tmp_path / "link" / "x", f"{tmp_path / 'link'} is a link to"),
        "long name": (tmp_path / ("n" * 300), "the name is too long; choose another place"),
        "long path": (tmp_path.joinpath(*["n" * 200] * 30), "the name is too long; choose another place"),
    }  # fmt: skip


KINDS = ("below a file", "far below a file", "dangling link", "below a dangling link", "long name", "long path")


@pytest.mark.parametrize("kind", KINDS)
def test_places(places: dict[str, tuple[Path, str]], kind: str, tmp_path: Path) -> None:
    place, message = places[kind]
    before = sorted(os.listdir(tmp_path))
    for check in (check_output_folder, check_output_file):
        with pytest.raises(InputError) as caught:
            check(place)
        assert message in str(caught.value)
        assert str(place) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(os.listdir(tmp_path)) == before


def test_folders_in_use_and_new_ones(tmp_path: Path) -> None:
    check_output_folder(tmp_path)  # empty
    check_output_folder(tmp_path / "a" / "b")
    check_output_file(tmp_path / "a" / "b.extxyz")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="is not empty; name a new folder"):
        check_output_folder(tmp_path)
    check_output_folder(tmp_path, resume=True)
    with pytest.raises(InputError, match="is a file; name a folder"):
        check_output_folder(tmp_path / "file", resume=True)
    with pytest.raises(InputError, match="is a folder; name a file"):
        check_output_file(tmp_path)
    with pytest.raises(InputError, match="exists; choose another name"):
        check_output_file(tmp_path / "file")
    check_output_file(tmp_path / "file", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    check_output_file(tmp_path / "link", overwrite=True)


def test_a_name_that_is_too_long_only_while_it_is_written(tmp_path: Path) -> None:
    check_output_file(tmp_path / ("n" * 246))
    with pytest.raises(InputError, match="too long"):
        check_output_file(tmp_path / ("n" * 247))  # .partial- comes before it


def test_without_permission(tmp_path: Path) -> None:
    """As another user, whom permissions bind."""
    (tmp_path / "closed").mkdir(mode=0o755)
    (tmp_path / "secret").mkdir(mode=0o700)
    (tmp_path / "secret" / "inside").mkdir()
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable").chmod(0o333)
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        found = []
        try:
            for folder in (tmp_path, *tmp_path.parents[:-2]):  # pytest's folders are root's alone
                os.chmod(folder, 0o755)
            os.setuid(65534)
            for name in ("closed", "closed/new", "secret/inside", "unreadable"):
                try:
                    check_output_folder(tmp_path / name)
                    found.append("taken")
                except InputError as error:
                    found.append(str(error))
            os.chdir("/")
            found.append(str(compiled._names(str(tmp_path / "secret"))))
        except BaseException as error:
            found.append(repr(error))
        os.write(writer, "\n".join(found).encode())
        os._exit(0)
    os.close(writer)
    said = os.fdopen(reader).read().splitlines()
    os.waitpid(child, 0)
    assert [line.partition(" cannot be ")[2] for line in said[:4]] == [
        f"written: no permission to write in {tmp_path / 'closed'}; choose another place",
        f"written: no permission to write in {tmp_path / 'closed'}; choose another place",
        "written: permission denied; choose another place",
        "read: Permission denied; name another folder",
    ]
    assert said[4:] == ["[]"]  # such a folder on sys.path


COMMANDS = {
    "sweep": (sweep.main, "PbTiO3-cubic --supercell 1 1 1 --steps 10 --sample-every 10"),
    "relax": (relax.main, "PbTiO3-cubic --model perovskite"),
    "phonons": (phonons.main, "PbTiO3-cubic --model perovskite"),
    "free_energy": (free_energy.main, "PbTiO3-cubic --model perovskite --method harmonic"),
    "train": (train.main, "--data nothing"),
    "pto_test": (pto_test.main, "--models perovskite --scale quick"),
    "report": (report.main, "pto-0k --models perovskite"),
}


def status_of(main: Callable[[], int | None], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | None:
    """Exit code of a command with these arguments."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    try:
        return main()
    except SystemExit as leaving:
        return int(str(leaving.code))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_them(
    places: dict[str, tuple[Path, str]],
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main, arguments = COMMANDS[command]
    for place, message in (places[kind] for kind in ("below a file", "dangling link", "long name")):
        assert status_of(main, monkeypatch, *arguments.split(), "--out", str(place)) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1


def test_commands_with_an_output_file_refuse_them(
    places: dict[str, tuple[Path, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    atoms, path = builtin_structure("PbTiO3-cubic"), tmp_path / "300K.h5md"
    create_trajectory(path, from_ase(atoms), 1, {"volume": Quantity((), "Angstrom3")})
    frame = {"step": [0], "time": [0.0], "position": [atoms.positions], "cell": [atoms.cell.array], "volume": [59.0]}
    write_frames(path, 0, {name: np.asarray(value) for name, value in frame.items()})
    atoms.write(tmp_path / "start.vasp")
    for kind in ("below a file", "dangling link", "long name"):
        place, message = places[kind]
        out = str(place.with_name(f"{place.name}.extxyz")) if kind != "dangling link" else str(place)
        for main, arguments in (
            (export.main, [str(path), out]),
            (evaluate.main, [str(tmp_path / "start.vasp"), "--model", "perovskite", "--out", out]),
        ):
            assert main(arguments) == 2
            said = capsys.readouterr().err
            assert message in said or (kind == "dangling link" and "suffix" in said)
            assert len(said.splitlines()) == 1


def test_comparison_refuses_them(
    places: dict[str, tuple[Path, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from test_report import LADDER, store

    from jaxpto.console.terminal import console
    from jaxpto.reporting.stored_sweep import load_sweep
    from jaxpto.reporting.sweep_report import write_sweep_report

    for name in ("a", "b"):
        store(tmp_path / name, LADDER[:2])
        write_sweep_report(tmp_path / name, load_sweep(tmp_path / name), console(quiet=True))
    place, message = places["below a file"]
    assert status_of(report.main, monkeypatch, str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(place)) == 2
    assert message in capsys.readouterr().err
