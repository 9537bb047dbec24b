"""What both stand-ins of TensorRT-LLM share: they generate with transformers, step by step, all requests at once.

Names, arguments and their defaults are those of tensorrt_llm's `llmapi/llm.py` (`BaseLLM.__init__`, `generate_async`,
`shutdown`, `save`, `get_kv_cache_capacity`), `sampling_params.py` (`SamplingParams`), `executor/result.py` (at 1.2.0's
release candidates: `GenerationResult`, an asynchronous iterator with `cached_tokens`; `CompletionOutput`), of the
bindings' `RequestPerfMetrics` (`llmRequest.h`, `updatePerfMetrics`: instants, `first_iter`, `iter`, `last_iter`) and of
`_torch/pyexecutor/perf_metrics_manager.py` (2026: `time_breakdown_metrics`); whatever is not among them is an error, as
it is there. Tokens bear the number of the iteration that was begun before they were told, so that the last ones may
bear that of those before (`py_executor.py`, `_executor_loop_overlap`).

An engine has a worker process, `mpi4py.futures.server`, below a daemon with a session of its own, as MPI starts them;
without it nothing is answered any more (as before `executor/worker_process_monitor.py`).

    TRTLLM_STANDIN_FAULT: load | generate | silent_metrics | killed     what goes wrong
    TRTLLM_STANDIN_FAULT: pause                                         every other step leaves the first request out
    TRTLLM_STANDIN_BUILDS: a file that gets a line for each engine that is built
    TRTLLM_STANDIN_WORKER: a file that gets the worker's number
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

FAULT, BUILDS, WORKER = "TRTLLM_STANDIN_FAULT", "TRTLLM_STANDIN_BUILDS", "TRTLLM_STANDIN_WORKER"

KILLED_AT = 3
"""Iteration in which the worker is killed."""

DAEMON = """
import subprocess, sys
worker = subprocess.Popen([sys.executable, "-S", "-m", "mpi4py.futures.server"])
print(worker.pid, flush=True)
worker.wait()
"""


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """Fields of `sampling_params.py` (1.2) that a text can be asked for with."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    n: int = 1
    best_of: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    return_perf_metrics: bool = False
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True


@dataclass
class CompletionOutput:
    index: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    request_perf_metrics: Any = None


