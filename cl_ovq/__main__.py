"""`python -m cl_ovq`, the same as `cl-ovq`."""

from cl_ovq.cli import main

if __name__ == "__main__":
    main()
