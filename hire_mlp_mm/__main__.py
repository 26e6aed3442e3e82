"""Run the command `hire-mlp` by `python -m hire_mlp_mm`."""

from .cli import main

if __name__ == "__main__":
    main()
