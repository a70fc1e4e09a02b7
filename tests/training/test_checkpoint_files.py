"""What a checkpoint's files may say: nothing that is read can leave its folder, ask for memory that its
files do not fill, or be more than data."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_checkpoints import numbered, save_now

from processes import SERVER
from sparface.errors import UserError
from sparface.runs import checkpoint_files
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import INDEX_FILE, read_state, write_state

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")
WEIGHT = "networks.recognizer.weight"
"""[8] float32: 32 bytes."""
Change = Callable[[dict[str, Any]], object]


def reseal(path: Path, change: Change) -> None:
    """Alter a checkpoint's index as somebody would who makes new digests, too."""
    index = json.loads((path / INDEX_FILE).read_text())
    change(index)
    (path / INDEX_FILE).write_text(json.dumps(index))
    reseal_state(path, lambda state: None)


def reseal_state(path: Path, change: Change) -> None:
    state = read_state(path)
    state["files"] |= checkpoint_files.digests(path, 0)
    change(state)
    write_state(path / "state.json", state)


def part(change: Callable[[list[Any]], object]) -> Change:
    """A change of file, offset and rows of the weight's only part."""
    return lambda index: change(index["tensors"][WEIGHT]["parts"][0])


def tensor(**fields: Any) -> Change:
    return lambda index: index["tensors"][WEIGHT].update(fields)


