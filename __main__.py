"""The `padless` command, also as `python -m padless`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; it ends the process with exit code 0, or 2 after one line that says what is wrong."""
    from .engine.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
