"""`python -m hire_mlp_mm`: the command `hire-mlp`."""

from .cli import main

if __name__ == "__main__":
    main()