class RequestOutput:
    """One request, read as it grows."""

    def __init__(self, ids: list[int], parameters: SamplingParams) -> None:
        self.prompt_token_ids, self.parameters = ids, parameters
        self.outputs = [CompletionOutput()]
        self.cached_tokens = 0
        self.time_breakdown_metrics: dict[str, Any] | None = None
        self.aborted = False
        self.produced: list[int] = []
        self.arrival_s = time.monotonic()
        self.scheduled_s = self.first_s = 0.0
        self.first_iter: int | None = None
        self.forwards: list[dict[str, Any]] = []
        self.generator = torch.Generator().manual_seed(parameters.seed or 0)
        self.cache: Any = None
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(self, message: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    def abort(self) -> None:
        self.aborted = True

    def wait_for_its_call(self) -> None:
        """Return when all requests of the call that made it are there: its event loop makes them in one go."""
        all_are_there = threading.Event()
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(all_are_there.set)
            all_are_there.wait(timeout=60)  # a loop that stops meanwhile makes nothing any more

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.outputs[0].finish_reason is not None:
            raise StopAsyncIteration
        message = await self._queue.get()
        if isinstance(message, Exception):
            raise message
        token, reason, metrics, breakdown = message
        self.outputs[0].token_ids.append(token)
        self.outputs[0].finish_reason, self.outputs[0].request_perf_metrics = reason, metrics
        self.time_breakdown_metrics = breakdown
        return self


class StandInLLM:
    """`BaseLLM`; `arguments_class` is its pydantic model of arguments."""

    arguments_class: Any
    tells_every_token = False

    def __init__(
        self,
        model: str,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        for key in kwargs:
            if key not in self.arguments_class.model_fields:
                raise ValueError(f"{type(self).__name__} got invalid argument: {key}")
        self.args = self.arguments_class(**given, **kwargs)
        if os.environ.get(FAULT) == "load":
            raise RuntimeError("Executor worker returned error")
        self._daemon = subprocess.Popen(
            [sys.executable, "-S", "-c", DAEMON], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._worker = int(self._daemon.stdout.readline())
        if (path := os.environ.get(WORKER)) is not None:
            Path(path).write_text(str(self._worker))
        self._iteration, self._held = 0, set[Any]()
        self._wake, self._waiting, self._ended = threading.Condition(), [], False
        self._build_model()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        atexit.register(self.shutdown)

    def _build_model(self) -> None:
        state = torch.get_rng_state()
        self._model = AutoModelForCausalLM.from_pretrained(self._checkpoint(), dtype=getattr(torch, self.args.dtype))
        torch.set_rng_state(state)

    def _checkpoint(self) -> str:
        return str(self.args.model)

    def _generate_async(
        self, ids: list[int], sampling_params: Any, streaming: bool, salt: str | None = None
    ) -> RequestOutput:
        if self._ended:
            raise RuntimeError("LLM is shutting down")
        if not streaming:
            raise NotImplementedError("the stand-in only streams")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        output = RequestOutput(ids, sampling_params)
        if self.args.kv_cache_config.enable_block_reuse:
            if (salt, tuple(ids)) in self._held:
                size = self.args.kv_cache_config.tokens_per_block
                output.cached_tokens = (len(ids) - 1) // size * size
            self._held.add((salt, tuple(ids)))
        with self._wake:
            self._waiting.append(output)
            self._wake.notify()
        return output

    def shutdown(self) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()
        if self._daemon.poll() is None:
            os.kill(self._worker, signal.SIGTERM)
            self._daemon.wait()

    @torch.inference_mode()
    def _run(self) -> None:
        active: list[RequestOutput] = []
        while True:
            with self._wake:
                while not (self._waiting or active or self._ended):
                    self._wake.wait()
                first = None if active or self._ended else self._waiting[0]
            if first is not None:
                first.wait_for_its_call()
            with self._wake:
                room = self.args.max_batch_size - len(active)
                active += self._waiting[:room]
                del self._waiting[:room]
            if os.environ.get(FAULT) == "killed" and self._iteration == KILLED_AT:
                os.kill(self._worker, signal.SIGKILL)
                self._daemon.wait()
            while self._daemon.poll() is not None and not self._ended:
                with self._wake:
                    self._wake.wait()
            if self._ended:
                return
            active = [request for request in active if not request.aborted]
            self._iteration += 1
            paused = os.environ.get(FAULT) == "pause" and self._iteration % 2 == 0 and len(active) > 1
            active = active[:1] * paused + self._step(active[1:] if paused else active)

    def _step(self, batch: list[RequestOutput]) -> list[RequestOutput]:
        """One token for each of `batch`; those that go on."""
        if os.environ.get(FAULT) == "generate":
            for request in batch:
                request.put(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
            return []
        begun_s = time.monotonic()
        tokens = [self._token(request) for request in batch]
        reasons = [self._reason(request, token) for request, token in zip(batch, tokens, strict=True)]
        goes_on = any(reason is None for reason in reasons) or bool(self._waiting)
        now_s, iteration = time.monotonic(), self._iteration + goes_on
        for request, token, reason in zip(batch, tokens, reasons, strict=True):
            request.forwards.append({"forward_start_time": begun_s, "token_time": now_s})
            if request.first_iter is None:
                request.first_iter, request.first_s = iteration, time.monotonic()
            asked = request.parameters
            timed = asked.return_perf_metrics and self.args.return_perf_metrics
            told = timed and reason and os.environ.get(FAULT) != "silent_metrics"
            request.put((token, reason, _metrics(request, iteration) if told else None, self._breakdown(request, told)))
        return [request for request, reason in zip(batch, reasons, strict=True) if reason is None]

    def _token(self, request: RequestOutput) -> int:
        request.scheduled_s = request.scheduled_s or time.monotonic()
        asked, done = request.parameters, len(request.produced)
        fresh = request.produced[-1:] or request.prompt_token_ids
        result = self._model(torch.tensor([fresh]), past_key_values=request.cache, use_cache=True)
        request.cache = result.past_key_values
        logits = result.logits[0, -1].float()
        if not asked.ignore_eos and done < (asked.min_tokens or 0):
            logits[asked.end_id] = -torch.inf
        request.produced.append(self._choose(logits, asked, request.generator))
        return request.produced[-1]

    def _reason(self, request: RequestOutput, token: int) -> str | None:
        asked = request.parameters
        ends = set(asked.stop_token_ids or ()) | (set() if asked.ignore_eos else {asked.end_id})
        if token in (asked.stop_token_ids or ()) and not asked.include_stop_str_in_output:
            raise NotImplementedError("the stand-in keeps the word that stops")
        return "stop" if token in ends else "length" if len(request.produced) == asked.max_tokens else None

    def _breakdown(self, request: RequestOutput, told: Any) -> dict[str, Any] | None:
        if not (told and self.tells_every_token):
            return None
        return {"ctx_chunk_metrics": request.forwards[:1], "step_metrics": request.forwards[1:]}

    @staticmethod
    def _choose(logits: torch.Tensor, asked: SamplingParams, generator: torch.Generator) -> int:
        if asked.top_k == 1 or (asked.temperature, asked.top_k, asked.top_p) == (None, None, None):
            return int(logits.argmax())
        if asked.top_k:
            logits[logits < logits.topk(asked.top_k).values[-1]] = -torch.inf
        probabilities = torch.softmax(logits / (asked.temperature or 1.0), -1)
        return int(torch.multinomial(probabilities, 1, generator=generator))


def _metrics(request: RequestOutput, last_iter: int) -> Any:
    instants = {
        "arrival_time": request.arrival_s,
        "first_scheduled_time": request.scheduled_s,
        "first_token_time": request.first_s,
        "last_token_time": time.monotonic() if len(request.produced) > 1 else request.first_s,
    }
    timing = SimpleNamespace(**{name: timedelta(seconds=value) for name, value in instants.items()})
    return SimpleNamespace(timing_metrics=timing, first_iter=request.first_iter, iter=last_iter, last_iter=last_iter)


def build(llm: StandInLLM, directory: Path, contents: dict[str, Any]) -> None:
    """Write what stands for a built engine, and that it was built."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"pretrained_config": {}, "build_config": contents}))
    (directory / "rank0.engine").write_bytes(b"engine" * 1000)
    if (log := os.environ.get(BUILDS)) is not None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
