"""A vLLM connector that saves the last prompt token's hidden states only: 2 bytes x layers x width a question, not a token.

vLLM imports this module by name in its engine process; nothing else imports it. The stock connector saves the states of all
prompt tokens, through pinned memory that a CPU build does not have.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.distributed.kv_transfer.kv_connector.v1.example_hidden_states_connector import (
    ExampleHiddenStatesConnector,
    PendingSave,
)


class _Copied:
    """Stands in for a CUDA event where the copy is done already."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class LastTokenConnector(ExampleHiddenStatesConnector):
    """Writes ``hidden_states`` (layers, D) of each finished request's last prompt token."""

    def _submit_async_write(self, pending: PendingSave) -> None:
        if not self._is_tp_rank_zero:
            return
        last = len(pending.token_ids) - 1
        block, offset = pending.block_ids[last // self._block_size], last % self._block_size
        state_LD = self._kv_cache[block, :, offset]
        copied: Any = _Copied()
        if state_LD.is_cuda:
            stream = self._get_copy_stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                on_host = torch.empty(state_LD.shape, dtype=state_LD.dtype, pin_memory=True)
                on_host.copy_(state_LD, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
        else:
            on_host = state_LD.clone()
        os.makedirs(os.path.dirname(pending.filename), exist_ok=True)
        lock = self._lock_fds.pop(pending.req_id, None)
        future = self._executor.submit(self._write_row, on_host, copied, pending.filename, lock)
        self._req_copy_events[pending.req_id] = copied
        self._req_futures[pending.req_id] = future
        future.add_done_callback(partial(self._on_write_done, pending.req_id))

    @staticmethod
    def _write_row(state_LD: torch.Tensor, copied: Any, file: str, lock: int | None) -> None:
        """Waits for the copy, writes, and lets the readers go by closing the lock."""
        try:
            copied.synchronize()
            save_file({"hidden_states": state_LD.contiguous()}, file)
        finally:
            if lock is not None:
                os.close(lock)
