from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from llenergymeasure.resilience import retry_on_error


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[int]]:
    """A function that fails `times` times and then answers, and the list of its calls."""
    calls: list[int] = []

    def function() -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            raise error
        return "answer"

    return function, calls


def test_pauses_grow_by_the_factor() -> None:
    pauses: list[float] = []
    function, calls = failing(3, ConnectionError("reset"))

    answer = retry_on_error(max_retries=3, delay_seconds=1.0, backoff_factor=2.0, sleep=pauses.append)(function)()

    assert answer == "answer"
    assert pauses == [1.0, 2.0, 4.0]
    assert len(calls) == 4


def test_the_last_error_is_raised_unchanged() -> None:
    error = TimeoutError("too slow")
    function, calls = failing(10, error)

    with pytest.raises(TimeoutError) as raised:
        retry_on_error(max_retries=2, sleep=lambda seconds: None)(function)()

    assert raised.value is error
    assert len(calls) == 3


def test_other_errors_pass_at_once() -> None:
    pauses: list[float] = []
    function, calls = failing(1, KeyError("typo"))

    with pytest.raises(KeyError):
        retry_on_error(sleep=pauses.append)(function)()

    assert (len(calls), pauses) == (1, [])


def test_an_error_that_is_not_transient_passes_at_once() -> None:
    function, calls = failing(1, ConnectionError("offline mode"))

    with pytest.raises(ConnectionError):
        retry_on_error(is_transient=lambda error: "offline" not in str(error), sleep=lambda seconds: None)(function)()

    assert len(calls) == 1


def test_zero_retries_means_one_attempt() -> None:
    function, calls = failing(1, ConnectionError())

    with pytest.raises(ConnectionError):
        retry_on_error(max_retries=0, sleep=lambda seconds: None)(function)()

    assert len(calls) == 1


def test_every_retry_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    function, _ = failing(2, ConnectionError("reset by peer"))

    with caplog.at_level(logging.WARNING, logger="llenergymeasure.resilience"):
        retry_on_error(sleep=lambda seconds: None)(function)()

    assert len(caplog.records) == 2
    assert "reset by peer" in caplog.text
    assert "retry 1 of 3" in caplog.text


def test_arguments_and_name_survive() -> None:
    @retry_on_error()
    def join(left: str, *, right: str) -> str:
        """Put two strings together."""
        return left + right

    assert join("a", right="b") == "ab"
    assert (join.__name__, join.__doc__) == ("join", "Put two strings together.")


@pytest.mark.parametrize("arguments", [{"max_retries": -1}, {"delay_seconds": -0.1}, {"backoff_factor": 0.5}])
def test_senseless_settings_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="retry_on_error needs"):
        retry_on_error(**arguments)  # type: ignore[arg-type]
