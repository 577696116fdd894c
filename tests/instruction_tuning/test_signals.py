"""Signals ask a run to stop; a second Ctrl-C ends it at once."""

import signal

import pytest

from open_flamingo.instruction_tuning.signals import STOPPING, stop_on_signals

NUMBERS = [getattr(signal, name) for name in STOPPING]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_asks_to_stop_and_does_no_more(number):
    with stop_on_signals() as stop:
        assert not stop.is_asked
        signal.raise_signal(number)
        assert stop.is_asked
        assert stop.received == number


def test_a_second_ctrl_c_ends_the_run_at_once():
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_scheduler_may_ask_again_and_again(number):
    with stop_on_signals() as stop:
        for other in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
            signal.raise_signal(other)
        signal.raise_signal(number)
        assert stop.received == number


def test_signals_do_what_they_did_once_the_run_is_over():
    before = [signal.getsignal(number) for number in NUMBERS]
    with stop_on_signals():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_signals_do_what_they_did_after_an_error_too():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(ValueError, match="of the run"), stop_on_signals():
        raise ValueError("of the run")
    assert [signal.getsignal(number) for number in NUMBERS] == before
