"""How a script ends: its exit code, and an error as one message."""

from collections.abc import Callable

from mechsafety.core.errors import InputError, MechsafetyError
from mechsafety.core.progress import say


def exit_code(work: Callable[[], int]) -> int:
    """What `work` returns; 2 where its input is refused, and 1 where it fails."""
    try:
        return work()
    except InputError as error:
        say(f"error: {error}")
        return 2
    except MechsafetyError as error:
        say(f"failed: {error}")
        return 1
