"""After the tests, a table of the largest differences from the recorded numbers."""

import pytest
from recordings import ERRORS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what `assert_recorded` saw."""
    if not ERRORS:
        return
    width = max(map(len, ERRORS))
    terminalreporter.section("differences from the recorded numbers")
    terminalreporter.write_line(f"{'golden':{width}}  tensors  max abs  max rel (to the tensor's largest element)")
    for golden, errors in ERRORS.items():
        terminalreporter.write_line(
            f"{golden:{width}}  {errors.tensors:7}  {errors.absolute:.1e}  {errors.relative:.1e}"
        )
