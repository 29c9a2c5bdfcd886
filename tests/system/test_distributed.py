"""Values of several processes, and full copies of sharded state."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tagger.system import distributed


def test_cuda_processes_exchange_objects_through_main_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends: list[str] = []
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "rendezvous", lambda *_: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: backends.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for cuda in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        with distributed.process_group() as group:
            assert group.device == torch.device("cuda", 1) if cuda else torch.device("cpu")
    assert backends == ["cpu:gloo,cuda:nccl", "gloo"]


def test_full_state_dict_is_a_copy_that_the_next_one_reuses() -> None:
    """Some optimizers hold lists of tensors, as long as a weight has dimensions."""
    state: Any = {0: {"Q": [torch.ones(2), torch.ones(3)], "step": 7}, 1: {"Q": [], "pair": (1, 2)}}
    copy = distributed.full_state_dict(state)
    for values in state[0]["Q"]:
        values += 1
    assert [values.tolist() for values in copy[0]["Q"]] == [[1, 1], [1, 1, 1]]
    assert (copy[0]["step"], copy[1]) == (7, {"Q": [], "pair": (1, 2)})
    again = distributed.full_state_dict(state, copy)
    assert [values.tolist() for values in again[0]["Q"]] == [[2, 2], [2, 2, 2]]
    for first, second in zip(copy[0]["Q"], again[0]["Q"], strict=True):
        assert first.data_ptr() == second.data_ptr()
    shorter = distributed.full_state_dict({0: {"Q": [torch.zeros(2)]}}, copy)
    assert [values.tolist() for values in shorter[0]["Q"]] == [[0, 0]]


def test_full_state_dict_gathers_shards_in_all_processes_and_keeps_them_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathered: list[int] = []

    class Sharded:
        def __init__(self, number: int) -> None:
            self.number = number

        def full_tensor(self) -> Tensor:
            gathered.append(self.number)
            return torch.ones(2)

    monkeypatch.setattr(distributed, "DTensor", Sharded)
    state = {"model": {"a": Sharded(0), "b": torch.zeros(1)}, "moments": [Sharded(1)], "step": 3}
    nothing = {"model": {"a": None, "b": None}, "moments": [None], "step": 3}
    assert distributed.full_state_dict(state, needed=False) == nothing
    assert gathered == [0, 1]
    assert distributed.full_state_dict(state)["moments"][0].tolist() == [1, 1]
