"""What both stand-ins of TensorRT-LLM share: they generate with transformers, step by step, all requests at once.

Names, arguments and their defaults are those of tensorrt_llm's `llmapi/llm.py` (`BaseLLM.__init__`, `generate_async`,
`shutdown`, `save`), `sampling_params.py` (`SamplingParams`), `executor/result.py` (`GenerationResult`, an asynchronous
iterator; `CompletionOutput`) and of the bindings' `RequestPerfMetrics.timing_metrics`; whatever is not among them is an
error, as it is there. An engine has a worker process, which ends with `shutdown`.

    TRTLLM_STANDIN_FAULT: load | generate | silent_metrics     what goes wrong
    TRTLLM_STANDIN_BUILDS: a file that gets a line for each engine that is built
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

FAULT, BUILDS = "TRTLLM_STANDIN_FAULT", "TRTLLM_STANDIN_BUILDS"


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
        self.arrival_s = time.monotonic()
        self.scheduled_s = self.first_s = 0.0
        self.aborted = False
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self.generator = torch.Generator().manual_seed(parameters.seed or 0)
        self.cache: Any = None

    def put(self, message: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    def abort(self) -> None:
        self.aborted = True

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        if self.outputs[0].finish_reason is not None:
            raise StopAsyncIteration
        message = await self._queue.get()
        if isinstance(message, Exception):
            raise message
        token, reason, metrics = message
        self.outputs[0].token_ids.append(token)
        self.outputs[0].finish_reason, self.outputs[0].request_perf_metrics = reason, metrics
        return self


class StandInLLM:
    """`BaseLLM`; `arguments_class` is its pydantic model of arguments."""

    arguments_class: Any

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
        self._worker: Any = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        self._wake, self._waiting, self._ended = threading.Condition(), [], False
        self._build_model()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _build_model(self) -> None:
        state = torch.get_rng_state()
        self._model = AutoModelForCausalLM.from_pretrained(self._checkpoint(), dtype=getattr(torch, self.args.dtype))
        torch.set_rng_state(state)

    def _checkpoint(self) -> str:
        return str(self.args.model)

    def _generate_async(self, ids: list[int], sampling_params: Any, streaming: bool) -> RequestOutput:
        if self._ended:
            raise RuntimeError("LLM is shutting down")
        if not streaming:
            raise NotImplementedError("the stand-in only streams")
        if sampling_params.end_id is None:
            raise ValueError("tokenizer is required to reset end_id if it is None")
        output = RequestOutput(ids, sampling_params)
        with self._wake:
            self._waiting.append(output)
            self._wake.notify()
        return output

    def shutdown(self) -> None:
        with self._wake:
            self._ended = True
            self._wake.notify()
        self._thread.join()
        if self._worker is not None:
            self._worker.stdin.close()
            self._worker.wait()
            self._worker = None

    @torch.inference_mode()
    def _run(self) -> None:
        active: list[RequestOutput] = []
        while True:
            with self._wake:
                while not (self._waiting or active or self._ended):
                    self._wake.wait()
                if self._ended:
                    return
                room = self.args.max_batch_size - len(active)
                active += self._waiting[:room]
                del self._waiting[:room]
            for request in list(active):
                if request.aborted or self._step(request):
                    active.remove(request)

    def _step(self, request: RequestOutput) -> bool:
        """One token; whether it was the last."""
        if os.environ.get(FAULT) == "generate":
            request.put(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
            return True
        done, asked = len(request.produced) if hasattr(request, "produced") else 0, request.parameters
        if done == 0:
            request.scheduled_s, request.produced = time.monotonic(), []
        fresh = request.prompt_token_ids if done == 0 else request.produced[-1:]
        result = self._model(torch.tensor([fresh]), past_key_values=request.cache, use_cache=True)
        request.cache = result.past_key_values
        logits = result.logits[0, -1].float()
        if not asked.ignore_eos and done < (asked.min_tokens or 0):
            logits[asked.end_id] = -torch.inf
        token = self._choose(logits, asked, request.generator)
        request.produced.append(token)
        now_s = time.monotonic()
        request.first_s = request.first_s or now_s
        ends = set(asked.stop_token_ids or ()) | (set() if asked.ignore_eos else {asked.end_id})
        reason = "stop" if token in ends else "length" if len(request.produced) == asked.max_tokens else None
        if reason == "stop" and token in (asked.stop_token_ids or ()) and not asked.include_stop_str_in_output:
            raise NotImplementedError("the stand-in keeps the word that stops")
        told = asked.return_perf_metrics and reason and os.environ.get(FAULT) != "silent_metrics"
        request.put((token, reason, _metrics(request, now_s) if told else None))
        return reason is not None

    @staticmethod
    def _choose(logits: torch.Tensor, asked: SamplingParams, generator: torch.Generator) -> int:
        if asked.top_k == 1 or (asked.temperature, asked.top_k, asked.top_p) == (None, None, None):
            return int(logits.argmax())
        if asked.top_k:
            logits[logits < logits.topk(asked.top_k).values[-1]] = -torch.inf
        probabilities = torch.softmax(logits / (asked.temperature or 1.0), -1)
        return int(torch.multinomial(probabilities, 1, generator=generator))


def _metrics(request: RequestOutput, last_s: float) -> Any:
    instants = {
        "arrival_time": request.arrival_s,
        "first_scheduled_time": request.scheduled_s,
        "first_token_time": request.first_s,
        "last_token_time": last_s,
    }
    timing = {name: timedelta(seconds=value) for name, value in instants.items()}
    return SimpleNamespace(timing_metrics=SimpleNamespace(**timing))


def build(llm: StandInLLM, directory: Path, contents: dict[str, Any]) -> None:
    """Write what stands for a built engine, and that it was built."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"pretrained_config": {}, "build_config": contents}))
    (directory / "rank0.engine").write_bytes(b"engine" * 1000)
    if (log := os.environ.get(BUILDS)) is not None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