FORGERIES: dict[str, tuple[Change, str]] = {
    "past the end": (part(lambda p: p.__setitem__(1, 1 << 20)), "outside of the checkpoint's files"),
    "partly past the end": (part(lambda p: p.__setitem__(1, 9)), "outside of the checkpoint's files"),
    "negative offset": (part(lambda p: p.__setitem__(1, -4)), "impossible part"),
    "offset that is no number": (part(lambda p: p.__setitem__(1, "4")), "impossible part"),
    "fewer rows": (part(lambda p: p.__setitem__(2, 7)), "is incomplete"),
    "no rows": (part(lambda p: p.__setitem__(2, 0)), "impossible part"),
    "a part of two": (part(lambda p: p.pop()), "was altered"),
    "a file outside": (part(lambda p: p.__setitem__(0, "../../outside.distcp")), "outside of the checkpoint"),
    "a file not listed": (part(lambda p: p.__setitem__(0, "state.json")), "outside of the checkpoint"),
    "no part": (tensor(parts=[]), "is incomplete"),
    "huge": (tensor(size=[1 << 60]), "impossible size"),
    "huge and empty": (tensor(size=[0, 1 << 40, 1 << 40], parts=[]), "impossible size"),
    "negative size": (tensor(size=[-8]), "impossible size"),
    "larger than its bytes": (tensor(size=[8, 1 << 20]), "outside of the checkpoint's files"),
    "unknown type": (tensor(dtype="Storage"), "was altered"),
    "the bytes of another": (lambda i: i["tensors"].update(twin=i["tensors"][WEIGHT]), "share bytes"),
    "no tensors": (lambda i: i.pop("tensors"), "was altered"),
    "a list of tensors": (lambda i: i.update(tensors=[1, 2]), "was altered"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_resealed_checkpoint_cannot_ask_for_what_is_not_there(
    store: CheckpointStore, tmp_path: Path, name: str
) -> None:
    """An element without bytes of its own would be memory that nobody has written."""
    change, words = FORGERIES[name]
    good, bad = save_now(store, 100), save_now(store, 200)
    (tmp_path / "outside.distcp").write_bytes(bytes(1000))
    reseal(bad, change)
    for read in (
        lambda: read_weights(bad, "networks.recognizer"),
        lambda: store.load(bad, numbered(0), identity="model"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert str(bad) in str(caught.value)
    assert store.newest() == good
    assert words in store.skipped[0]


STATES: dict[str, Change] = {
    "no schema": lambda state: state.pop("schema"),
    "no files": lambda state: state.pop("files"),
    "no index": lambda state: state["files"].pop(INDEX_FILE),
    "files as a list": lambda state: state.update(files=["a"]),
    "a file without a size": lambda state: state["files"].update(a={"sha256": ""}),
    "a file outside": lambda state: state["files"].update({"../x": {"bytes": 0, "sha256": ""}}),
    "images that are no number": lambda state: state.update(images_seen="many"),
    "facts as a list": lambda state: state.update(facts=[]),
}


@pytest.mark.parametrize("name", STATES)
def test_a_resealed_state_is_passed_over_in_one_line(store: CheckpointStore, name: str) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    reseal_state(bad, STATES[name])
    assert store.newest() == good
    assert len(store.skipped) == 1 and str(bad) in store.skipped[0] and "\n" not in store.skipped[0]


@pytest.mark.parametrize("content", [b"[" * 100_000, b" " * ((1 << 26) + 1)], ids=["deep", "large"])
def test_an_index_of_any_depth_or_size_is_passed_over(store: CheckpointStore, content: bytes) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    (bad / INDEX_FILE).write_bytes(content)
    reseal_state(bad, lambda state: None)
    assert store.newest() == good
    assert str(bad) in store.skipped[0] and INDEX_FILE in store.skipped[0]


def test_a_link_out_of_a_checkpoint_is_not_followed(store: CheckpointStore, tmp_path: Path) -> None:
    path = save_now(store, 100)
    (path / "__0_0.distcp").rename(tmp_path / "outside.distcp")
    (path / "__0_0.distcp").symlink_to(tmp_path / "outside.distcp")
    with pytest.raises(UserError, match="outside the folder"):
        read_weights(path, "networks.recognizer")


class Plain:
    pass


def test_what_is_no_plain_value_cannot_be_saved(store: CheckpointStore) -> None:
    with pytest.raises(UserError, match="Plain is not JSON serializable"):
        save_now(store, 200, {"scaler": {"value": Plain()}})
    assert store.newest() is None


def test_nothing_in_a_checkpoint_is_a_pickle(store: CheckpointStore) -> None:
    """Values are JSON, and all else is the tensors' bytes, as many as they have."""
    path = save_now(store, 100, {"a": {"weight": numbered(1), "rate": 0.1, "names": ["x"]}})
    assert sorted(file.name for file in path.iterdir()) == ["__0_0.distcp", "index.json", "state.json"]
    assert (path / "__0_0.distcp").stat().st_size == 8 * 4 + 8
    assert json.loads((path / INDEX_FILE).read_text())["values"] == {"a.rate": 0.1, "a.names": ["x"]}


def resume_as_nobody(folder: Path, answer: Path) -> None:
    os.setuid(65534)
    store = CheckpointStore(folder)
    answer.write_text(json.dumps([str(store.newest()), store.skipped]))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not read")
@pytest.mark.parametrize("name", ["__0_0.distcp", "index.json", "state.json", ""])
def test_a_checkpoint_that_may_not_be_read_is_named_and_passed_over(name: str) -> None:
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        os.chmod(place, 0o777)
        folder, answer = Path(place) / "checkpoints", Path(place) / "answer"
        store = CheckpointStore(folder)
        good, bad = save_now(store, 100), save_now(store, 200)
        (bad / name).chmod(0)
        process = SERVER.Process(target=resume_as_nobody, args=(folder, answer))
        process.start()
        process.join(60)
        found, skipped = json.loads(answer.read_text())
    assert found == str(good)
    assert str(bad) in skipped[0] and name in skipped[0] and "Permission denied" in skipped[0]


def test_a_disk_that_fails_is_named_and_the_checkpoint_before_is_used(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    real = open

    def failing(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == str(bad / "__0_0.distcp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr("builtins.open", failing)
    assert store.newest() == good
    assert store.skipped == [f"{bad}: __0_0.distcp cannot be read (Input/output error)"]
